"""Calls of another thread are performed in the loop's, in their order, and none stands in the way of the next."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from storage.sqlite.loop_calls import LoopCalls


async def _in_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)


async def test_calls_are_performed_in_the_loops_thread_in_their_order() -> None:
    calls, done, seen = LoopCalls(), asyncio.Event(), []

    def note(n: int) -> None:
        seen.append((n, threading.current_thread() is threading.main_thread()))
        if n == 99_999:
            done.set()

    # More than the socket takes, if the loop is slow.
    await _in_thread(lambda: [calls.call(note, n) for n in range(100_000)])
    await done.wait()
    assert seen == [(n, True) for n in range(100_000)]
    calls.close()


async def test_many_calls_while_the_loop_is_busy_are_all_performed() -> None:
    calls, seen = LoopCalls(), []
    thread = threading.Thread(target=lambda: [calls.call(seen.append, n) for n in range(5_000)])
    thread.start()
    thread.join()  # the loop stands meanwhile, and the socket is full
    done = asyncio.Event()
    calls.call(done.set)
    await done.wait()
    assert seen == [*range(5_000)]
    calls.close()


async def test_a_call_that_fails_is_reported_and_the_next_is_performed() -> None:
    calls, done, reported = LoopCalls(), asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def fail() -> None:
        raise LookupError

    def both() -> None:
        calls.call(fail)
        calls.call(done.set)

    await _in_thread(both)
    await done.wait()
    (context,) = reported
    assert isinstance(context["exception"], LookupError)
    calls.close()


async def test_after_the_end_nothing_is_called() -> None:
    calls, seen = LoopCalls(), []
    calls.close()
    await _in_thread(lambda: calls.call(seen.append, 1))
    await asyncio.sleep(0)
    assert not seen
