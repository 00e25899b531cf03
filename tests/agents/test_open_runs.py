"""The phases of a background run in its process, and the tickets of its conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from msgspec.structs import replace

from gateway.agents.runs.background import run_ends
from gateway.agents.runs.background.open_runs import OpenRuns, RunPhase
from gateway.run.memory.leases import Leases
from gateway.run.memory.queue import Queues, QueueTicket
from storage.run_records import Run, RunState
from tests.patience import PATIENCE_S
from tests.stored import open_store

CONVERSATION = ("agent", "default")


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[Queues]:
    store = await open_store(tmp_path / "memory.db")
    yield Queues(Leases(store.conversation_locks))
    await store.close()


async def is_free(queues: Queues) -> bool:
    with QueueTicket() as ticket:
        return await queues.try_enter(CONVERSATION, ticket)


async def becomes_free(queues: Queues) -> None:
    """Waits for the release of the conversation, which may have to be written."""
    async with asyncio.timeout(PATIENCE_S):
        with QueueTicket() as ticket:
            await queues.enter(CONVERSATION, ticket)


async def test_the_first_job_takes_the_first_ticket_whichever_run_it_is(queues: Queues) -> None:
    runs = OpenRuns(queues)
    runs.add("one", CONVERSATION)
    two = runs.add("two", CONVERSATION)
    await asyncio.sleep(0)
    reserved = runs.begin(two)
    assert await runs.wait(two, reserved) is not None
    assert two.phase is RunPhase.PERFORMED
    runs.close(two)
    assert two.end_event.is_set()
    assert not await is_free(queues)
    reserved.drop()


async def test_closing_a_waiting_run_twice_gives_up_one_ticket(queues: Queues) -> None:
    runs = OpenRuns(queues)
    one, two = runs.add("one", CONVERSATION), runs.add("two", CONVERSATION)
    await asyncio.sleep(0)
    runs.close(one)
    runs.close(one)
    await asyncio.sleep(0)
    assert not await is_free(queues)
    runs.close(two)
    await asyncio.sleep(0)
    assert await is_free(queues)
    assert not len(runs)


async def test_closing_a_run_that_has_no_ticket_leaves_that_of_another(queues: Queues) -> None:
    """A run that another process accepted has taken the first ticket."""
    runs = OpenRuns(queues)
    one, two = runs.add("one", CONVERSATION), runs.add("two", CONVERSATION)
    remote = runs.add("remote", CONVERSATION, phase=RunPhase.PERFORMED)
    first = runs.begin(remote)
    await runs.wait(remote, first)
    runs.close(one)
    async with asyncio.timeout(PATIENCE_S):
        with QueueTicket() as late:
            entering = asyncio.ensure_future(queues.enter(CONVERSATION, late))
            await asyncio.sleep(0)
            second = runs.begin(two)
            first.drop()
            assert await runs.wait(two, second) is not None
            assert not entering.done()
            second.drop()
            await entering


async def test_a_run_ended_while_it_is_performed_leaves_the_other_tickets(queues: Queues) -> None:
    runs = OpenRuns(queues)
    one, two = runs.add("one", CONVERSATION), runs.add("two", CONVERSATION)
    reserved = runs.begin(one)
    await runs.wait(one, reserved)
    runs.close(one)
    runs.put_back(one, reserved)  # its job failed afterwards
    runs.stop(one)
    assert one.phase is RunPhase.ENDED
    second = runs.begin(two)
    await runs.wait(two, second)
    assert not await is_free(queues)
    second.drop()
    await becomes_free(queues)


async def test_a_run_whose_job_has_failed_holds_no_ticket_of_another(queues: Queues) -> None:
    runs = OpenRuns(queues)
    one = runs.add("one", CONVERSATION)
    failed = runs.begin(one)
    await runs.wait(one, failed)
    failed.drop()
    runs.stop(one)
    two = runs.add("two", CONVERSATION)
    await asyncio.sleep(0)
    runs.close(two)
    await becomes_free(queues)
    again = runs.begin(one)  # its job is tried again
    assert await runs.wait(one, again) is not None
    again.drop()
    await becomes_free(queues)


async def test_a_run_that_loses_its_ticket_gets_one_before_later_requests(queues: Queues) -> None:
    """A run that another process accepted takes the first ticket."""
    runs = OpenRuns(queues)
    one = runs.add("one", CONVERSATION)
    remote = runs.add("remote", CONVERSATION, phase=RunPhase.PERFORMED)
    first = runs.begin(remote)
    await runs.wait(remote, first)
    async with asyncio.timeout(PATIENCE_S):
        with QueueTicket() as late:
            entering = asyncio.ensure_future(queues.enter(CONVERSATION, late))
            await asyncio.sleep(0)
            second = runs.begin(one)
            first.drop()
            assert await runs.wait(one, second) is not None
            assert not entering.done()
            second.drop()
            await entering


async def test_a_run_that_is_closed_waits_no_longer_and_leaves_the_other_tickets(queues: Queues) -> None:
    runs = OpenRuns(queues)
    one, two = runs.add("one", CONVERSATION), runs.add("two", CONVERSATION)
    first, second = runs.begin(one), runs.begin(two)
    await runs.wait(one, first)
    waiting = asyncio.ensure_future(runs.wait(two, second))
    await asyncio.sleep(0)
    runs.close(two)
    assert await waiting is None
    second.drop()
    assert not await is_free(queues)
    first.drop()
    await becomes_free(queues)


async def test_a_job_that_begins_again_is_first_in_its_conversation(queues: Queues) -> None:
    runs = OpenRuns(queues)
    one = runs.add("one", CONVERSATION, phase=RunPhase.ACCEPTING)
    runs.add("two", CONVERSATION)
    reserved = runs.begin(one)
    runs.note_accepted(one)  # the job began before the write of its row returned
    assert one.phase is RunPhase.QUEUED
    await runs.wait(one, reserved)
    runs.put_back(one, reserved)
    runs.stop(one)
    assert one.phase is RunPhase.WAITING
    assert runs.begin(one) is reserved


async def test_an_end_is_read_by_those_alone_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_ends, "_READ_INTERVAL_S", PATIENCE_S)
    one, two = (Run(id, str(id), 1, 1, RunState.RUNNING, 0.0) for id in (1, 2))
    reads, over = list[int](), set[int]()

    async def load(agent_row: int, id: int) -> Run:
        reads.append(id)
        return replace(one if id == 1 else two, state=RunState.COMPLETED if id in over else RunState.RUNNING)

    store = MagicMock()  # `jobs.leases.mark_awaited` is a context
    store.runs.find_run = load
    made = run_ends.RunEnds(store)
    waiting = [asyncio.ensure_future(made.wait_for_end(run)) for run in (one, two)]
    await asyncio.sleep(0)
    assert reads == [1, 2]
    for run, task in zip((one, two), waiting, strict=True):
        over.add(run.id)
        made.notify(run)
        assert (await task).is_over
    assert reads == [1, 2, 1, 2]
