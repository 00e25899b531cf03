"""Throttles an import, so that the requests of the same process get the processor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

from msgspec import Struct

_ResultT = TypeVar("_ResultT")

# The pause of an import after a step in an idle gateway, as a multiple of the step's time.
_IDLE_PAUSE_FACTOR: Final = 3
# The same in a busy gateway.
_BUSY_PAUSE_FACTOR: Final = 4
# The same after a page of the survey in a busy gateway. The client waits for the survey, so this is less.
_SURVEY_PAUSE_FACTOR: Final = 1
# The seconds of the pause after a message was indexed, which takes 0.3 ms, in a busy gateway.
_INDEX_PAUSE_S: Final = 0.001


class ImportThrottle(Struct, frozen=True):
    """Pauses an import between its steps. A pause that only a busy gateway needs ends when the last request ends."""

    # Set while no request is being answered; None: the process serves none, so that imports need no pauses.
    idle: asyncio.Event | None = None

    async def pause_after_page(self, page_s: float) -> None:
        """Pauses the survey while a request is being answered. page_s: the seconds that the page took."""
        if self.idle is not None:
            await self._wait_idle(_SURVEY_PAUSE_FACTOR * page_s)

    async def pause_between_messages(self) -> None:
        """Lets other tasks run between two messages that are indexed; for longer while a request is answered."""
        if self.idle is None or self.idle.is_set():
            await asyncio.sleep(0)
        else:
            await self._wait_idle(_INDEX_PAUSE_S)

    async def run_step(self, step: Awaitable[_ResultT]) -> _ResultT:
        """Returns the result of a step of an import, after a pause that is longer than the step took.

        The pause is longest while a request is being answered.
        """
        begun = time.monotonic()
        result = await step
        if self.idle is not None:
            step_s = time.monotonic() - begun
            await asyncio.sleep(_IDLE_PAUSE_FACTOR * step_s)
            await self._wait_idle((_BUSY_PAUSE_FACTOR - _IDLE_PAUSE_FACTOR) * step_s)
        return result

    async def _wait_idle(self, max_s: float) -> None:
        """Waits until no request is being answered, for at most this time."""
        assert self.idle is not None  # each caller has checked it
        with suppress(TimeoutError):
            async with asyncio.timeout(max_s):
                await self.idle.wait()
