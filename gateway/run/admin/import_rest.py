"""The rests of an import, in which turns have the processor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, TypeVar

from msgspec import Struct

_ResultT = TypeVar("_ResultT")

# The rest of an import after a step in an idle gateway, as a multiple of the step's time.
_LEAST_REST_FACTOR: Final = 3
# The same in a busy gateway.
_MOST_REST_FACTOR: Final = 4
# The same after a page of the survey in a busy gateway. The client waits for the survey, so this is less.
_SURVEY_REST_FACTOR: Final = 1
# The seconds that an import rests after it has indexed a message, which takes 0.3 ms, in a busy gateway.
_INDEX_REST_S: Final = 0.001


class ImportRest(Struct, frozen=True):
    """Rests between the steps of an import."""

    # Set while no request is being answered; None: the process serves none, so that imports need not rest.
    idle: asyncio.Event | None = None

    async def rest_after_page(self, page_s: float) -> None:
        """Rests while a request is being answered. page_s: the time that the page took."""
        if self.idle is not None:
            await self._wait_idle(_SURVEY_REST_FACTOR * page_s)

    async def give_way(self) -> None:
        """Leaves the loop to turns between two messages that are indexed; for longer while a request is answered."""
        if self.idle is None or self.idle.is_set():
            await asyncio.sleep(0)
        else:
            await self._wait_idle(_INDEX_REST_S)

    async def rest_after(self, work: Awaitable[_ResultT]) -> _ResultT:
        """Returns the result of a step of an import, after a rest that is longer than the step took.

        The rest is longest while a request is being answered.
        """
        begun = time.monotonic()
        result = await work
        if self.idle is not None:
            step_s = time.monotonic() - begun
            await asyncio.sleep(_LEAST_REST_FACTOR * step_s)
            await self._wait_idle((_MOST_REST_FACTOR - _LEAST_REST_FACTOR) * step_s)
        return result

    async def _wait_idle(self, most_s: float) -> None:
        # The callers have looked.
        assert self.idle is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self.idle.wait()
