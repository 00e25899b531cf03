"""The events of runs that other processes perform, read from the store.

Where gateways share a database, any of them may perform a run, and the client may read it from any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gateway.agents.runs.background.run_dialect import RunDialect
from gateway.run.event_log import BATCH_S, load_events
from storage.run_records import Run
from storage.sql.store import Store

# The wait for more events after a run has ended, in seconds, if it has some events and if it has none. Not measured:
# an event is written within a fraction of a second, unless its process has died.
_WAIT_FOR_REST_S = 5.0
_WAIT_FOR_ANY_S = 0.5


async def read_remote_events(
    store: Store, dialect: RunDialect, run: Run, after: int
) -> AsyncIterator[tuple[int, bytes]]:
    """Yields the events of a run that any process performs, stored and to come, each with its number.

    If the process of the run has died, or the run is deleted, the last events may be missing.

    after: the number of the last event that the reader has; 0: the reader has none.

    Raises: StoreError.
    """
    clock = asyncio.get_running_loop().time
    over_since = 0.0
    event_count = 0
    while True:
        stored_run = await store.runs.find_run(run.agent_row, run.id)
        async for number, event in load_events(store, run, after):
            after, event_count = number, event_count + 1
            yield number, event
            if dialect.is_end(event):
                return
        if stored_run is None:
            return
        if stored_run.is_over:
            over_since = over_since or clock()
            if clock() >= over_since + (_WAIT_FOR_REST_S if event_count else _WAIT_FOR_ANY_S):
                return
        await asyncio.sleep(2 * BATCH_S)
