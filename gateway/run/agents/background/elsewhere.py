"""Runs that other processes perform: their ends, and their events as they are written down.

Where gateways share a database, a run is performed by whichever claims its job, and read where its client comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from gateway.errors import Conflict
from gateway.run.agents.background.event_log import BATCH_S, ShowsRuns, stored
from storage.database import RUNS
from storage.records import Run
from storage.sql.store import Store

# How often somebody who waits looks at a run. Its end is told, so that is for what was not heard.
_LOOK_S = 1.0
# A run that has ended gets its last events soon, or whoever performed it is gone. Most without any have none.
_REST_S = 5.0
_NONE_S = 0.5


class Elsewhere:
    """The runs of all processes, as this one reads them."""

    def __init__(self, store: Store, shows: ShowsRuns) -> None:
        self._store = store
        self._shows = shows
        self._told = asyncio.Event()
        self._ended: list[Callable[[str, int], None]] = []
        self._missed: list[Callable[[], None]] = []
        store.database.hear(RUNS, self._heard)

    @property
    def is_there(self) -> bool:
        """There are other processes."""
        return self._store.database.is_shared

    def when_ended(self, ended: Callable[[str, int], None], missed: Callable[[], None]) -> None:
        """Has functions called when another process has ended a run, by its name and row, and when any may have."""
        self._ended.append(ended)
        self._missed.append(missed)

    def tell(self, run: Run) -> None:
        """Tells the others, and who waits here, that a run has ended."""
        self._store.database.tell(RUNS, f"{run.uid} {run.id}")
        self._wake()

    async def ended(self, run: Run) -> Run:
        """Waits for the end of a run. Returns it as it is then. Raises: StoreError."""
        while True:
            told = self._told
            now = await self._store.runs.load(run.agent, run.id)
            if now is None or now.is_over:
                return now or run
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await told.wait()

    async def events(self, run: Run, after: int) -> AsyncIterator[bytes]:
        """Yields the events of a run after a number, and those that follow, until its end or what is known of it.

        Raises: StoreError.
        """
        clock, over_at, seen = asyncio.get_running_loop().time, 0.0, 0
        while True:
            now = await self._store.runs.load(run.agent, run.id)
            async for number, event in stored(self._store, run, after):
                after, seen = number, seen + 1
                yield event
                if self._shows.is_end(event):
                    return
            if now is None:
                gone = self._shows.refused(run.uid, Conflict("The agent of this run is deleted."))
                for event in self._shows.numbered(gone, after + 1):
                    yield event
                return
            if now.is_over:
                over_at = over_at or clock()
                if clock() >= over_at + (_REST_S if seen else _NONE_S):
                    return
            await asyncio.sleep(2 * BATCH_S)

    def _heard(self, word: str | None) -> None:
        if word is None:
            for missed in self._missed:
                missed()
        else:
            uid, _, row = word.partition(" ")
            for ended in self._ended:
                ended(uid, int(row))
        self._wake()

    def _wake(self) -> None:
        self._told.set()
        self._told = asyncio.Event()
