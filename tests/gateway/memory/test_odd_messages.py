"""Messages with fields of any type, of clients and of upstreams: chat, recall, lists and copies go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.conversation.wire_message import PRIVATE
from tests.agents.letta import LettaWorld, letta
from tests.doubles.upstream import StrictUpstream, raw
from tests.gateway.sdk import agent

pytestmark = pytest.mark.agents


ODD: list[dict[str, Any]] = [
    {"refusal": 7, "content": None},
    {"tool_calls": 7},
    {
        "tool_calls": [
            7,
            {"id": ["a"], "function": {"name": {"b": 1}, "arguments": {"c": 1}}},
            {"function": "x"},
        ]
    },
    {"tool_call_id": ["a"], "name": 7, "reasoning": [1]},
    {"thinking_blocks": True, "reasoning_details": 7, "reasoning_content": {}},
    # What the gateway notes of a message is nobody else's to say.
    {PRIVATE: {"fillers": [[5]], "said": "x", "asides": 7, "filler": 7}},
    {PRIVATE: {"fillers": 7}},
]


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LettaWorld]:
    # As local servers do, it takes what a client sends.
    monkeypatch.setattr("tests.doubles.upstream.check_chat", lambda *_: None)
    with letta(upstream, tmp_path, agent()) as made:
        yield made


def whole(message: dict[str, Any]) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return orjson.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: " ".join(odd))
@pytest.mark.parametrize("of", ["assistant", "tool", "the reply"])
def test_a_memory_is_read_whatever_shape_its_messages_have(
    world: LettaWorld, odd: dict[str, Any], of: str
) -> None:
    strange = {"role": "assistant", "content": "My cat is called Miso.", **odd}
    messages = [{"role": "user", "content": "Hello"}]
    if of == "the reply":
        world.upstream.queue(raw(whole(strange), content_type="application/json"))
    else:
        messages += [{**strange, "role": of}, {"role": "user", "content": "And so on."}]
    reply = world.world.post(messages, user="alice", model="agent/helper")
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on")
    memory = f"agent-{reply.headers['x-mnemogate-agent']}"
    world.world.settle()
    for path in (f"/v1/agents/{memory}/messages", "/v1/messages/", f"/v1/agents/{memory}/export"):
        status, found = world.ask("GET", path)
        assert status == 200, found
    reply = world.world.post(
        [{"role": "user", "content": "What is my cat called, Miso?"}], user="alice", model="agent/helper"
    )
    assert "x-mnemogate-recall" not in reply.headers
    assert [
        row for row in world.world.query("SELECT shown_reply FROM exchanges") if PRIVATE.encode() in row
    ] == []
    assert [row for row in world.world.query("SELECT input FROM exchanges") if PRIVATE.encode() in row] == []


def test_a_run_ends_whatever_shape_its_reply_has(world: LettaWorld) -> None:
    agent = world.agent()
    for odd in ODD:
        message = {"role": "assistant", "content": "Ok.", **odd}
        world.upstream.queue(raw(whole(message), content_type="application/json"))
        status, found = world.ask("POST", f"/v1/agents/{agent.id}/messages", {"input": "Hello"})
        assert status in (200, 502), found
    assert world.ask("GET", f"/v1/agents/{agent.id}/messages")[0] == 200


def test_a_part_with_a_number_for_its_text_is_remembered(world: LettaWorld) -> None:
    odd = [{"type": "text", "text": "What is my cat called?"}, {"type": "text", "text": 7}]
    for content in ("My cat is called Miso.", odd):
        reply = world.world.post([{"role": "user", "content": content}], user="alice", model="agent/helper")
        assert (reply.status, reply.headers["x-mnemogate-memory"]) == (200, "on")
        assert "x-mnemogate-durable" not in reply.headers
    assert world.world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [2]
