"""Calls that another thread makes in the event loop's thread.

`call_soon_threadsafe` of uvloop wakes the loop with the interpreter's lock in hand. The loop finds it taken and sleeps
again, and when it is let go the system wakes it on another processor, where nothing of it is cached. Here the lock is
let go before the loop is woken, as asyncio's own loop does it. (What the writer is asked seldom, `Driver.call`, does
without: its answer may come when nothing is listening here any more.)
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

_MANY = 4096  # bytes, of which each call leaves one


class LoopCalls:
    """Performs in the loop's thread, in their order, what another thread asks for. All else belongs to the loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], object]] = deque()
        self._wakee, self._waker = socket.socketpair()
        self._wakee.setblocking(False)
        self._waker.setblocking(False)
        self._loop.add_reader(self._wakee, self._perform)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Has a function called soon, from whatever thread. Once this is closed nothing is called any more."""
        self._calls.append(partial(function, *arguments))
        with suppress(OSError):  # it is closed; or full, and then the loop has enough to be woken by
            self._waker.send(b"\0")

    def close(self) -> None:
        self._loop.remove_reader(self._wakee)
        self._wakee.close()
        self._waker.close()

    def _perform(self) -> None:
        self._wakee.recv(_MANY)
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception as error:  # none of the later calls
                self._loop.call_exception_handler({"message": f"{call} failed", "exception": error})
