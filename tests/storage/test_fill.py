"""What benches write straight into a store is there like what was said through a gateway."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from gateway.core.memory.rules import RULES
from scripts.fill import copy_to_postgres, new_agent, write_conversation
from storage.open import open_store as open_at
from storage.records import Scope
from storage.search.rank import MAX_HITS
from tests.patience import PATIENCE_S
from tests.postgres import empty_database
from tests.storage.conftest import OpenStore


async def test_a_filled_memory_is_in_order_and_recalled(open_store: OpenStore) -> None:
    store = await open_store()
    agent = await new_agent(store, "ann")
    turns = [(100.0 * n, f"My number {n} is walrus{n}.", "Noted.") for n in range(1, 5)]
    await write_conversation(store, agent, "c1", turns)
    hits = await store.recall.search(agent, "walrus3", limit=1)
    assert [m.text for m in hits] == ["My number 3 is walrus3."]
    said = await store.recall.load_recent(agent, 10)
    assert [m.text for m in said if m.role == "user"] == [asked for _, asked, _ in turns]


async def test_a_wanted_message_is_found_after_any_number_of_better_hits(open_store: OpenStore) -> None:
    store = await open_store()
    agent = await new_agent(store, "ann")
    turns = [(100.0, "A walrus?", "There are animals such as the walrus in the north of many countries.")]
    turns += [(100.0 * n, f"Walrus, walrus {n}!", "Noted.") for n in range(2, 250)]
    await write_conversation(store, agent, "c1", turns)
    search = partial(store.recall.search, agent, "walrus", deadline_ms=1000 * PATIENCE_S)
    for _ in range(2):
        found = await search(takes=lambda m: m.role == "assistant", limit=1)
        assert [m.text for m in found] == [turns[0][2]]  # the others only stand next to hits
        early = await search(takes=lambda m: m.at < 350, limit=3)
        assert len(early) == 3
        assert all(m.at < 350 for m in early)
        while await store.search_index.advance(agent.id):
            pass


async def test_others_go_on_while_a_search_rules_out_page_after_page(open_store: OpenStore) -> None:
    store = await open_store()
    agent = await new_agent(store, "ann")
    turns = [(100.0 * n, f"Walrus {n}!", f"The walrus, {n}.") for n in range(1, 250)]
    await write_conversation(store, agent, "c1", turns)
    search = partial(store.recall.search, agent, "walrus", deadline_ms=1000 * PATIENCE_S)
    assert len(await search()) == 40
    rounds, searching = 0, asyncio.ensure_future(search(takes=lambda m: False))
    while not searching.done():
        await asyncio.sleep(0)
        rounds += 1
    assert searching.result() == []
    assert rounds > len(turns) // MAX_HITS


async def test_a_copy_in_postgres_has_what_was_written_and_goes_on(tmp_path: Path, postgres: str) -> None:
    file, url = tmp_path / "filled.db", empty_database(postgres).url
    source = await open_at(file, RULES)
    await write_conversation(source, await new_agent(source, "ann"), "c1", [(100.0, "A walrus!", "Noted.")])
    await source.close()
    await copy_to_postgres(file, url)
    store = await open_at(url, RULES)
    try:
        agent = await store.agents.find(Scope("default", "default", "user:ann"))
        assert agent is not None
        await write_conversation(store, agent, "c2", [(200.0, "Another walrus!", "Noted.")])
        said = await store.recall.load_recent(agent, 10)
        assert [m.text for m in said if m.role == "user"] == ["A walrus!", "Another walrus!"]
    finally:
        await store.close()
