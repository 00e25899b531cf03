"""Bounds each wait within a reply, and the time of the whole reply."""

from __future__ import annotations

import asyncio
import math
from typing import Final

import aiohttp

from adapters.errors import ProviderTimeout
from adapters.timeouts import Timeouts

# The time between checks whether aiohttp has closed the connection without an error, as after a body that is no HTTP.
_CHECK_INTERVAL_S: Final = 1.0


class ReplyWait:
    """The waits for one reply's bytes. Times are those of the loop's clock."""

    __slots__ = ("_ends_at", "_loop", "_response", "_timeouts", "_timer", "_waits_since")

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        timeouts: Timeouts,
        sent_at: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Makes the waits of a reply. sent_at: the time at which the request was sent."""
        self._response = response
        self._timeouts = timeouts
        self._loop = loop
        # The time at which the whole reply has taken too long.
        self._ends_at = math.inf if timeouts.total_s is None else sent_at + timeouts.total_s
        # The time at which the present wait began; None: nothing is waited for.
        self._waits_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begins a wait, which gets an exception when it is late.

        One timer checks the waits of a reply now and then; a timer for each would slow each event.
        """
        now = self._waits_since = self._loop.time()
        if self._timer is None:
            late_at = min(now + self._timeouts.between_chunks_s, self._ends_at)
            self._timer = self._loop.call_at(min(late_at, now + _CHECK_INTERVAL_S), self._check)

    def end(self) -> None:
        """Ends a wait."""
        self._waits_since = None

    def make_timeout_error(self) -> ProviderTimeout:
        """Returns the error of a wait that took too long."""
        timeouts = self._timeouts
        if self._loop.time() >= self._ends_at:
            return ProviderTimeout(
                f"the upstream's reply took longer than {timeouts.total_s} s", phase="total"
            )
        return ProviderTimeout(
            f"the upstream was silent for {timeouts.between_chunks_s} s within its reply",
            phase="between chunks",
        )

    def _check(self) -> None:
        self._timer = None
        if self._waits_since is None:
            return
        content = self._response.content
        connection = self._response.connection
        now = self._loop.time()
        late_at = min(self._waits_since + self._timeouts.between_chunks_s, self._ends_at)
        if now >= late_at:
            content.set_exception(aiohttp.SocketTimeoutError("silence within a reply"))
        elif connection is not None and connection.closed:
            content.set_exception(aiohttp.ClientPayloadError("no HTTP within a body"))
        else:
            self._timer = self._loop.call_at(min(late_at, now + _CHECK_INTERVAL_S), self._check)
