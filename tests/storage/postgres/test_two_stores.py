"""Two processes over one database: what would go wrong between them if an agent's row were no lock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from storage.batch_records import ItemEnd
from storage.errors import NotFound, StaleWrite
from storage.forget_commands import ForgetTarget
from storage.records import Agent, Scope
from storage.run_records import RunState
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S
from tests.postgres import query
from tests.storage.api import make_agent
from tests.storage.conftest import OpenStore, PostgresServer
from tests.storage.test_batches import accepted
from tests.storage.test_files import draft, folder
from tests.storage.test_named_blocks import make_block
from tests.stored import ALICE, Clock, Speaker, rows, save_passage


@pytest.fixture
async def stores(open_store: OpenStore) -> list[Store]:
    return [await open_store() for _ in range(2)]


async def test_two_turns_with_the_same_plan_are_both_stored(stores: list[Store]) -> None:
    clock = Clock()
    here, there = (Speaker(store, ALICE, clock) for store in stores)
    await here.say([user("one")], assistant("First."), "c1")
    history = [user("one"), assistant("First.")]
    turns = [await each.begin([*history, user(f"two {n}")], "c1") for n, each in enumerate((here, there))]
    assert all(turn.is_plain for turn in turns)
    ends = await asyncio.gather(
        *(each.end(turn, [assistant("Yes.")]) for each, turn in zip((here, there), turns, strict=True))
    )
    assert sorted(end.is_plain for end in ends) == [False, True]
    found = await here.rows()
    assert [e.parent for e in found] == [None, found[0].id, found[0].id]
    assert [e.seq for e in found] == [1, 3, 5]


async def test_a_process_does_not_write_what_another_has_forgotten(stores: list[Store]) -> None:
    clock = Clock()
    here, there = (Speaker(store, ALICE, clock) for store in stores)
    await here.say([user("my secret")], assistant("Noted."), "c1")
    turn = await there.begin([user("my secret"), assistant("Noted."), user("go on")], "c1")
    (e,) = await here.rows()
    forgetting = stores[0].forgetting
    await forgetting.run(await forgetting.begin(here.agent.id, ForgetTarget(exchange_rows=[e.id])))
    with pytest.raises(StaleWrite):
        await there.end(turn, [assistant("Yes.")])


async def test_hammered_from_two_sides_the_order_has_no_gap_and_no_overlap(stores: list[Store]) -> None:
    """Plain and weighed turns, passages and forgetting of three people, all at once."""
    chance = random.Random(7)
    scopes = [ALICE._replace(subject=f"user:{n}") for n in range(3)]
    refused, clock = 0, Clock()

    async def talk(store: Store, scope: Scope, number: int) -> None:
        nonlocal refused
        speaker = Speaker(store, scope, clock)
        key = f"c{number % 2}"
        history = []
        for n in range(12):
            history.append(user(f"{scope.subject} {number} {n}"))
            try:
                await speaker.say(history, assistant(f"Reply {number} {n}."), key)
            except StaleWrite:
                refused += 1
                store.agents.uncache(scope)
                history.pop()
                continue
            history.append(assistant(f"Reply {number} {n}."))
            if chance.random() < 0.3:
                agent = await store.agents.find(scope)
                assert agent is not None
                await save_passage(store, agent.id, f"passage {number} {n}", at=1.0)
            if chance.random() < 0.05:
                agent = await store.agents.find(scope)
                assert agent is not None
                exchanges = await speaker.rows()
                target = ForgetTarget(exchange_rows=[exchanges[-1].id])
                await store.forgetting.run(await store.forgetting.begin(agent.id, target))

    for scope in scopes:
        await Speaker(stores[0], scope, clock).say([user("Hi")], assistant("Hello!"), "begin")
    await asyncio.gather(
        *(
            talk(store, scope, 10 * n + m)
            for n, store in enumerate(stores)
            for scope in scopes
            for m in range(3)
        )
    )
    for scope in scopes:
        agent = await stores[0].agents.find(scope)
        assert agent is not None
        taken = [
            n
            for seq, span in await rows(
                stores[0], "SELECT seq, span FROM exchanges WHERE agent = ?", (agent.id,)
            )
            for n in range(seq, seq + span)
        ]
        taken += [
            n for (n,) in await rows(stores[0], "SELECT seq FROM passages WHERE agent = ?", (agent.id,))
        ]
        ((next_seq,),) = await rows(stores[0], "SELECT next_seq FROM agents WHERE id = ?", (agent.id,))
        assert len(set(taken)) == len(taken)
        assert max(taken) < next_seq
        ids = "SELECT seq FROM exchanges WHERE agent = ? ORDER BY id"
        order = [n for (n,) in await rows(stores[0], ids, (agent.id,))]
        assert order == sorted(order)
    assert refused < 200


@pytest.mark.usefixtures("own_sessions")
@pytest.mark.parametrize("pooled", [False, True])
async def test_a_stricter_level_that_the_server_sets_loses_no_turn(
    open_store: OpenStore, database: PostgresServer, pooled: bool
) -> None:
    admin = await asyncpg.connect(database.url)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    try:
        stores = [await open_store(is_pooled=pooled) for _ in range(2)]
        await Speaker(stores[0], ALICE).say([user("Hi")], assistant("Hello!"))
        people = [Speaker(store, ALICE) for store in stores for _ in range(8)]
        turns = [await each.begin([user(f"{n}")], f"c{n}") for n, each in enumerate(people)]
        await asyncio.gather(
            *(each.end(turn, [assistant("Yes.")]) for each, turn in zip(people, turns, strict=True))
        )
        assert len(await people[0].rows()) == 1 + len(people)
    finally:
        await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
        await admin.close()


async def test_a_folder_that_goes_meanwhile_gets_no_file_any_more(
    stores: list[Store], database: PostgresServer
) -> None:
    here, there = stores
    notes = await folder(here)
    begun = await here.files.add(draft(notes, "begun"))
    coming = (
        lambda: there.files.add(draft(notes, "zqnamex")),
        lambda: there.files.add_parts(begun, ["zqpartx"]),
    )
    ends = await beside_its_end(database, notes, *coming)
    assert [type(each) for each in ends] == [NotFound, NotFound]
    assert await rows(here, "SELECT count(*) FROM files") == [(0,)]


async def test_nothing_is_said_any_more_of_a_conversation_that_goes_meanwhile(
    stores: list[Store], database: PostgresServer
) -> None:
    here, there = stores
    alice = Speaker(here, ALICE)
    await alice.say([user("Hi")], assistant("Hello!"), "c1")
    ((uid,),) = await rows(here, "SELECT uid FROM conversations")
    begun = await here.conversations.get("default", uid)
    (end,) = await beside_its_end(
        database, alice.agent, lambda: there.conversations.change(begun, {"summary": "zqsaidx"}, at=2.0)
    )
    assert type(end) is NotFound
    assert b"zqsaidx" not in database.content()


async def test_results_of_a_batch_wait_for_an_agent_without_holding_another(
    stores: list[Store], database: PostgresServer
) -> None:
    """A turn of the second agent may share a block with the first one, and would wait for it: a deadlock."""
    items = stores[0].batch_items
    batch = await accepted(stores[0], 2, is_started=True)
    first, second = await items.list_page(batch.id)
    assert first.run is not None
    assert second.run is not None
    writes = [ItemEnd(each, RunState.FAILED, "error", 20.0) for each in (second, first)]
    async with locked_agent(database, first.run.agent_row) as transaction:
        written = asyncio.ensure_future(
            stores[0].database.bulk_write(items.make_write_effect("default", 0, writes))
        )
        await until_waiting(database, 1, written)
        await transaction.execute(f"SELECT FROM agents WHERE id = {second.run.agent_row} FOR UPDATE NOWAIT")
    await written
    assert (await items.count(batch.id)).failed == 2


async def test_a_block_write_by_code_waits_for_one_agent_and_locks_no_other(
    stores: list[Store], database: PostgresServer
) -> None:
    """A turn of the other agent that sees the block locks both, the first one first."""
    here = stores[0]
    ann, bob = await make_agent(here, "ann"), await make_agent(here, "bob")
    uid = await make_block(here)
    for each in (ann, bob):
        await here.named_blocks.attach(each.agent, uid)
    block = (await here.named_blocks.get_labelled(bob.agent.id, "house")).block
    by = await here.agents.find_by_id(bob.agent.id)
    async with locked_agent(database, ann.agent.id) as transaction:
        written = here.blocks.write(block.id, block.version, "Be kind.", at=2.0, origin="tool:1", by=by)
        await until_waiting(database, 1, written)
        await transaction.execute(f"SELECT FROM agents WHERE id = {bob.agent.id} FOR UPDATE NOWAIT")
    assert (await written).value == "Be kind."


async def test_an_item_whose_first_reply_is_being_written_is_left_to_the_job(
    stores: list[Store], database: PostgresServer
) -> None:
    """The job stores the end of the round: an edit that the round made in a block is forgotten with it."""
    batches, items = stores[0].batches, stores[0].batch_items
    batch = await accepted(stores[0], 2, is_started=True)
    first, _ = await items.list_page(batch.id)
    assert first.run is not None
    agent, run = first.run.agent_row, first.run.id
    async with locked_agent(database, agent) as transaction:
        cancelled = asyncio.ensure_future(batches.cancel(batch, 20.0))
        await until_waiting(database, 1, cancelled)
        values = f"({agent}, {run}, 0, 'round', '{{}}')"
        await transaction.execute(f"INSERT INTO run_texts (agent, run, seq, kind, data) VALUES {values}")
    await cancelled
    assert (await items.count(batch.id)).cancelled == 1
    assert len(await items.load_texts(agent, run, "round")) == 1


@asynccontextmanager
async def locked_agent(database: PostgresServer, agent_row: int) -> AsyncIterator[asyncpg.Connection]:
    """Gives another process's transaction that has locked an agent's row. It is committed at the end."""
    connection = await asyncpg.connect(database.url)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT FROM agents WHERE id = {agent_row} FOR UPDATE")
            yield connection
    finally:
        await connection.close()


async def until_waiting(database: PostgresServer, count: int, writes: asyncio.Future[Any]) -> None:
    """Waits until so many transactions wait for a lock, or the writes have ended."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(PATIENCE_S):
        while not writes.done() and query(database.url, waiting) != [(count,)]:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def beside_its_end(
    database: PostgresServer, memory: Agent, *coming: Callable[[], Awaitable[object]]
) -> list[object]:
    """Does something in the middle of the transaction in which another process begins to forget a memory."""
    async with locked_agent(database, memory.id) as transaction:
        ends = asyncio.gather(*(each() for each in coming), return_exceptions=True)
        await until_waiting(database, len(coming), ends)
        gone = ("files WHERE memory", "definitions WHERE memory", "agents WHERE id")
        await transaction.execute("; ".join(f"DELETE FROM {each} = {memory.id}" for each in gone))
    return list(await ends)
