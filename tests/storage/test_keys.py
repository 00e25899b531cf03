"""Gateway keys and the agents they lead to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace

from storage.errors import NotFound, StoreFull, WriteConflict
from storage.records import Agent, Scope
from storage.sql.agents import Agents, find_or_create_agent
from storage.sql.key_uses import RECORDED_S
from storage.sql.store import Store
from tests.patience import PATIENCE_S
from tests.storage.conftest import Holds, OpenStore

ALICE = Scope("default", "default", "user:alice")


async def test_a_key_is_shown_once_and_found_by_what_was_shown(store: Store) -> None:
    key, plain = await store.keys.create("shop", "laptop")
    assert plain.startswith("mg-")
    assert len(plain) > 40
    assert await store.keys.list() == (key,)
    assert await store.keys.find(plain) == key
    assert (key.project, key.name, key.created) == ("shop", "laptop", 1000.0)
    assert plain.startswith(key.prefix)


async def test_the_database_does_not_hold_the_key(store: Store, holds: Holds) -> None:
    _, plain = await store.keys.create("shop", "laptop")
    await store.close()
    assert not holds(plain.removeprefix("mg-")[4:].encode())


@pytest.mark.parametrize("presented", ["", "mg-", "mg-nothing", "' OR 1=1 --", "\udc80\x00", "x" * 100_000])
async def test_a_text_that_was_never_a_key_is_none(store: Store, presented: str) -> None:
    await store.keys.create("shop", "laptop")
    assert await store.keys.find(presented) is None


async def test_a_secret_that_was_rotated_away_is_not_installed_again(store: Store) -> None:
    mine = "mg-" + "0123456789abcdef" * 2
    assert await store.keys.install(mine, "given")
    found = await store.keys.find(mine)
    assert found is not None
    for _ in range(3):
        _, new = await store.keys.rotate(found.id, 0.0)
        assert not await store.keys.install(mine, "given")
        assert await store.keys.find(mine) is None
        assert await store.keys.find(new)


async def test_a_key_that_was_chosen_elsewhere_is_installed_once(store: Store, holds: Holds) -> None:
    mine, next_one = "mg-" + "0123456789abcdef" * 2, "mg-" + "fedcba9876543210" * 2
    _, other = await store.keys.create("shop", "laptop")
    for _ in range(2):
        assert await store.keys.install(mine, "given")
    found = await store.keys.find(mine)
    assert found is not None
    assert (found.project, found.name) == ("default", "given")
    assert len(await store.keys.list()) == 2
    # Another one takes its place, and nobody else's; what was revoked does not come back.
    assert await store.keys.install(next_one, "given")
    assert await store.keys.find(mine) is None
    assert not await store.keys.install(mine, "given")
    assert await store.keys.find(mine) is None
    assert await store.keys.find(next_one)
    assert await store.keys.find(other)
    await store.close()
    assert not holds(mine.removeprefix("mg-").encode())


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_revoked_key_is_known_no_more_at_once(store: Store, by: str) -> None:
    key, plain = await store.keys.create("shop", "laptop")
    _, other = await store.keys.create("shop", "phone")
    assert await store.keys.find(plain)
    assert await store.drain(PATIENCE_S)
    assert await store.keys.revoke(str(getattr(key, by))) == replace(key, revoked=1000.0, used=1000.0)
    assert await store.keys.find(plain) is None
    assert await store.keys.find(other)
    with pytest.raises(NotFound):
        await store.keys.revoke("laptop")


async def test_taking_back_the_last_key_does_not_open_the_server(open_store: Any) -> None:
    store = await open_store()
    assert not await store.keys.has_any()
    await store.keys.create("shop", "laptop")
    assert await store.keys.has_any()
    await store.keys.revoke("laptop")
    assert await store.keys.has_any()
    await store.close()
    assert await (await open_store()).keys.has_any()


async def test_a_known_key_costs_no_statement(open_store: Any) -> None:
    statements: list[str] = []
    store = await open_store(note=statements.append)
    _, plain = await store.keys.create("shop", "laptop")
    await store.keys.find(plain)
    assert await store.drain(PATIENCE_S)
    statements.clear()
    assert await store.keys.find(plain)
    assert await store.keys.has_any()
    assert statements == []


def change_behind_the_next_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[object]]
) -> None:
    read = store.database.read

    async def read_and_change(work: Any) -> Any:
        monkeypatch.undo()
        found = await read(work)
        await change()
        return found

    monkeypatch.setattr(store.database, "read", read_and_change)


async def test_a_key_that_is_revoked_while_it_is_read_is_not_known_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain = await store.keys.create("shop", "laptop")
    change_behind_the_next_read(store, monkeypatch, lambda: store.keys.revoke("laptop"))
    await store.keys.find(plain)
    assert await store.keys.find(plain) is None


async def test_a_key_that_is_made_while_it_is_asked_for_any_is_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_behind_the_next_read(store, monkeypatch, lambda: store.keys.create("shop", "laptop"))
    assert await store.keys.has_any()
    assert await store.keys.has_any()


async def test_memories_are_distinguished_by_every_part_of_their_scope(store: Store, agent: Agent) -> None:
    assert await store.agents.find(ALICE) == agent
    for other in (
        ALICE._replace(project="p"),
        ALICE._replace(profile="p"),
        ALICE._replace(subject="user:bob"),
        ALICE._replace(subject="conversation:alice"),
    ):
        assert await store.agents.find(other) is None


async def test_two_first_requests_at_once_make_one_agent(store: Store) -> None:
    first, second = store.agents.get_draft(ALICE), store.agents.get_draft(ALICE)
    assert first == second
    assert first.id == 0
    one = await store.database.write(lambda connection: find_or_create_agent(connection, first))
    two = await store.database.write(lambda connection: find_or_create_agent(connection, second))
    assert one == two
    assert one.id > 0


async def test_a_late_draft_learns_whose_agent_was_first(store: Store, agent: Agent) -> None:
    late = store.agents.get_draft(ALICE)
    assert late.secret != agent.secret
    assert await store.database.write(lambda connection: find_or_create_agent(connection, late)) == agent


async def test_the_cache_of_agents_is_bounded_and_can_be_dropped(store: Store, agent: Agent) -> None:
    agents = Agents(store.database, lambda: 0.0, cache_size=2)
    for name in "abcd":
        agents.cache(replace(agent, scope=ALICE._replace(subject=name)))
    assert len(agents._cache) == 2
    agents.cache(replace(agent, epoch=9))
    assert await agents.find(ALICE) == replace(agent, epoch=9)
    agents.uncache(ALICE)
    assert await agents.find(ALICE) == agent


async def test_a_name_that_several_keys_have_revokes_none_of_them(store: Store) -> None:
    made = [(await store.keys.create("default", name))[0] for name in ("key", "key", "1")]
    with pytest.raises(WriteConflict, match="1, 2 are all named 'key'"):
        await store.keys.revoke("key")
    assert (await store.keys.revoke("1")).id == made[0].id  # the number, not the name
    assert (await store.keys.revoke("key")).id == made[1].id
    assert [each.revoked is None for each in await store.keys.list()] == [False, False, True]


async def test_the_use_of_a_key_is_recorded_once_an_hour_and_not_with_each_request(
    open_store: OpenStore,
) -> None:
    statements: list[str] = []
    clock = [1000.0]
    store = await open_store(note=statements.append, now=lambda: clock[0])
    key, plain = await store.keys.create("shop", "laptop")

    async def use(at: float) -> float | None:
        """Returns what `keys list` shows after a request at that time."""
        clock[0] = at
        for _ in range(3):
            assert await store.keys.find(plain)
        assert await store.drain(PATIENCE_S)
        return (await store.keys.list())[0].used

    assert (await store.keys.list())[0].used is None
    assert await use(2000.0) == 2000.0
    assert await use(2000.0 + RECORDED_S - 1) == 2000.0
    assert await use(2000.0 + RECORDED_S) == 2000.0 + RECORDED_S
    assert statements.count("key_used") == 2
    assert await use(500.0) == 500.0  # the clock was put back
    await store.close()

    # What a process before has recorded counts.
    store = await open_store(note=statements.append, now=lambda: clock[0])
    assert await use(600.0) == 500.0
    assert statements.count("key_used") == 3
    await store.keys.revoke("laptop")
    assert await store.keys.find(plain) is None
    revoked = (await store.keys.list())[0]
    assert (revoked.revoked, revoked.used, revoked.created) == (600.0, 500.0, key.created)


async def test_a_key_is_known_though_its_use_cannot_be_recorded(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [1000.0]
    store = await open_store(now=lambda: clock[0])
    _, plain = await store.keys.create("shop", "laptop")
    tried = 0

    def refuse(*_: object, **__: object) -> NoReturn:
        nonlocal tried
        tried += 1
        raise StoreFull("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(store.database, "bulk_write", refuse)
        for _ in range(3):
            assert await store.keys.find(plain)
        assert tried == 1
        clock[0] += 60.0
        assert await store.keys.find(plain)
        assert tried == 2
    assert not caplog.messages
    clock[0] += 60.0
    assert await store.keys.find(plain)
    assert await store.drain(PATIENCE_S)
    assert (await store.keys.list())[0].used == 1120.0
