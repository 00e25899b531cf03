"""`recall_memory` and `search_memory`: one search of messages, facts, passages and archives, within a second."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.run.tools import searches
from gateway.run.tools.searches import INCOMPLETE
from storage.errors import StoreTimeout, StoreUnavailable
from storage.records import Agent
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import Call, Gate, StrictUpstream, call_tools, say


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def agent(world: LettaWorld) -> Any:
    return world.agent(name="vera", tools=["recall_memory", "search_memory", "archival_memory_search"])


def shared(world: LettaWorld, agent: Any, name: str, *texts: str) -> Any:
    made = world.letta.archives.create(name=name)
    for text in texts:
        world.letta.archives.passages.create(made.id, text=text, tags=["t"])
    world.letta.agents.archives.attach(made.id, agent_id=agent.id)
    return made


def ask(world: LettaWorld, agent: Any, tool: str, **arguments: Any) -> str:
    """Returns the result that the model reads."""
    world.upstream.queue(call_tools(Call(tool, arguments)), say("Well."))
    world.letta.agents.messages.create(agent.id, input="Look it up.")
    return str(world.upstream.last.messages[-1]["content"])


def hold(world: LettaWorld, name: str, gate: Gate | None = None, error: Exception | None = None) -> None:
    """Makes a search wait, or fail."""
    recall = world.world.store.recall

    async def instead(*_: Any, **__: Any) -> Any:
        if gate is not None:
            await gate.wait(None)
        if error is not None:
            raise error

    object.__setattr__(recall, name, instead)


def make_late(world: LettaWorld, late: Collection[str]) -> None:
    """Has the searches of some archives and folders end too late. late: their ids, which may change."""
    recall = world.world.store.recall
    passages = recall.search_passages

    async def passages_of(memory: Agent, *args: Any, **options: Any) -> Any:
        if any(id.endswith(memory.uid) for id in late):
            raise StoreTimeout("the search did not end in time")
        return await passages(memory, *args, **options)

    object.__setattr__(recall, "search_passages", passages_of)


FOUND = {
    "recall_memory": {"query": "boat"},
    "search_memory": {"convo_keyword_queries": ["boat"]},
    "archival_memory_search": {"query": "boat"},
}


@pytest.mark.parametrize("tool", FOUND)
def test_a_search_finds_entries_of_all_kinds(world: LettaWorld, tool: str) -> None:
    made = agent(world)
    world.letta.agents.messages.create(made.id, input="My boat is red.")
    world.letta.agents.passages.create(made.id, text="The boat was built in 1954.")
    shared(world, made, "one", "A boat needs a name, says the harbour.", "Rome is old.")
    shared(world, made, "two", "Each boat pays for its berth in May.")
    found = ask(world, made, tool, **FOUND[tool])
    has_messages = tool != "archival_memory_search"
    assert ("My boat is red" in found) is has_messages
    for text in ("built in 1954", "A boat needs a name", "pays for its berth"):
        assert text in found
    assert "Rome" not in found
    assert INCOMPLETE not in found


def test_another_agents_archives_are_not_searched(world: LettaWorld) -> None:
    made, other = agent(world), world.agent()
    shared(world, other, "theirs", "Their boat is green.")
    assert ask(world, made, "recall_memory", query="boat") == "Nothing was found."


@pytest.mark.parametrize("tool", FOUND)
def test_a_passage_is_found_with_its_tags(world: LettaWorld, tool: str) -> None:
    made = agent(world)
    shared(world, made, "one", "A boat needs a name.")
    world.letta.agents.passages.create(made.id, text="The boat is red.", tags=["boats", "colours"])
    world.letta.agents.passages.create(made.id, text="The boat is old.")
    lines = {line.partition("] ")[2] for line in ask(world, made, tool, **FOUND[tool]).splitlines()}
    assert lines == {
        "A boat needs a name. (tags: t)", "The boat is red. (tags: boats, colours)", "The boat is old."
    }  # fmt: skip


def test_tags_hold_for_archives_too(world: LettaWorld) -> None:
    made = agent(world)
    shared(world, made, "one", "A boat needs a name.")
    assert "name" in ask(world, made, "archival_memory_search", query="boat", tags=["t"])
    assert ask(world, made, "archival_memory_search", query="boat", tags=["x"]) == "Nothing was found."


@pytest.mark.parametrize(
    ("slow", "left"), [("search_passages", "My boat is red"), ("search", "A boat needs a name")]
)
def test_a_slow_source_is_left_out_and_the_result_says_so(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, slow: str, left: str
) -> None:
    made = agent(world)
    world.letta.agents.messages.create(made.id, input="My boat is red.")
    shared(world, made, "one", "A boat needs a name.")
    monkeypatch.setattr(searches, "SEARCH_MS", 200.0)
    hold(world, slow, Gate())
    found = ask(world, made, "recall_memory", query="boat")
    assert left in found
    assert found.endswith(INCOMPLETE)


@pytest.mark.parametrize("tool", FOUND)
def test_an_archive_that_is_slow_takes_nothing_from_the_others(world: LettaWorld, tool: str) -> None:
    made = agent(world)
    world.letta.agents.passages.create(made.id, text="The boat was built in 1954.")
    slow = shared(world, made, "one", "A boat needs a name, says the harbour.")
    shared(world, made, "two", "Each boat pays for its berth in May.")
    make_late(world, {slow.id})
    found = ask(world, made, tool, **FOUND[tool])
    assert "built in 1954" in found
    assert "pays for its berth" in found
    assert "harbour" not in found
    assert found.endswith(INCOMPLETE)


def test_where_nothing_can_be_searched_it_is_an_error(world: LettaWorld) -> None:
    made = agent(world)
    world.letta.agents.messages.create(made.id, input="My boat is red.")
    shared(world, made, "one", "A boat needs a name.")
    for name in ("search", "search_passages"):
        hold(world, name, error=StoreUnavailable("the disk is gone"))
    assert ask(world, made, "recall_memory", query="boat").startswith("Error: memory cannot be searched")


def test_a_text_of_the_same_run_is_found_even_if_no_search_is_possible(world: LettaWorld) -> None:
    agent = world.agent(tools=["archival_memory_insert", "archival_memory_search"])
    hold(world, "search_passages", error=StoreUnavailable("the disk is gone"))
    keep = Call("archival_memory_insert", {"content": "The boat is red."})
    look = Call("archival_memory_search", {"query": "boat"})
    world.upstream.queue(call_tools(keep, look), say("Well."))
    world.letta.agents.messages.create(agent.id, input="Keep it.")
    found = world.upstream.last.messages[-1]["content"]
    assert found.splitlines() == ["- The boat is red.", INCOMPLETE]


def test_no_search_goes_on_after_the_second(world: LettaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent(world)
    world.letta.agents.messages.create(made.id, input="My boat is red.")
    monkeypatch.setattr(searches, "SEARCH_MS", 100.0)
    ended = Gate()

    async def late(*_: Any, **__: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.open()

    object.__setattr__(world.world.store.recall, "search", late)
    assert ask(world, made, "recall_memory", query="boat").startswith("Error")
    assert ended.is_open


def test_text_that_an_application_adds_is_not_recalled(world: LettaWorld) -> None:
    agent = world.agent(name="vera")

    def send(n: int, text: str) -> str:
        """Says it as Letta Code does. Returns what goes to the model of it."""
        told = (
            f"<system-reminder>\nThe directory is violin{n}.\nThe shell is zsh {n}.\n</system-reminder>\n\n"
        )
        parts = [{"type": "text", "text": told}, {"type": "text", "text": text}]
        conversation = world.letta.conversations.create(agent_id=agent.id).id
        with world.letta.conversations.messages.create(
            conversation, messages=[{"role": "user", "content": parts}]
        ) as events:
            list(events)
        return "".join(part["text"] for part in world.upstream.last.messages[-1]["content"])

    send(1, "My violin is from Cremona.")
    sent = send(2, "Where is my violin from?")
    assert "user: My violin is from Cremona.\n" in sent
    assert "zsh 1" not in sent
    assert "zsh 2" in sent
