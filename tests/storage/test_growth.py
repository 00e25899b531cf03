"""What reports that a memory has grown: all that numbers passages and facts, and no turn."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from storage.file_records import FileState, StoredFile
from storage.listing import PassageDraft
from storage.records import Scope
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.stored import ALICE, Speaker

CAROL = Scope("default", "helper", "user:carol")


@pytest.fixture
def alice(store: Store) -> Speaker:
    return Speaker(store, ALICE, lambda: 1000.0)


@pytest.fixture
def grown(store: Store) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    store.growth.add_listener(lambda agent, added: found.append((agent, added)))
    return found


async def test_writes_that_take_numbers_report_them(
    store: Store, alice: Speaker, grown: list[tuple[int, int]]
) -> None:
    await alice.say([user("Hello.")], assistant("Hello."))
    assert grown == []
    agent = alice.agent
    await store.passages.add(agent.id, [PassageDraft("One.", 1.0), PassageDraft("Two.", 1.0)])
    fact, _ = await store.facts.remember(agent, "I like tea.", "tea", "person", 1.0)
    await store.facts.correct(agent, fact.seq, "I like coffee.", "coffee", "person", 2.0)
    file = StoredFile(0, "f" * 32, agent.id, FileState.PARSING, 1, 1.0, "text/plain", "a.txt")
    file = await store.files.add(file)
    await store.files.add_parts(file, ["One.", "Two.", "Three."])
    await store.search_index.empty_damaged_chunks(agent.id)
    imported = await store.import_writer.begin(replace(agent, uid="u2", scope=CAROL))
    await store.import_writer.finish(imported, 8)
    assert grown == [(agent.id, n) for n in (2, 1, 1, 3, 0)] + [(imported.id, 7)]


async def test_a_write_reports_its_numbers_though_its_caller_is_gone(
    store: Store, alice: Speaker, grown: list[tuple[int, int]]
) -> None:
    """The write goes on, and what reads the memory then finds them."""
    await alice.say([user("Hello.")], assistant("Hello."))
    counts: list[asyncio.Future[int]] = []
    store.growth.add_listener(
        lambda agent, _: counts.append(asyncio.ensure_future(store.passages.count(agent)))
    )
    adding = asyncio.create_task(store.passages.add(alice.agent.id, [PassageDraft("One.", 1.0)]))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await store.drain(60.0)
    await asyncio.sleep(0)
    assert grown == [(alice.agent.id, 1)]
    assert await counts[0] == 1
