"""What benches write straight into a store is there like what was said through a gateway."""

from __future__ import annotations

from scripts.fill import new_agent, write_conversation
from tests.storage.conftest import OpenStore


async def test_a_filled_memory_is_in_order_and_recalled(open_store: OpenStore) -> None:
    store = await open_store()
    agent = await new_agent(store, "ann")
    turns = [(100.0 * n, f"My number {n} is walrus{n}.", "Noted.") for n in range(1, 5)]
    await write_conversation(store, agent, "c1", turns)
    found = await store.recall.search(agent, "walrus3", limit=1)
    assert [m.text for m in found] == ["My number 3 is walrus3."]
    said = await store.recall.recent(agent, 10)
    assert [m.text for m in said if m.role == "user"] == [asked for _, asked, _ in turns]
