"""Batches as they are stored."""

from __future__ import annotations

import orjson
import pytest

from storage.batch_records import (
    SOURCES_ROOM,
    AssignedItem,
    Batch,
    BatchCounts,
    BatchItem,
    BatchState,
    ItemDraft,
    compute_item_state,
)
from storage.errors import NotFound
from storage.listing import Page
from storage.records import Scope
from storage.row_bytes import count_number_bytes
from storage.run_records import Run, RunState
from storage.sql.agents import find_or_create_agent
from storage.sql.agents_api.item_writes import _make_padded_sources
from storage.sql.store import Store
from tests.storage.conftest import OpenStore
from tests.stored import keeps_emptied_rows, start_run


async def accepted(store: Store, items: int, *, is_started: bool) -> Batch:
    """Returns a batch over so many new agents."""
    batch = await store.batches.begin(Batch(0, "b" * 32, "default", BatchState.CREATED, 10.0))
    drafts = []
    for n in range(items):
        draft = store.agents.get_draft(Scope("default", "@", f"agent:{n}"))
        agent = await store.database.write(lambda c, draft=draft: find_or_create_agent(c, draft))
        run = Run(0, f"{n:032x}", agent.id, 0, RunState.CREATED, 10.0, background=True)
        drafts.append(ItemDraft(run, b'{"n":1}', f"{n + 100:032x}"))
    await store.batch_items.add(batch.id, drafts)
    if is_started:
        await store.batches.start(batch)
    return batch


async def test_the_counts_add_up(store: Store) -> None:
    batch = await accepted(store, 5, is_started=True)
    items = await store.batch_items.list_page(batch.id)
    assert [item.state for item in items] == ["waiting"] * 5
    runs = [item.run for item in items]
    ends = [(RunState.COMPLETED, "end_turn"), (RunState.FAILED, "error"), (RunState.FAILED, "expired")]
    for run, (state, stop) in zip(runs, ends, strict=False):
        assert run is not None
        await store.runs.end_run(run.agent_row, run.id, state, stop, 11.0)
    assert runs[3] is not None
    await start_run(store, runs[3].agent_row, runs[3].id, 11.0)
    counts = await store.batch_items.count(batch.id)
    assert counts == BatchCounts(1, 1, 1, 1, 1, 0)
    assert counts.total == 5
    # An item whose agent is gone has failed.
    assert compute_item_state(None, None) == "failed"
    assert BatchItem(1, None, "", "", 0, 0, 0, 0, None, None).state == "failed"


async def test_a_batch_that_was_not_accepted_whole_fails(open_store: OpenStore) -> None:
    store = await open_store()
    half = await accepted(store, 3, is_started=False)
    # It is being accepted, in another process or, whatever the clock shows, in this one.
    assert await store.batches.fail_half_accepted(10.0 if store.database.is_shared else 15.0, 20.0) == 0
    await store.close()
    store = await open_store()
    # A file has no other process: its clock may have been put back.
    assert await store.batches.fail_half_accepted(15.0 if store.database.is_shared else 5.0, 20.0) == 1
    found = await store.batches.get("default", half.uid)
    assert (found.state, found.ended) == (BatchState.FAILED, 20.0)
    assert (await store.batch_items.count(half.id)).failed == 3
    item = (await store.batch_items.list_page(half.id))[0]
    assert item.run is not None
    assert await store.batch_items.load_texts(item.run.agent_row, item.run.id, "request") == {}
    assert await keeps_emptied_rows(store) is not store.database.is_shared


async def test_a_batch_with_a_job_goes_on(store: Store) -> None:
    await accepted(store, 1, is_started=True)
    assert await store.batches.fail_half_accepted(15.0, 20.0) == 0
    (job,) = await store.jobs.list_newest()
    assert (job.kind, job.agent_row, job.key) == ("batch", 0, "b" * 32)


async def test_a_cancelled_batch_has_no_open_items(store: Store) -> None:
    batch = await accepted(store, 3, is_started=True)
    found = await store.batches.cancel(batch, 20.0)
    assert found.state is BatchState.CANCELLED
    assert (await store.batch_items.count(batch.id)).cancelled == 3
    assert not await store.batch_items.has_open(batch.id)
    states, counts = await store.batches.count_open()
    assert states[BatchState.CANCELLED] == 1
    assert counts.total == 0


@pytest.mark.parametrize("has_job", [True, False])
async def test_the_job_if_there_is_one_ends_items_that_have_a_reply(has_job: bool, store: Store) -> None:
    batch = await accepted(store, 3, is_started=True)
    [item] = await store.batch_items.list_page(batch.id, limit=1)
    run = item.run
    assert run is not None
    await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "round", 1, b"{}")
    if not has_job:
        # An operator has taken it away.
        [job] = await store.jobs.list_newest()
        await store.jobs.cancel(job.id)
    await store.batches.cancel(batch, 20.0)
    assert (await store.batch_items.count(batch.id)).cancelled == (2 if has_job else 3)


async def test_the_result_of_an_items_call_is_written_once(store: Store) -> None:
    """Under the lock of its agent, which the double of PostgreSQL's connections looks for."""
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batch_items.list_page(batch.id)
    run = item.run
    assert run is not None
    assert await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "result", 1, b"{}")
    assert not await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "result", 1, b"[]")


@pytest.mark.parametrize("had_reply", [True, False])
async def test_no_call_of_an_item_is_written_once_its_batch_is_cancelled(
    had_reply: bool, store: Store
) -> None:
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batch_items.list_page(batch.id)
    run = item.run
    assert run is not None
    if had_reply:  # the job ends it, later
        await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "round", 1, b"{}")
    await store.batches.cancel(batch, 20.0)
    assert not await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "call", 1, b"{}")


async def test_no_call_of_an_item_is_written_once_its_memory_has_another_epoch(store: Store) -> None:
    batch = await accepted(store, 1, is_started=True)
    [item] = await store.batch_items.list_page(batch.id)
    run = item.run
    assert run is not None
    agent = await store.agents.find_by_id(run.agent_row)
    assert agent is not None
    given = [AssignedItem(run.agent_row, item.id, 0, agent.epoch, b"{}")]
    await store.database.bulk_write(store.batch_items.make_assign_effect(1, given, 20.0))
    assert await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "call", 1, b"{}")
    await store.forgetting.pause(run.agent_row, 21.0)
    assert not await store.batch_items.add_text_of_open_item(run.agent_row, run.id, "call", 2, b"{}")


async def test_items_that_are_put_into_a_part(store: Store) -> None:
    """Under the locks of their agents, as what a call did."""
    batch = await accepted(store, 3, is_started=True)
    items = await store.batch_items.list_page(batch.id)
    runs = [item.run for item in items if item.run is not None]
    gone = await store.agents.find_by_id(runs[0].agent_row)
    assert gone is not None
    await store.forgetting.wipe(gone.id)
    given = [AssignedItem(run.agent_row, item.id, 0, 0, b"{}") for run, item in zip(runs, items, strict=True)]
    await store.database.bulk_write(store.batch_items.make_assign_effect(1, given, 20.0))
    assert [item.run.uid for item in await store.batch_items.list_page(batch.id, part=1) if item.run] == [
        run.uid for run in runs[1:]
    ]


async def test_another_project_has_no_such_batch(store: Store) -> None:
    batch = await accepted(store, 1, is_started=True)
    with pytest.raises(NotFound):
        await store.batches.get("other", batch.uid)
    assert await store.batches.list_page("other", Page()) == []
    assert [each.uid for each in await store.batches.list_page(None, Page())] == [batch.uid]


def test_where_a_value_came_from_takes_the_same_room_before_and_after() -> None:
    for exchange in (1, 127, 128, 32_767, 40_000, 1 << 23, 1 << 31, 1 << 40):
        listed = _make_padded_sources(exchange)
        assert orjson.loads(listed) == [exchange]
        assert len(listed) + count_number_bytes(exchange) == SOURCES_ROOM
