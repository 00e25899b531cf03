"""The order of work in a busy loop: few streams go on in a pass, in order, and what is new goes between them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
import pytest

from adapters import pace
from adapters.errors import ProviderReplyBroken
from adapters.pace import STREAMS_PER_PASS, Pace
from adapters.transport import HttpTransport
from tests.adapters.test_transport import chat, post
from tests.doubles.upstream import Gate, StrictUpstream, say


def begun(count: int, done: list[int | str]) -> list[asyncio.Task[None]]:
    """Streams that go on at one pace. done: where each writes its number when it has gone on."""
    one = Pace()

    async def stream(number: int) -> None:
        if (wait := one.enter()) is not None:
            await wait
        done.append(number)

    return [asyncio.create_task(stream(number)) for number in range(count)]


async def test_few_streams_go_on_in_a_pass_and_what_is_new_goes_between_them() -> None:
    done: list[int | str] = []
    streams = begun(5 * STREAMS_PER_PASS, done)
    await asyncio.sleep(0)
    assert done == [*range(STREAMS_PER_PASS)]
    asyncio.get_running_loop().call_soon(done.append, "new")
    await asyncio.gather(*streams)
    done.remove("new")
    assert done == [*range(5 * STREAMS_PER_PASS)]


async def test_a_new_stream_waits_for_two_passes_at_most() -> None:
    done: list[int | str] = []
    streams = begun(20 * STREAMS_PER_PASS, done)
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(done.append, "new")
    await asyncio.gather(*streams)
    assert done.index("new") <= 2 * STREAMS_PER_PASS


async def test_a_stream_that_waited_long_enough_goes_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MAX_WAIT_S", -1.0)
    one = Pace()
    waits = [wait for _ in range(100) if (wait := one.enter()) is not None]
    assert len(waits) == 100 - STREAMS_PER_PASS
    await asyncio.sleep(0)
    assert all(wait.done() for wait in waits)


async def test_a_stream_that_is_cancelled_takes_no_place() -> None:
    one = Pace()
    waits = [wait for _ in range(3 * STREAMS_PER_PASS) if (wait := one.enter()) is not None]
    for wait in waits[:STREAMS_PER_PASS]:
        wait.cancel()
    await asyncio.sleep(0)
    assert [wait.done() for wait in waits] == [True] * len(waits)


async def test_a_stream_of_a_later_pass_does_not_wait() -> None:
    one = Pace()
    for _ in range(3 * STREAMS_PER_PASS):
        assert one.enter() is None
        await asyncio.sleep(0)


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_stream_that_waited_hands_on_what_came_meanwhile(
    transport: HttpTransport, upstream: StrictUpstream, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """An error belongs after what came before it."""
    begin, end = Gate(), Gate()
    upstream.queue(say("a b c", hold_after={1: begin, 2: end}, cut_after=2 if breaks else None))

    async def until_its_end() -> None:
        end.open()
        with suppress(aiohttp.ClientError):
            await reply._response.content.wait_eof()

    class Held(Pace):
        def enter(self) -> asyncio.Future[None] | None:
            return asyncio.ensure_future(until_its_end()) if first else None

    monkeypatch.setattr("adapters.transport.Pace", Held)
    first = []
    reply = await post(transport, upstream, chat(stream=True))
    events = reply.events()
    first = await anext(events)
    begin.open()
    rest = await anext(events)
    if breaks:
        assert len(first) + len(rest) == 2
        with pytest.raises(ProviderReplyBroken):
            await anext(events)
    else:
        assert rest[-1].data == b"[DONE]"
        assert [batch async for batch in events] == []
    await reply.aclose()
