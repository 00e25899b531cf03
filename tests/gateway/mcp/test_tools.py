"""The seven tools over HTTP, by the official client: a person's memory, shared with the application."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from gateway.core.memory.mcp_tools import TOOLS
from gateway.run.admin.mcp import mcp_tool_calls
from gateway.run.memory.turn_writer import INDEX_EVERY
from storage.records import Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.mcp.client import ERAS, Tools, opened, session, value_of
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes

ALICE = {"x-mnemogate-user": "alice"}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    server = {"mcp": True}
    with remember(upstream, tmp_path, agent(), server=server, admin_token="the-owner") as made:
        yield made


def tools(world: World, user: str = "alice", mode: str = "auto", **headers: str) -> Tools:
    return Tools(
        world.gateway.url, {"x-mnemogate-user": user, "x-mnemogate-agent": "helper", **headers}, mode
    )


def speak(world: World, text: str, user: str = "alice", **headers: str) -> str:
    reply = world.post(
        [{"role": "user", "content": text}], {"x-mnemogate-agent": "helper", **headers}, user=user
    )
    assert reply.status == 200, reply.body
    world.settle()
    return str(world.upstream.last.messages[-1]["content"])


def shown(world: World) -> str:
    """Returns what `memory show --why` prints of alice."""
    operations = world.gateway.ask(
        "POST",
        "/admin/memory-show",
        b'{"project": "default", "profile": "helper", "user": "alice", "why": true}',
        {"x-mnemogate-admin": "the-owner"},
    )
    assert operations.status == 200, operations.body
    return str(operations.json)


@pytest.mark.parametrize("mode", ERAS)
def test_the_tools_are_listed_with_schemas_and_hints(world: World, mode: str) -> None:
    async def list_tools(client: Client) -> Any:
        return (await client.list_tools()).tools

    found = session(f"{world.gateway.url}/mcp", {}, list_tools, mode)
    assert [each.name for each in found] == list(TOOLS)
    for each in found:
        assert each.input_schema["type"] == each.output_schema["type"] == "object"
        assert "$ref" not in str(each)
    hints = {
        each.name: (each.annotations.read_only_hint, each.annotations.destructive_hint) for each in found
    }
    reading = ("memory_search", "memory_read", "conversation_read")
    assert hints == {name: (name in reading, name == "memory_forget") for name in TOOLS}


def test_a_fact_is_recalled_in_the_next_turn_and_says_where_it_came_from(world: World) -> None:
    made = tools(world, mode="legacy").ask("memory_remember", text="My  cat is called Miso.")
    assert (made["known"], made["muted"]) == (False, False)
    assert tools(world).ask("memory_remember", text="My cat is called Miso") == {**made, "known": True}
    assert "My cat is called Miso." in speak(world, "What is my cat called?")
    assert "My cat is called Miso." not in speak(world, "What is my cat called?", user="bob")
    assert shown(world).count("through MCP (Editor 1.2)") == 1
    fact = tools(world).ask("memory_read")["facts"]
    assert [(f["id"], f["text"]) for f in fact] == [(made["id"], "My cat is called Miso.")]


def test_facts_are_indexed_without_a_turn(world: World) -> None:
    mine, last = tools(world), "The cow eats clover."

    async def remember_many(client: Client) -> None:
        for text in (*(f"Fact number {n}." for n in range(99)), last):
            await client.call_tool("memory_remember", {"text": text})

    session(mine.url, mine.headers, remember_many)
    search_index = world.store.search_index
    becomes(lambda: world.gateway.call(search_index.find_lagging_agents(INDEX_EVERY, 100)) == [])
    assert last in [each["text"] for each in mine.ask("memory_search", query="cow clover")["results"]]


@pytest.mark.both
def test_messages_are_found_and_read(world: World) -> None:
    chat = world.chat(
        user="alice", headers={"x-mnemogate-agent": "helper", "x-mnemogate-conversation": "talk"}
    )
    for n in range(3):
        chat.say(f"Message {n} about the garden in Lisbon.")
    world.settle()
    mine = tools(world)
    mine.ask("memory_remember", text="The garden has roses.")
    found = mine.ask("memory_search", query="garden", limit=20)
    assert found["late"] is False
    assert {each["kind"] for each in found["results"]} == {"message", "fact"}
    message = next(each for each in found["results"] if each["kind"] == "message")
    assert message["role"] == "user"
    assert message["at"].startswith("2025-")
    assert {e["kind"] for e in mine.ask("memory_search", query="garden", kinds=["fact"])["results"]} == {
        "fact"
    }
    assert mine.ask("memory_search", query="garden", before="2020-01-01")["results"] == []
    assert mine.ask("memory_search", query="garden", after="2025-01-01T00:00:00Z")["results"] != []
    (talk,) = mine.ask("conversation_read")["conversations"]
    assert talk["messages"] == 6
    whole = mine.ask("conversation_read", conversation=talk["id"])
    assert [m["role"] for m in whole["messages"]] == ["user", "assistant"] * 3
    around = mine.ask("conversation_read", around=whole["messages"][2]["id"], limit=3)
    assert around == {"conversation": talk["id"], "messages": whole["messages"][1:4]}
    assert mine.ask("memory_read")["conversations"] == 1


def test_muted_facts_take_no_place_of_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_tool_calls, "MAX_FACTS", 2)
    mine = tools(world)
    made = [
        mine.ask("memory_remember", text=f"Likes {what}.")["id"] for what in ("tea", "jazz", "rain", "fog")
    ]

    async def mute(seq: int) -> None:
        memory = await world.store.agents.find(Scope("default", "helper", "user:alice"))
        assert memory is not None
        await world.store.facts.mute(memory.id, seq, world.clock(), is_muted=True)

    for id in made[2:]:
        world.gateway.call(mute(int(id.removeprefix("fact:"))))
    assert [f["text"] for f in mine.ask("memory_read")["facts"]] == ["Likes jazz.", "Likes tea."]
    again = mine.ask("memory_remember", text="Likes fog.")
    assert again == {"id": made[3], "known": True, "muted": True}
    assert [f["text"] for f in mine.ask("memory_read")["facts"]] == ["Likes jazz.", "Likes tea."]


@pytest.mark.both
def test_facts_and_blocks_are_changed_with_their_history(world: World) -> None:
    mine = tools(world)
    old = mine.ask("memory_remember", text="Works at Initech.")["id"]
    new = mine.ask("memory_correct", id=old, text="Works at Globex.")
    assert new["replaces"] == old
    assert [f["text"] for f in mine.ask("memory_read")["facts"]] == ["Works at Globex."]
    assert "no longer true" in mine.fail("memory_correct", id=old, text="Works at Hooli.")
    (block,) = mine.ask("memory_read")["blocks"]
    assert (block["label"], block["value"]) == ("human", "")
    edit = mine.ask("memory_edit_block", label="human", value="Name: Alice", version=block["version"])
    assert edit == {"label": "human", "version": block["version"] + 1}
    failed = mine.fail("memory_edit_block", label="human", value="Name: Bob", version=block["version"])
    assert "Name: Alice" in failed
    assert "Name: Bob" not in failed
    assert "characters at most" in mine.fail("memory_edit_block", label="human", value="x" * 9999, version=2)
    said = shown(world)
    assert said.count("through MCP (Editor 1.2)") == 3
    assert "until" in said


@pytest.mark.both
def test_forgetting_takes_two_calls(world: World) -> None:
    speak(world, "My secret word is Zqmisox.")
    mine = tools(world)
    fact = mine.ask("memory_remember", text="Likes tea.")["id"]
    (found,) = mine.ask("memory_search", query="Zqmisox", kinds=["message"], limit=1)["results"]
    first = mine.ask("memory_forget", id=found["id"])
    assert (first["forgotten"], first["goes"]["messages"]) == (False, 1)
    assert mine.ask("memory_search", query="Zqmisox")["results"] != []
    for wrong in ("yes", "0-0", mine.ask("memory_forget", id=fact)["confirm"], "ff-é"):
        assert "confirm" in mine.fail("memory_forget", id=found["id"], confirm=wrong)
    assert "not found" in tools(world, "bob").fail("memory_forget", id=found["id"], confirm=first["confirm"])
    done = mine.ask("memory_forget", id=found["id"], confirm=first["confirm"])
    assert done == {"forgotten": True, "goes": first["goes"]}
    assert mine.ask("memory_search", query="Zqmisox")["results"] == []
    assert "not found" in mine.fail("memory_forget", id=found["id"], confirm=first["confirm"])
    word = mine.ask("memory_forget", id=fact)["confirm"]
    world.clock.sleep(301)
    assert "older than five minutes" in mine.fail("memory_forget", id=fact, confirm=word)
    assert "Likes tea." in str(mine.ask("memory_read"))


def test_ids_of_others_are_not_found(world: World) -> None:
    speak(world, "The garden is in Lisbon.", **{"x-mnemogate-conversation": "talk"})
    mine, others = tools(world), tools(world, "bob")
    fact = mine.ask("memory_remember", text="Alice likes tea.")["id"]
    (talk,) = mine.ask("conversation_read")["conversations"]
    (first, *_) = mine.ask("conversation_read", conversation=talk["id"])["messages"]
    for _ in range(2):  # without a memory, and with one
        assert (
            others.ask("memory_search", query="tea Lisbon")["results"]
            == others.ask("memory_read")["facts"]
            == []
        )
        assert "not found" in others.fail("memory_correct", id=fact, text="Alice likes coffee.")
        assert "not found" in others.fail("memory_forget", id=fact)
        assert "not found" in others.fail("conversation_read", conversation=talk["id"])
        # Numbers are each memory's own: of bob's there is none yet, and then one that is his.
        assert "Lisbon" not in str(others.call("conversation_read", around=first["id"]))
        speak(world, "Hello.", user="bob")
    assert [f["text"] for f in mine.ask("memory_read")["facts"]] == ["Alice likes tea."]


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("memory_search", {}, "query"),
    ("memory_search", {"query": "  "}, "query"),
    ("memory_search", {"query": "x" * 1001}, "query"),
    ("memory_search", {"query": 3}, "query"),
    ("memory_search", {"query": "x", "limit": 0}, "limit"),
    ("memory_search", {"query": "x", "limit": 21}, "limit"),
    ("memory_search", {"query": "x", "limit": "5"}, "limit"),
    ("memory_search", {"query": "x", "kinds": ["word"]}, "kinds"),
    ("memory_search", {"query": "x", "kinds": []}, "kinds"),
    ("memory_search", {"query": "x", "after": "yesterday"}, "after"),
    ("memory_search", {"query": "x", "before": "99999-01-01"}, "before"),
    ("memory_search", {"query": "x", "user": "bob"}, "user"),
    ("memory_read", {"user": "bob"}, "user"),
    ("conversation_read", {"around": "fact:1"}, "around"),
    ("conversation_read", {"limit": 51}, "limit"),
    ("memory_remember", {"text": " \n "}, "text"),
    ("memory_remember", {"text": "x" * 2001}, "text"),
    ("memory_remember", {"text": {"a": 1}}, "text"),
    ("memory_correct", {"id": "message:1", "text": "x"}, "id"),
    ("memory_correct", {"id": "fact:1 OR 1=1", "text": "x"}, "id"),
    ("memory_edit_block", {"label": "human", "value": "x", "version": -1}, "version"),
    ("memory_edit_block", {"label": "human", "value": "x", "version": 2**63}, "version"),
    ("memory_edit_block", {"label": "nothing", "value": "x", "version": 1}, "label"),
    ("memory_edit_block", {"label": "human", "value": "x", "version": 1}, "label"),
    ("memory_forget", {"id": "fact:0"}, "id"),
    ("memory_forget", {"id": "fact:" + "9" * 40}, "id"),
    ("memory_forget", {"id": "fact:1\n"}, "id"),
]


def test_a_bad_argument_is_named_and_nothing_is_written(world: World) -> None:
    async def attack(client: Client) -> list[tuple[bool, str]]:
        found = []
        for tool, arguments, _ in HOSTILE:
            result = await client.call_tool(tool, arguments)
            found.append((result.is_error, result.content[0].text))  # type: ignore[union-attr]
        return found

    answers = session(f"{world.gateway.url}/mcp", {**ALICE, "x-mnemogate-agent": "helper"}, attack)
    for (tool, arguments, name), (is_error, said) in zip(HOSTILE, answers, strict=True):
        assert is_error, (tool, arguments)
        assert name in said or (name == "text" and "fact has 1 to" in said), (tool, arguments, said)
    assert tools(world).ask("memory_read")["facts"] == []
    assert world.query("SELECT count(*) FROM agents") == [0]  # no call has begun a memory


def test_odd_texts_are_stored_as_every_database_stores_them(world: World) -> None:
    mine = tools(world)
    mine.ask("memory_remember", text="Odd: \u0000 \U0001f600 ' \" ; -- <b> مرحبا")
    (fact,) = mine.ask("memory_read")["facts"]
    assert fact["text"] == "Odd: \U0001f600 ' \" ; -- <b> مرحبا"


def test_one_of_several_edits_at_once_counts(world: World) -> None:
    tools(world).ask("memory_remember", text="Likes tea.")
    (block,) = tools(world).ask("memory_read")["blocks"]

    async def storm() -> list[Any]:
        headers = {**ALICE, "x-mnemogate-agent": "helper"}
        async with opened(f"{world.gateway.url}/mcp", headers) as client:
            given = {"label": "human", "version": block["version"]}
            edits = [client.call_tool("memory_edit_block", {**given, "value": f"v{n}"}) for n in range(8)]
            facts = [client.call_tool("memory_remember", {"text": "Has a cat."}) for _ in range(8)]
            return await asyncio.gather(*edits, *facts)

    results = asyncio.run(storm())
    edits, facts = results[:8], results[8:]
    assert sorted(result.is_error for result in edits) == [False] + [True] * 7
    assert len({value_of(result)["id"] for result in facts}) == 1
    assert [value_of(result)["known"] for result in facts].count(False) == 1
