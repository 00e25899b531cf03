"""Calls from other threads into the event loop's thread.

uvloop's `call_soon_threadsafe` wakes the loop while it holds the interpreter's lock. The loop then has to wait for the
lock, and the system resumes it on another processor with cold caches. Here the lock is released before the loop is
woken, as in asyncio's own loop. (`Driver.call` is rare, and does not use this: its result may come after `close`.)
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

# The bytes that are read at a time. Each call sends one byte.
_READ_BYTES = 4096


class LoopCalls:
    """Performs the calls of other threads in the loop's thread, in order. They use `call`, and no other method."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], object]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._loop.add_reader(self._wake_receiver, self._perform_calls)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Schedules a call of a function, from any thread. Nothing is called after `close`."""
        self._calls.append(partial(function, *arguments))
        with suppress(OSError):  # the socket is closed; or full, and then the bytes in it wake the loop
            self._wake_sender.send(b"\0")

    def close(self) -> None:
        """Ends the calls. Calls that wait are dropped."""
        self._loop.remove_reader(self._wake_receiver)
        self._wake_receiver.close()
        self._wake_sender.close()

    def _perform_calls(self) -> None:
        self._wake_receiver.recv(_READ_BYTES)
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception as error:  # it must not keep the later calls from running
                self._loop.call_exception_handler({"message": f"{call} failed", "exception": error})
