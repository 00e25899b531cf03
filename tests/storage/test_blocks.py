"""Blocks: defaults, compare-and-set, history, undo, and the edits of unconfirmed turns."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from storage.database import Connection, Operation
from storage.errors import NotFound, WriteConflict
from storage.records import Agent, Block, MemoryEdit, Scope
from storage.sql import blocks, default_blocks, turn_edits
from storage.sql.blocks import OwnedBlock
from storage.sql.store import Store

HUMAN = Block(0, "human", "Who the user is", "Unknown.", 2000)
PERSONA = Block(0, "persona", "Who you are", "A friend.", 2000, read_only=True)


async def put(store: Store, operation: Operation[Any]) -> Any:
    return await store.database.write(operation)


@pytest.fixture
async def human(store: Store, agent: Agent) -> Block:
    await put(store, lambda c: default_blocks.ensure_blocks(c, agent.id, [HUMAN, PERSONA], 1.0))
    return (await store.blocks.load(agent.id))[0]


async def test_defaults_are_copied_once(store: Store, agent: Agent, human: Block) -> None:
    assert [replace(b, id=0) for b in await store.blocks.load(agent.id)] == [HUMAN, PERSONA]
    await store.blocks.write(human.id, 1, "Alice.", at=2.0, origin="tool")
    changed = replace(HUMAN, value="another default")
    await put(store, lambda c: default_blocks.ensure_blocks(c, agent.id, [changed, PERSONA], 3.0))
    assert [b.value for b in await store.blocks.load(agent.id)] == ["Alice.", "A friend."]


async def test_shared_blocks_reach_the_profile_and_no_other(store: Store, agent: Agent) -> None:
    rules = Block(0, "rules", "Of the house", "Be brief.", 100, read_only=True)
    for profile in ("default", "other"):
        await put(
            store,
            lambda c, p=profile: default_blocks.ensure_shared_blocks(
                c, "default", p, [replace(rules, value=p)], 1.0
            ),
        )
    await put(store, lambda c: default_blocks.ensure_shared_blocks(c, "elsewhere", "default", [rules], 1.0))
    assert [b.value for b in await store.blocks.load(agent.id)] == ["default"]


async def test_an_own_block_counts_before_a_shared_one_of_its_label(
    store: Store, agent: Agent, human: Block
) -> None:
    shared = replace(HUMAN, value="everybody")
    await put(store, lambda c: default_blocks.ensure_shared_blocks(c, "default", "default", [shared], 1.0))
    assert [(b.label, b.value) for b in await store.blocks.load(agent.id)] == [
        ("human", "Unknown."),
        ("persona", "A friend."),
    ]


async def test_settings_are_followed_by_a_few_memories_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one statement those of a hundred thousand users hold up all turns, and over PostgreSQL fail after 30 s."""
    monkeypatch.setattr(default_blocks, "_MEMORIES_PER_WRITE", 2)
    users = [
        await store.agents.find_or_create(Scope("default", "default", f"user:{n}"), (HUMAN,), (), 1.0)
        for n in range(5)
    ]
    other = await store.agents.find_or_create(Scope("default", "other", "user:0"), (HUMAN,), (), 1.0)
    bulk, written = store.database.bulk_write, []

    def count(operation: Operation[Any]) -> asyncio.Future[Any]:
        written.append(operation)
        return bulk(operation)

    monkeypatch.setattr(store.database, "bulk_write", count)
    now = replace(HUMAN, description="The person", value="another default")
    for own, writes, shown in (
        ([now], 3, [replace(now, value="Unknown.")]),
        ([now, PERSONA], 3, [replace(now, value="Unknown."), PERSONA]),
        ([now, PERSONA], 0, [replace(now, value="Unknown."), PERSONA]),
    ):
        written.clear()
        await store.default_blocks.follow("default", own, [], at=2.0)
        assert len(written) == writes
        for user in users:
            assert [replace(b, id=0) for b in await store.blocks.load(user.id)] == shown
    assert [replace(b, id=0) for b in await store.blocks.load(other.id)] == [HUMAN]


async def test_a_write_on_an_old_version_is_a_conflict_and_changes_nothing(
    store: Store, agent: Agent, human: Block
) -> None:
    written = await store.blocks.write(human.id, 1, "Alice.", at=2.0, origin="tool", sources=[4, 5])
    assert written == replace(human, value="Alice.", version=2) == (await store.blocks.load(agent.id))[0]
    with pytest.raises(WriteConflict):
        await store.blocks.write(human.id, 1, "Bob.", at=3.0, origin="tool")
    with pytest.raises(NotFound):
        await store.blocks.write(999, 1, "Bob.", at=3.0, origin="tool")
    assert (await store.blocks.load(agent.id))[0] == written
    newest, oldest = await store.blocks.list_revisions(human.id)
    assert (newest.version, newest.value, newest.origin, newest.sources) == (2, "Alice.", "tool", (4, 5))
    assert (oldest.version, oldest.value, oldest.origin) == (1, "Unknown.", "default")


async def test_one_of_many_writers_of_the_same_version_wins(store: Store, human: Block) -> None:
    writes = [store.blocks.write(human.id, 1, f"{i}", at=2.0, origin="tool") for i in range(8)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, Block) for result in results) == 1
    assert sum(isinstance(result, WriteConflict) for result in results) == 7


async def test_undo_walks_back_and_a_new_change_can_be_undone_too(
    store: Store, agent: Agent, human: Block
) -> None:
    async def undo() -> str:
        return (await store.blocks.undo(human.id, at=9.0)).value

    for version, value in ((1, "a"), (2, "b")):
        await store.blocks.write(human.id, version, value, at=2.0, origin="tool")
    assert [await undo(), await undo()] == ["a", "Unknown."]
    with pytest.raises(NotFound):
        await undo()
    await store.blocks.write(human.id, 5, "c", at=2.0, origin="tool")
    assert await undo() == "Unknown."
    with pytest.raises(NotFound):
        await undo()
    assert (await store.blocks.load(agent.id))[0].version == 7
    assert [r.value for r in await store.blocks.list_revisions(human.id)][::-1] == [
        "Unknown.",
        "a",
        "b",
        "a",
        "Unknown.",
        "c",
        "Unknown.",
    ]


async def test_edits_wait_until_they_are_settled_and_are_there_once(store: Store, agent: Agent) -> None:
    async def run(connection: Connection) -> list[Any]:
        edit = MemoryEdit(0, 7, "call_1", "insert", "human", b'{"text":"x"}', at=1.0)
        await connection.lock(agent.id)
        added = [
            await turn_edits.add_edit(connection, agent.id, each)
            for each in (edit, edit, replace(edit, call_id="call_2"))
        ]
        pending = await turn_edits.load_edits(connection, agent.id, 7)
        await turn_edits.settle_edits(connection, agent.id, [pending[0].id], "merged")
        await turn_edits.settle_edits(connection, agent.id, [pending[0].id], "dropped")
        return [
            added,
            [o.call_id for o in pending],
            [o.state for o in await turn_edits.load_edits(connection, agent.id, 7)],
            pending[0].arguments,
            await turn_edits.load_edits(connection, agent.id + 1, 7),
        ]

    assert await put(store, run) == [
        [True, False, True],
        ["call_1", "call_2"],
        ["merged", "pending"],
        b'{"text":"x"}',
        (),
    ]


def test_the_own_block_of_a_label_counts_before_the_shared_one() -> None:
    own, shared = replace(HUMAN, id=5), replace(HUMAN, id=1)
    one, other = replace(PERSONA, id=4), replace(PERSONA, id=2, label="other")
    attached = [OwnedBlock(3, replace(HUMAN, id=6)), OwnedBlock(3, one), OwnedBlock(2, other)]
    assert blocks.list_visible_blocks([OwnedBlock(1, shared), OwnedBlock(0, own), *attached]) == [
        own,
        other,
        one,
    ]
    assert blocks.list_visible_blocks([*attached, OwnedBlock(1, shared)]) == [shared, other, one]
