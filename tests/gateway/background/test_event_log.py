"""The events of a run in the background, as its readers get them."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from msgspec.structs import replace

from gateway.run.event_log import BATCH_BYTES, EventLog
from storage.errors import StoreUnavailable
from storage.run_records import Run, RunState
from storage.sql.agents import find_or_create_agent
from tests.stored import ALICE, open_store

RUN = Run(1, "run", 1, 1, RunState.RUNNING, 0.0)


def refuse(*_: object, **__: object) -> NoReturn:
    raise StoreUnavailable("the disk is full")


class Whole:
    """A dialect whose pieces are events."""

    def number_events(self, data: bytes, first: int) -> list[bytes]:
        return [data]


async def test_events_that_the_store_refuses_reach_who_reads_now(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "memory.db")
    await store.close()
    log = EventLog(store, RUN, 0, Whole())
    events = [b"short", b"x" * BATCH_BYTES, b"last"]
    for event in events:
        await log.write(event)
    await log.close()
    assert [event async for event in log.read_after(0)] == events


async def test_events_around_those_that_the_store_refuses_reach_who_reads_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path / "memory.db")
    draft = store.agents.get_draft(ALICE)
    agent = await store.database.write(lambda connection: find_or_create_agent(connection, draft))
    log = EventLog(store, replace(RUN, agent_row=agent.id), agent.epoch, Whole())
    events = [b"%d" % n * BATCH_BYTES + b"\n\n" for n in range(3)]
    for n, event in enumerate(events):
        with monkeypatch.context() as patch:
            if n == 1:
                patch.setattr(store.run_texts, "add_events", refuse)
            await log.write(event)
        await log.flush()
    await log.close()
    assert [event async for event in log.read_after(0)] == events
    await store.close()


async def test_a_reader_misses_no_event_of_a_later_attempt_where_those_before_were_erased(
    tmp_path: Path,
) -> None:
    store = await open_store(tmp_path / "memory.db")
    number = 0
    for attempt in (2, 3):
        log = EventLog(store, RUN, 0, Whole())
        assert await log.resume(0, attempt) == []
        for n in range(attempt):
            log.add(b"%d-%d" % (attempt, n))
        await log.close()  # the agent is gone, so nothing is stored
        events = [event async for event in log.read_after(number)]
        assert events == [b"%d-%d" % (attempt, n) for n in range(attempt)]
        number = log.next_number - 1
    await store.close()
