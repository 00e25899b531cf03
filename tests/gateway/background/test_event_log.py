"""The events of a run in the background, while the store takes none."""

from __future__ import annotations

from pathlib import Path

from gateway.run.event_log import BATCH_BYTES, EventLog
from storage.records import Run, RunState
from tests.stored import open_store


class Whole:
    """A dialect whose pieces are events."""

    def number_events(self, data: bytes, first: int) -> list[bytes]:
        return [data]


async def test_events_that_the_store_refuses_reach_who_reads_now(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "memory.db")
    await store.close()
    log = EventLog(store, Run(1, "run", 1, 1, RunState.RUNNING, 0.0), 0, Whole())
    events = [b"short", b"x" * BATCH_BYTES, b"last"]
    for event in events:
        await log.write(event)
    await log.close()
    assert [event async for event in log.after(0)] == events
