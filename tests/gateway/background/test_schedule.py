"""When a memory is due that several processes serve: whenever so many numbers were taken, by whichever of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.run.background.schedule import Schedule
from storage.sql.agents import create_agent
from tests.gateway.background.test_model import DAY
from tests.stored import ALICE, open_store


async def nothing() -> None:
    """Has nothing to find."""


@pytest.mark.parametrize("leaves_out_last", [False, True])
async def test_two_processes_make_a_memory_due_as_often_as_one(tmp_path: Path, leaves_out_last: bool) -> None:
    store = await open_store(tmp_path / "memory.db")
    try:
        draft = store.agents.draft(ALICE)
        agent = await store.database.write(lambda connection: create_agent(connection, draft))

        def schedule() -> Schedule:
            return Schedule(
                "t", "learn", store.jobs, nothing, 10, DAY, lambda: 1.0, leaves_out_last=leaves_out_last
            )

        def due_after(processes: list[Schedule], numbers: bool) -> list[int]:
            found = []
            for turn in range(30):
                process = processes[turn % len(processes)]
                process.add(agent.id, 2, seq=2 * turn if numbers else None)
                if process._due:
                    process._due.clear()
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
        assert not schedule._due, "it does not count yet"
        schedule.add(1, 2, seq=25)
        assert schedule._due
    finally:
        await store.close()
