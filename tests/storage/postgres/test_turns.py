"""What a turn costs over a network, and that what is lost of it is written once."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.run.memory.memory_agent import refresh_agent
from storage.commands import MemorySnapshot
from storage.errors import StaleWrite, StoreFailed
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.gateway.two.proxy import Proxy
from tests.patience import PATIENCE_S, comes
from tests.storage.conftest import OpenStore
from tests.storage.test_turns import both, opened
from tests.stored import ALICE, HUMAN, PATIENT, Clock, Speaker, rows


@both
async def test_a_plain_turn_is_two_round_trips(open_store: OpenStore, key: str | None) -> None:
    sent: list[str] = []
    alice = Speaker(await open_store(note=sent.append), ALICE, Clock())
    history = await opened(alice, key)
    sent.clear()
    await alice.say([*history, user("three")], assistant("Third."), key)
    assert sent == ["cacheable_numbers", "exchange_add_planned"]
    rows = await alice.rows()
    assert [e.continued for e in rows] == [True, False, False]  # the third shows it of the second
    assert [e.seq for e in rows] == [1, 3, 5]


async def test_turns_wait_in_order_while_their_agent_is_created(open_store: OpenStore) -> None:
    sent: list[str] = []
    store = await open_store(note=sent.append)
    went_on: list[int] = []

    async def come(number: int) -> int:
        agent = await store.agents.find_or_create(ALICE, (HUMAN,), (), 1.0)
        went_on.append(number)
        return agent.id

    async def come_late() -> int:
        while ALICE not in store.agents._cache:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return await come(8)

    assert len(set(await asyncio.gather(come_late(), *map(come, range(8))))) == 1
    assert went_on == [*range(9)]
    assert (sent.count("agent_find"), sent.count("agent_insert")) == (1, 1)
    assert not store.agents._creation_locks


async def test_a_turn_that_is_weighed_again_is_a_transaction(open_store: OpenStore) -> None:
    sent: list[str] = []
    alice = Speaker(await open_store(note=sent.append), ALICE, Clock())
    history = await opened(alice, "c1")
    turns = [await alice.begin([*history, user(word)], "c1") for word in ("one", "two")]
    await alice.end(turns[0], [assistant("Yes.")])
    sent.clear()
    await alice.end(turns[1], [assistant("Yes.")])
    assert (sent[0], sent[1], sent[2], sent[-1]) == (
        "exchange_add_planned",
        "BEGIN",
        "lock_numbers",
        "COMMIT",
    )


@pytest.mark.parametrize("after_reply", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "weighed"])
async def test_a_turn_whose_answer_is_lost_is_there_once(
    open_store: OpenStore, proxy: Proxy, is_plain: bool, after_reply: bool
) -> None:
    alice = Speaker(await open_store(path=proxy.url), ALICE, Clock())
    history = await opened(alice, "c1")
    turn = await alice.begin([*history, user("three")] if is_plain else history[:3], "c1")
    assert turn.is_plain is is_plain
    lost = proxy.cut_at("INSERT INTO exchanges" if is_plain else "COMMIT", after_reply=after_reply)
    committed = await alice.end(turn, [assistant("Third.")])
    assert lost.is_open
    rows = await alice.rows()
    assert [e.id for e in rows if e.shown_reply and b"Third." in e.shown_reply] == [committed.exchange_row]
    assert len(rows) == 3
    assert await alice.store.drain(PATIENCE_S)


async def test_a_write_that_must_not_be_repeated_is_not_repeated(open_store: OpenStore, proxy: Proxy) -> None:
    store: Store = await open_store(path=proxy.url)
    proxy.cut_at("INSERT INTO keys", after_reply=True)
    with pytest.raises(StoreFailed):
        await store.keys.create("shop", "laptop")
    assert len(await _keys(store)) == 1


async def test_a_write_that_was_not_committed_is_repeated_on_another_connection(
    open_store: OpenStore, proxy: Proxy
) -> None:
    store: Store = await open_store(path=proxy.url)
    alice = Speaker(store, ALICE, Clock())
    await alice.say([user("one")], assistant("First."))
    (human,) = await store.blocks.load(alice.agent.id)
    proxy.cut_at("INSERT INTO block_history", after_reply=True)
    written = await store.blocks.write(human.id, human.version, "Alice.", at=2.0, origin="tool")
    assert written.version == human.version + 1
    assert len(await store.blocks.list_revisions(human.id)) == 2


async def _keys(store: Store) -> list[object]:
    """The keys, as soon as the store works again."""
    await comes(lambda: store.health.ok)
    return list(await store.keys.list())


async def test_eight_agents_never_wait_for_each_other(open_store: OpenStore) -> None:
    """One agent's lock is held by somebody who sleeps; the others' turns end meanwhile."""
    store = await open_store(limits=replace(PATIENT, size=4))
    clock = Clock()
    alice = Speaker(store, ALICE, clock)
    await alice.say([user("one")], assistant("First."))
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(connection: object) -> None:
        await connection.lock(alice.agent.id)  # type: ignore[attr-defined]
        held.set()
        await go_on.wait()

    holding = store.database.write(hold)
    await held.wait()
    waiting = asyncio.ensure_future(alice.say([user("two")], assistant("Second.")))
    for n in range(8):
        other = Speaker(store, type(ALICE)("default", "default", f"user:{n}"), clock)
        await other.say([user("Hi")], assistant("Hello!"))
    assert not waiting.done()
    go_on.set()
    await holding
    await waiting


@pytest.mark.parametrize("key", ["c1", None])
async def test_a_turn_under_way_is_not_stored_in_a_memory_that_has_its_id_after_a_failover(
    open_store: OpenStore, key: str | None
) -> None:
    """A standby that lags loses the newest memory, and gives its id to the next one."""
    store = await open_store()
    alice, bob = Speaker(store, ALICE, Clock()), Speaker(store, ALICE._replace(subject="user:bob"), Clock())
    agent = await store.agents.find_or_create(ALICE, (HUMAN,), (), 1.0)
    turn = await alice.begin([user("I am ill.")], key)
    await rows(store, "DELETE FROM agents WHERE id = ?", (agent.id,))
    await rows(store, "SELECT setval('agents_id_seq', ?, FALSE)", (agent.id,))
    store.agents.clear()  # as with each recovery of the database
    assert (await store.agents.find_or_create(bob.scope, (HUMAN,), (), 1.0)).id == agent.id
    with pytest.raises(StaleWrite):
        await alice.commit(turn, [assistant("Get well.")])
    assert await bob.rows() == []


async def test_a_memory_that_is_not_stored_is_not_cached_as_if_it_were(open_store: OpenStore) -> None:
    store = await open_store()
    draft = store.agents.get_draft(ALICE)
    assert await refresh_agent(store, draft, MemorySnapshot()) is draft
    assert store.agents.find_cached(ALICE) is None
