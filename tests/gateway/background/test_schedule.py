"""When a memory is due that several processes serve, and what one finds that others have left."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import pytest

from gateway.run.background.schedule import Schedule
from storage.job_records import JobState
from storage.records import Scope
from storage.sql.agents import find_or_create_agent
from storage.sql.jobs import Jobs
from tests.core.conversations import assistant, user
from tests.gateway.background.test_model import DAY
from tests.gateway.sdk import Clock
from tests.stored import ALICE, Speaker, open_store


async def nothing(limit: int) -> list[int]:
    """Has nothing to find."""
    return []


@pytest.mark.parametrize("leaves_out_last", [False, True])
async def test_two_processes_make_a_memory_due_as_often_as_one(tmp_path: Path, leaves_out_last: bool) -> None:
    store = await open_store(tmp_path / "memory.db")
    try:
        draft = store.agents.get_draft(ALICE)
        agent = await store.database.write(lambda connection: find_or_create_agent(connection, draft))

        def schedule() -> Schedule:
            return Schedule(
                "t", "learn", store.jobs, nothing, 10, DAY, lambda: 1.0, leaves_out_last=leaves_out_last
            )

        def due_after(processes: list[Schedule], numbers: bool) -> list[int]:
            found = []
            for turn in range(30):
                process = processes[turn % len(processes)]
                process.add(agent.id, 2, seq=2 * turn if numbers else None)
                if process._due_rows:
                    process._due_rows.clear()
                    found.append(turn)
            return found

        assert due_after([schedule(), schedule()], True) == due_after([schedule()], True)
        assert len(due_after([schedule()], True)) == 5 + (not leaves_out_last)
        late = due_after([schedule(), schedule()], False)
        assert late[0] > due_after([schedule()], True)[0], "each counts its own alone"
    finally:
        await store.close()


async def test_a_large_turn_before_a_small_one_makes_a_memory_due(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "memory.db")
    try:
        schedule = Schedule("t", "learn", store.jobs, nothing, 20, DAY, lambda: 1.0, leaves_out_last=True)
        schedule.add(1, 10, seq=15)
        assert not schedule._due_rows, "it does not count yet"
        schedule.add(1, 2, seq=25)
        assert schedule._due_rows
    finally:
        await store.close()


@pytest.mark.both
async def test_each_recovery_finds_what_processes_that_ended_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.run.background.schedule._MAX_MEMORIES_AT_ONCE", 2)
    clock = Clock()
    store = await open_store(tmp_path / "memory.db", now=clock)
    try:
        people = [Speaker(store, Scope("default", "default", f"user:{name}"), clock) for name in "abc"]
        for person in people:
            await person.say([user("Hello.")], assistant("Hello."))
        left = [person.agent.id for person in people]

        async def find(limit: int) -> list[int]:
            return left[:limit]

        schedule = Schedule("t", "learn", store.jobs, find, 20, DAY, clock)

        async def enqueued() -> list[int]:
            await schedule.perform_due()
            return sorted(job.agent_row for job in await store.jobs.list_newest(JobState.PENDING))

        async def end(*, is_well: bool = True) -> None:
            while job := await store.jobs.leases.claim(("learn",), lease_s=30.0, tries=8):
                await (store.jobs.finish(job) if is_well else store.jobs.fail(job, "no", None))

        await schedule.recover()
        assert await enqueued() == [], "their turns may go on"
        clock.sleep(DAY + 1)
        assert await enqueued() == left[:2]
        await end()
        del left[:2]
        await people[2].say([user("And now?")], assistant("Well."))
        await schedule.recover()
        assert await enqueued() == [], "another process may have its turns, and counts them"
        clock.sleep(DAY + 1)
        await schedule.recover()
        assert await enqueued() == left
        await end(is_well=False)
        await schedule.recover()
        assert await enqueued() == [], "it has failed for good"
        schedule = Schedule("t", "learn", store.jobs, find, 20, DAY, clock)
        await schedule.recover()
        clock.sleep(DAY + 1)
        assert await enqueued() == left, "the next process tries it again"
    finally:
        await store.close()


async def test_memories_that_rest_are_enqueued_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.run.background.schedule._MAX_JOBS_AT_ONCE", 2)
    clock = Clock()
    store = await open_store(tmp_path / "memory.db", now=clock)
    try:
        drafts = [store.agents.get_draft(Scope("default", "default", f"user:{name}")) for name in "abc"]
        agents = [await store.database.write(partial(find_or_create_agent, draft=draft)) for draft in drafts]
        schedule = Schedule("t", "learn", store.jobs, nothing, 20, DAY, clock)
        schedule.enqueue_when_idle(agent.id for agent in agents)
        assert await schedule.perform_due() == pytest.approx(DAY, abs=1.0)
        clock.sleep(DAY)
        for count in (2, 3):
            pause_s = await schedule.perform_due()
            assert len(await store.jobs.list_newest()) == count
        assert pause_s is None
    finally:
        await store.close()


async def test_a_turn_that_makes_a_memory_due_while_its_job_is_enqueued_is_not_left_out() -> None:
    """The job may not read it, and it would wait until the memory is idle."""
    enqueued: list[int] = []

    class SlowJobs:
        async def enqueue(self, kind: str, agent_row: int, key: str) -> None:
            enqueued.append(agent_row)
            if len(enqueued) == 1:
                schedule.add(agent_row, 10)

    schedule = Schedule("t", "learn", cast(Jobs, SlowJobs()), nothing, 10, DAY, lambda: 1.0)
    schedule.add(1, 10)
    await schedule.perform_due()
    assert enqueued == [1, 1]
