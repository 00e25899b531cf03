"""A window that has a most of messages: it begins again above that, and what fell out is summarised and found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.agents.registry.registry import AgentEdit
from tests.agents.test_chat import STORED, make
from tests.doubles.upstream import Call, StrictUpstream, UpstreamRequest, call_tools, say
from tests.gateway.compacting import Notes, compacted
from tests.gateway.sdk import Chat, World, agent, prefix_bytes, remember

MAX_MESSAGES, MIN_MESSAGES = 10, 5
SEARCH = Call("conversation_search", {"query": "boat"})


@pytest.fixture
def quiet(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    """Nothing is summarised here, and no note says anything."""
    memory = {"background_model": "none", "recall_tokens": 0}
    with remember(upstream, tmp_path, agent(), memory=memory) as made:
        yield made


@pytest.fixture
def notes(upstream: StrictUpstream) -> Notes:
    return Notes(upstream)


@pytest.fixture
def world(upstream: StrictUpstream, notes: Notes, tmp_path: Path) -> Iterator[World]:
    memory = {"background_model": "small", "recall_tokens": 0, "learn_every": 0}
    with remember(upstream, tmp_path, agent(), memory=memory) as made:
        yield made


def bounded(world: World, headers: dict[str, str], **fields: Any) -> Chat:
    make(world, "vera", most_messages=MAX_MESSAGES, least_messages=MIN_MESSAGES, **fields)
    return world.chat(model="agent/vera", headers=headers)


def talk(chat: Chat, turns: int, start: int = 0) -> list[UpstreamRequest]:
    seen = []
    for n in range(start, start + turns):
        chat.say(f"Message {n} is about " + " ".join(f"word{n}x{k}" for k in range(12)))
        seen.append(next(s for s in reversed(chat.world.upstream.requests) if s.json["model"] != "small"))
        compacted(chat.world)
    return seen


def spoken(request: UpstreamRequest) -> list[Any]:
    return [m for m in request.messages if m["role"] != "system"]


def breaks(request: list[UpstreamRequest]) -> list[int]:
    """Numbers of the requests that do not go on from the one before them."""
    pairs = enumerate(itertools.pairwise(request), 1)
    return [n for n, (one, two) in pairs if not prefix_bytes(two).startswith(prefix_bytes(one))]


ways = pytest.mark.parametrize("headers", [{}, STORED], ids=["its own", "default"])


@ways
def test_above_the_limit_the_window_starts_over_and_then_stays(quiet: World, headers: dict[str, str]) -> None:
    seen = talk(bounded(quiet, headers), 16)
    counts = [len(spoken(each)) for each in seen]
    # 11 are too many: it begins with the newest of the user's messages that leaves 5.
    assert counts == [1, 3, 5, 7, 9, 5, 7, 9, 5, 7, 9, 5, 7, 9, 5, 7]
    assert all(spoken(each)[0]["role"] == "user" for each in seen)
    assert breaks(seen) == [5, 8, 11, 14]


@ways
def test_messages_that_leave_the_buffer_are_summarised_before_and_break_the_prefix_once(
    world: World, notes: Notes, headers: dict[str, str]
) -> None:
    seen = talk(bounded(world, headers), 16)
    assert max(len(spoken(each)) for each in seen) <= MAX_MESSAGES
    assert min(len(spoken(each)) for each in seen[5:]) >= MIN_MESSAGES
    found = breaks(seen)
    assert min(after - before for before, after in itertools.pairwise(found)) > 1
    # Whatever is not in the window is in a summary.
    asked = "".join(str(each.messages) for each in notes.asked)
    for n in range(16):
        text = f"Message {n} is about"
        assert any(text in str(m["content"]) for m in spoken(seen[-1])) or text in asked
    assert "Notes " in str(seen[-1].messages[0]["content"])


def test_messages_that_left_the_buffer_are_still_found(quiet: World) -> None:
    chat = bounded(quiet, STORED)
    chat.say("My boat is called Albatross.")
    talk(chat, 8)
    assert "Albatross" not in str(quiet.upstream.last.messages)
    quiet.upstream.queue(call_tools(SEARCH), say("It is Albatross."))
    chat.say("What is my boat called?")
    assert "Albatross" in quiet.upstream.last.messages[-1]["content"]


def test_a_turn_is_not_taken_apart(quiet: World) -> None:
    chat = bounded(quiet, STORED)
    quiet.upstream.queue(*[call_tools(SEARCH)] * 8, say("Done."))
    chat.say("Search again and again.")
    assert [m["role"] for m in spoken(quiet.upstream.last)] == ["user", *["assistant", "tool"] * 8]
    (last,) = talk(chat, 1)
    assert [m["role"] for m in spoken(last)][:2] == ["user", "assistant"]
    assert len(talk(chat, 2)[-1].messages) - 1 <= MAX_MESSAGES


def test_a_larger_model_does_not_bring_back_what_left(quiet: World) -> None:
    made = make(quiet, "vera", most_messages=MAX_MESSAGES, least_messages=MIN_MESSAGES, context_window=8_000)
    chat = quiet.chat(model="agent/vera", headers=STORED)
    before = talk(chat, 6)[-1]
    registry: Any = quiet.gateway.app.services.agents.registry
    change = AgentEdit(edit_definition=lambda d: replace(d, context_window=None))
    quiet.gateway.call(registry.change("default", made.agent.uid, change))
    after = talk(chat, 1, 6)[-1]
    assert spoken(after)[: len(spoken(before))] == spoken(before)


def test_other_agents_have_no_such_limit(quiet: World) -> None:
    make(quiet, "ann")
    assert len(spoken(talk(quiet.chat(model="agent/ann"), 20)[-1])) == 39
