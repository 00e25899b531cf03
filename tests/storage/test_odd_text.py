"""Text that a database refuses, U+0000 or half a surrogate pair, is stored as far as it can be."""

from __future__ import annotations

import pytest

from storage.database import Connection
from storage.definition_records import DefinitionKind
from storage.listing import DefinitionDraft, PassageDraft
from storage.records import Agent, Block
from storage.sql.default_blocks import ensure_blocks
from storage.sql.store import Store
from storage.text import replace_unstorable
from tests.core.conversations import assistant, user
from tests.stored import ALICE, HUMAN, Speaker, rows

ODD = "a\0b\ud83dc"
REPLACED = "ab\ufffdc"


def plain(text: str) -> str:
    """SQLite keeps a U+0000 that is not taken out before it; nothing hangs on that."""
    return text.replace("\0", "")


async def test_texts_are_stored_without_what_cannot_be(store: Store, agent: Agent) -> None:
    await store.passages.add(agent.id, [PassageDraft(ODD, 1.0, tags=("x",)), PassageDraft("sound", 2.0)])
    found = await store.passages.list_texts(agent.id)
    assert [plain(passage.text) for passage in found] == [REPLACED, "sound"]
    block = Block(0, "human", ODD, ODD, 1000)

    async def begin(connection: Connection) -> None:
        await connection.lock(agent.id)
        await ensure_blocks(connection, agent.id, [block], 1.0)

    await store.database.write(begin)
    (made,) = await store.blocks.load(agent.id)
    assert (plain(made.value), plain(made.description)) == (REPLACED, REPLACED)
    await store.blocks.write(made.id, made.version, f"more {ODD}", at=2.0, origin=ODD)
    (written,) = await store.blocks.load(agent.id)
    assert plain(written.value) == f"more {REPLACED}"


async def test_a_turn_whose_texts_are_odd_is_written_whole_and_goes_on(store: Store) -> None:
    alice = Speaker(store, ALICE)
    for n in range(2):
        messages = [user("One"), assistant("Yes."), user("Two")][: 1 + 2 * n]
        turn = await alice.begin(messages, "c1")
        await alice.end(turn, [assistant("Yes.")], inserted_texts=[f"a\0b{n}"])
    assert len(await alice.rows()) == 2
    agent = await store.agents.find(ALICE)
    assert agent is not None
    (made,) = await store.blocks.load(agent.id)
    assert made.label == HUMAN.label
    assert "ab0" in plain(made.value)


async def test_a_lookup_by_an_odd_text_finds_it_or_nothing(store: Store, agent: Agent) -> None:
    kind = DefinitionKind.TOOL
    await store.definitions.add(DefinitionDraft("default", kind, "u1", {}, f"name {ODD}"), at=1.0)
    (found,) = await rows(store, "SELECT name FROM definitions")
    assert plain(found[0]) == f"name {REPLACED}"
    (again,) = await store.definitions.find_by_name("default", kind, f"name {ODD}")
    assert again.uid == "u1"
    assert await store.definitions.find_by_name("default", kind, ODD) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a\0", "a"), ("\ud83d\ude00", "\U0001f600"), ("\ude00\ud83d", "\ufffd\ufffd"), ("Miso 🐈", "Miso 🐈"),
        (["\0", 1, None], ["", 1, None]), (b"\0", b"\0"), (1.5, 1.5), (None, None),
    ],
)  # fmt: skip
def test_values_are_replaced_where_they_must(value: object, kept: object) -> None:
    assert replace_unstorable((value,)) == [kept]
