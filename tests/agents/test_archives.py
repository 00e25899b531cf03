"""Archives: passages of agents and of archives that they share, by page, by words, by tag and date; and erased ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from gateway.agents.registry.archives import Archives
from gateway.agents.registry.memory_passages import MemoryPassages, PassageView
from gateway.agents.registry.memory_scope import draft_memory
from gateway.agents.runs.message_listing import AgentMessages
from gateway.agents.runs.message_search import MessageSearch
from gateway.agents.tools.children import Children
from gateway.agents.tools.file_tools import FileTools
from gateway.core.memory.file_text import split_passages
from storage.definition_records import Definition, DefinitionKind
from storage.errors import NotFound
from storage.listing import AgentFilter, Page, PassageDraft, PassageFilter
from storage.records import Agent, Vector
from storage.sql.store import Store
from tests.core.conversations import assistant, user
from tests.patience import PATIENCE_S
from tests.storage.api import PROJECT, api_scope, bytes_in, make_agent
from tests.stored import Clock, Speaker, rows

OLDEST_FIRST: Page[int] = Page(newest_first=False)
ANY = PassageFilter()


@pytest.fixture
def archives(store: Store) -> Archives:
    return Archives(store, Clock())


@pytest.fixture
def passages(store: Store) -> MemoryPassages:
    return MemoryPassages(store)


@pytest.fixture
async def ann(store: Store) -> Agent:
    return (await make_agent(store, "ann")).agent


async def save(
    passages: MemoryPassages, memory: Agent, text: str, tags: Sequence[str] = (), at: float = 100.0
) -> Sequence[PassageView]:
    return await passages.add(memory, [PassageDraft(text, at, tags)])


async def search(
    passages: MemoryPassages, agent: Agent, query: str, filter: PassageFilter = ANY, limit: int = 5
) -> Sequence[PassageView]:
    return await passages.search(await passages.list_searched_memories(agent), query, filter, limit=limit)


def texts(views: Sequence[PassageView]) -> list[str]:
    return [view.passage.text for view in views]


async def shared(
    store: Store, archives: Archives, *agents: Agent, name: str = "shared"
) -> tuple[Definition, Agent]:
    made = await archives.create(PROJECT, name, {"description": "d"})
    for agent in agents:
        await store.attached.attach(agent.id, DefinitionKind.ARCHIVE, made.memory_row, at=1.0)
    return made, await archives.load_memory(PROJECT, made.uid)


def test_a_long_text_is_cut_where_something_ends_and_nothing_is_lost() -> None:
    assert split_passages("short") == ["short"]
    assert split_passages("  ") == []
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 60 for n in range(40))
    parts = split_passages(text)
    assert all(0 < len(part) <= 2000 for part in parts)
    assert " ".join(" ".join(parts).split()) == " ".join(text.split())
    assert all(part.startswith("Paragraph") for part in parts)
    assert [len(part) for part in split_passages("x" * 4500)] == [2000, 2000, 500]


async def test_passages_are_saved_listed_by_page_and_filtered(passages: MemoryPassages, ann: Agent) -> None:
    for text, tags, at in (
        ("Rome is old.", ["city"], 1.0),
        ("Miso is a cat.", ["cat", "pet"], 2.0),
        ("Tom is a cat.", ["cat"], 3.0),
    ):
        (made,) = await save(passages, ann, text, tags, at)
        assert (made.uid, made.passage.tags) == (ann.uid, tuple(tags))
    everything = await passages.list_page(ann, ANY, OLDEST_FIRST)
    assert texts(everything) == ["Rome is old.", "Miso is a cat.", "Tom is a cat."]
    assert texts(await passages.list_page(ann, ANY, Page(limit=1))) == ["Tom is a cat."]
    first, second, third = [view.passage for view in everything]
    assert texts(await passages.list_page(ann, ANY, Page(after=first.seq, limit=1, newest_first=False))) == [
        "Miso is a cat."
    ]
    assert texts(await passages.list_page(ann, ANY, Page(before=third.seq))) == []
    rest = await passages.list_page(ann, ANY, Page(after=third.seq))
    assert texts(rest) == ["Miso is a cat.", "Rome is old."]
    assert texts(await passages.list_page(ann, PassageFilter(text="IS A"), OLDEST_FIRST)) == [
        "Miso is a cat.",
        "Tom is a cat.",
    ]
    assert texts(await passages.list_page(ann, PassageFilter(tags=["pet", "city"]), OLDEST_FIRST)) == [
        "Rome is old.",
        "Miso is a cat.",
    ]
    assert texts(
        await passages.list_page(ann, PassageFilter(tags=["pet", "cat"], needs_all_tags=True), OLDEST_FIRST)
    ) == ["Miso is a cat."]
    assert texts(await passages.list_page(ann, PassageFilter(since=second.at), OLDEST_FIRST)) == [
        "Miso is a cat.",
        "Tom is a cat.",
    ]
    assert texts(await passages.list_page(ann, PassageFilter(until=second.at), OLDEST_FIRST)) == [
        "Rome is old."
    ]


@pytest.mark.parametrize("is_indexed", [True, False])
async def test_a_search_finds_passages_among_many_messages(
    passages: MemoryPassages, ann: Agent, store: Store, is_indexed: bool
) -> None:
    speaker = Speaker(store, api_scope("ann"), Clock())
    for n in range(60):
        await speaker.say([user(f"My cat number {n} purrs.")], assistant("A cat."), f"c{n}")
    await save(passages, ann, "The cat Miso purrs at night.", ["pet"])
    await save(passages, ann, "Rome is old.", ["city"])
    if is_indexed:
        while await store.search_index.advance(ann.id):
            pass
    assert texts(await search(passages, ann, "Does a cat purr?", ANY)) == ["The cat Miso purrs at night."]
    assert await search(passages, ann, "cat", PassageFilter(tags=["city"])) == []
    assert texts(await search(passages, ann, "cat", PassageFilter(tags=["pet"]))) == [
        "The cat Miso purrs at night."
    ]
    assert await search(passages, ann, "cat", PassageFilter(until=1.0)) == []


async def test_a_search_asks_every_archive_that_is_attached_and_takes_from_each(
    archives: Archives, passages: MemoryPassages, ann: Agent, store: Store
) -> None:
    bob = (await make_agent(store, "bob")).agent
    made, memory = await shared(store, archives, ann, bob)
    await save(passages, ann, "Ann's cat is Miso.")
    await save(passages, memory, "Every cat has four legs.")
    await save(passages, memory, "A cat sleeps a lot.")
    found = await search(passages, ann, "cat", ANY, limit=2)
    assert [view.uid for view in found] == [ann.uid, made.uid]
    assert len(await search(passages, ann, "cat", ANY)) == 3
    assert {view.uid for view in await search(passages, bob, "cat", ANY)} == {made.uid}
    assert await store.attached.load_agents_with(PROJECT, DefinitionKind.ARCHIVE, memory.id) == [
        ann.id,
        bob.id,
    ]
    other = (await make_agent(store, "eve", project="elsewhere")).agent
    with pytest.raises(NotFound):
        await archives.load_memory("elsewhere", made.uid)
    assert await search(passages, other, "cat", ANY) == []


async def test_a_search_asks_all_archives_at_once(
    archives: Archives, passages: MemoryPassages, ann: Agent, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, eight memories would take eight times as long as one."""
    _, memory = await shared(store, archives, ann)
    await save(passages, ann, "Ann's cat is Miso.")
    await save(passages, memory, "A cat sleeps a lot.")
    barrier = asyncio.Barrier(2)
    search_passages = store.recall.search_passages

    async def search_together(*given: Any, **options: Any) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            await barrier.wait()
        return await search_passages(*given, **options)

    monkeypatch.setattr(store.recall, "search_passages", search_together)
    assert texts(await search(passages, ann, "cat", ANY)) == ["Ann's cat is Miso.", "A cat sleeps a lot."]


async def test_an_archive_is_no_agent_and_is_deleted_with_its_passages(
    archives: Archives, passages: MemoryPassages, ann: Agent, store: Store, tmp_path: Path
) -> None:
    made, memory = await shared(store, archives, ann, name="zqnamex")
    await save(passages, memory, "zqpassagex", ["zqtagx"])
    assert [e.agent.id for e in await store.defined_agents.list_page(PROJECT, AgentFilter(), Page())] == [
        ann.id
    ]
    with pytest.raises(NotFound):
        await store.defined_agents.get(PROJECT, made.uid)
    await archives.delete(PROJECT, made.uid)
    with pytest.raises(NotFound):
        await archives.load_memory(PROJECT, made.uid)
    data = bytes_in(tmp_path)
    assert not [word for word in ("name", "passage", "tag") if f"zq{word}x".encode() in data]
    assert await rows(store, "SELECT * FROM attached") == []
    assert await search(passages, ann, "zqpassagex", ANY) == []


async def test_a_removed_passage_is_found_nowhere(
    passages: MemoryPassages, ann: Agent, store: Store, tmp_path: Path
) -> None:
    (gone,) = await save(passages, ann, "zqgonex cat", ["zqtagx"])
    await save(passages, ann, "stays cat")
    while await store.search_index.advance(ann.id):
        pass
    await passages.remove(ann, gone.passage.seq)
    assert (
        texts(await passages.list_page(ann, ANY, OLDEST_FIRST))
        == texts(await search(passages, ann, "cat", ANY))
        == ["stays cat"]
    )
    data = bytes_in(tmp_path)
    assert not [word for word in ("gone", "tag") if f"zq{word}x".encode() in data]
    for seq in (gone.passage.seq, 99):
        with pytest.raises(NotFound):
            await passages.remove(ann, seq)
    bob = (await make_agent(store, "bob")).agent
    with pytest.raises(NotFound):
        await passages.remove(bob, gone.passage.seq + 1)


async def test_a_search_is_by_meaning_too_where_there_is_an_embedder(
    passages: MemoryPassages, ann: Agent, store: Store
) -> None:
    await save(passages, ann, "The feline sleeps.")
    await save(passages, ann, "Rome is old.")
    while await store.search_index.advance(ann.id):
        pass
    axis = {"feline": 0, "Rome": 1}
    data = {word: b"".join(pack("<f", float(n == place)) for n in range(2)) for word, place in axis.items()}
    feline, rome = [view.passage.seq for view in await passages.list_page(ann, ANY, OLDEST_FIRST)]
    await store.database.write(store.vectors.make_begin_effect(ann.id, "m"))
    found = await store.vectors.find_unembedded(ann.id, "m")
    assert found is not None
    await store.database.write(
        store.vectors.make_add_effect(found, {feline: data["feline"], rome: data["Rome"]})
    )
    asked: list[str] = []

    async def embed(agent_rows: Sequence[int], query: str, wait_ms: float) -> Vector | None:
        asked.append(query)
        return Vector("m", data["feline"], 0.0, 0.1)

    assert await search(passages, ann, "cat", ANY) == []
    found_by_meaning = await search(MemoryPassages(store, embed), ann, "cat", ANY)
    assert texts(found_by_meaning)[0] == "The feline sleeps."
    assert asked == ["cat"]


async def attach_folder(store: Store, agent: Agent, name: str) -> int:
    memory = draft_memory(store, PROJECT, DefinitionKind.FOLDER)
    _, made = await store.definitions.create_memory(memory, DefinitionKind.FOLDER, name, {}, at=1.0)
    await store.attached.attach(agent.id, DefinitionKind.FOLDER, made.memory_row, at=1.0)
    return made.memory_row


async def test_a_search_of_several_memories_has_its_question_embedded_once(
    archives: Archives, ann: Agent, store: Store
) -> None:
    asked: list[Sequence[int]] = []

    async def embed(agent_rows: Sequence[int], query: str, wait_ms: float) -> None:
        asked.append(agent_rows)

    bob = (await make_agent(store, "bob")).agent
    _, one = await shared(store, archives, ann, name="one")
    _, two = await shared(store, archives, ann, name="two")
    folders = [await attach_folder(store, bob, name) for name in ("notes", "more")]
    await search(MemoryPassages(store, embed), ann, "cat", ANY)
    await MessageSearch(store, AgentMessages(store, Clock()), embed).search([ann, bob], "cat")
    await FileTools(store, bob, Children(), embed).run("semantic_search_files", {"query": "cat"})
    assert asked == [[ann.id, one.id, two.id], [ann.id, bob.id], folders]
