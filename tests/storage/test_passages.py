"""Archival memories and the table of the search index."""

from __future__ import annotations

import pytest

from storage.database import Connection
from storage.errors import NotFound
from storage.records import Agent
from storage.sql.agents import set_indexed
from storage.sql.search_index import _STEP_PASSAGES
from storage.sql.store import Store
from storage.sql.terms import find_terms, load_terms_since, replace_terms
from tests.stored import indexed_seqs, save_passage


async def test_passages_are_numbered_in_the_agents_order_and_paged(store: Store, agent: Agent) -> None:
    made = [await save_passage(store, agent.id, text, at=1.0, sources=[3]) for text in ("a", "b", "c")]
    assert [p.seq for p in made] == [1, 2, 3]
    assert await store.passages.list_texts(agent.id, limit=2) == tuple(made[:2])
    assert await store.passages.list_texts(agent.id, after=2) == (made[2],)
    assert await store.passages.list_texts(agent.id + 1) == ()
    assert (made[1].text, made[1].at) == ("b", 1.0)


async def test_a_passage_of_an_unknown_memory_is_refused(store: Store) -> None:
    with pytest.raises(NotFound):
        await save_passage(store, 77, "a", at=1.0)


async def put_terms(store: Store, agent_row: int, chunk: int, data: bytes) -> None:
    async def write(connection: Connection) -> None:
        await connection.lock(agent_row)
        await replace_terms(connection, agent_row, chunk, data)

    await store.database.bulk_write(write)


async def test_terms_are_replaced_by_chunk_and_belong_to_one_agent(store: Store, agent: Agent) -> None:
    for chunk, data in ((0, b"zero"), (1, b"one"), (0, b"zero again")):
        await put_terms(store, agent.id, chunk, data)
    read = store.database.read
    assert await read(lambda c: load_terms_since(c, agent.id, -1)) == [(1, 2, b"one"), (0, 3, b"zero again")]
    assert await read(lambda c: load_terms_since(c, agent.id, 2)) == [(0, 3, b"zero again")]
    assert await read(lambda c: load_terms_since(c, agent.id + 1, -1)) == []
    assert await read(lambda c: find_terms(c, agent.id, 1)) == b"one"
    assert await read(lambda c: find_terms(c, agent.id, 2)) is None


async def test_the_index_says_how_far_it_has_come(store: Store, agent: Agent) -> None:
    await store.database.bulk_write(lambda c: set_indexed(c, agent.id, 64))
    store.agents.uncache(agent.scope)
    found = await store.agents.find(agent.scope)
    assert found is not None
    assert found.indexed_seq == 64


async def test_more_passages_than_one_step_takes_are_all_indexed(store: Store, agent: Agent) -> None:
    for n in range(_STEP_PASSAGES + 50):
        last = await save_passage(store, agent.id, f"zebra{n}", at=1.0)
    assert await store.search_index.advance(agent.id)
    assert not await store.search_index.advance(agent.id)
    found = await store.database.read(lambda c: load_terms_since(c, agent.id, -1))
    assert max(indexed_seqs(data)[-1] for _, _, data in found) == last.seq
