"""What the user stated after a message, or before it: for a question about what came next."""

from __future__ import annotations

from typing import Any

import pytest

from storage.forget_commands import ForgetTarget
from storage.records import Scope
from storage.search.blob import encode
from storage.search.document import Document
from storage.search.index import Index, open_blob
from storage.search.rank import find_around
from storage.search.tail import Tail
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.stored import ALICE, Clock, Speaker, forget

SECRET = b"s" * 32
PLAN, ROT, JOINER, FLOOR = (
    "The architect drew an island.",
    "We found dry rot in the wall.",
    "The joiner takes eleven weeks.",
    "The floor is of limestone.",
)


def said(seq: int, text: str, role: str = "user", previous: int | None = None) -> Document:
    return Document(seq, role, text, 1.7e9 + seq, previous=previous)


TALK = [
    said(1, PLAN),
    said(2, "An island it is, then, with drawers.", "assistant", 1),
    said(3, ROT),
    said(4, "How deep is the rot?", "assistant", 3),
    said(5, "It is forty centimetres deep.", previous=4),
    said(6, "Thanks.", previous=5),
    said(7, JOINER),
    said(8, "Which glue do joiners use?", previous=7),
    said(9, FLOOR),
]


def found(seq: int, indexed: int = 0, **options: Any) -> list[int]:
    """Returns what was stated around a message. indexed: so many are, the others are not yet."""
    blobs = encode(TALK[:indexed], SECRET).values()
    index = Index((open_blob(data).chunk, data) for data in blobs)
    return find_around(index, seq, tail=Tail(TALK[indexed:]), **options)


@pytest.mark.parametrize("indexed", range(0, len(TALK) + 1, 3))
def test_the_nearest_conversation_comes_first(indexed: int) -> None:
    assert found(3, indexed) == [5, 7, 9]
    assert found(3, indexed, limit=2) == [5, 7]
    assert found(7, indexed, looks_back=True) == [3, 1, 5]
    assert found(5, indexed, looks_back=True) == [3, 1]
    assert found(3, indexed, skip=range(7, 8)) == [5, 9]


def test_the_nearest_message_of_the_same_conversation_comes_first() -> None:
    one = [
        said(n, f"Step {n} took {'very ' * n}long.", previous=n - 1 if n > 1 else None) for n in range(1, 8)
    ]
    assert find_around(Index(()), 4, tail=Tail(one)) == [5, 6, 7]
    assert find_around(Index(()), 4, tail=Tail(one), looks_back=True) == [3, 2, 1]


def test_there_is_nothing_around_a_message_that_is_unknown() -> None:
    assert found(99) == found(99, 9) == found(0, looks_back=True) == []
    assert find_around(Index(()), 1) == []


@pytest.fixture
async def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, Clock())


async def texts(store: Store, speaker: Speaker, event: str, *, looks_back: bool = False) -> list[str]:
    [seq] = [m.seq for m in await store.recall.search(speaker.agent, event) if m.text == event]
    near = await store.recall.find_around(speaker.agent, seq, looks_back=looks_back)
    return [m.text for m in near]


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_a_store_knows_what_one_user_said_next(store: Store, alice: Speaker, is_indexed: bool) -> None:
    bob = Speaker(store, Scope("default", "default", "user:bob"), Clock())
    for number, text in enumerate((PLAN, ROT, JOINER, FLOOR)):
        await alice.say([user(text)], assistant("Noted."), f"c{number}")
        await bob.say([user(f"I sold a boat {number}.")], assistant("Noted."), f"c{number}")
        while is_indexed and await store.search_index.advance(alice.agent.id):
            pass
    assert await texts(store, alice, ROT) == [JOINER, FLOOR]
    assert await texts(store, alice, ROT, looks_back=True) == [PLAN]
    gone = next(e for e in await alice.rows() if b"joiner" in (e.input or b""))
    await forget(store, alice.agent, ForgetTarget(exchange_rows=[gone.id]))
    assert await texts(store, alice, ROT) == [FLOOR]
