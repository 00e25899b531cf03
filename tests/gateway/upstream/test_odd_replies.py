"""Replies in forms that strict readers refuse are read, and what cannot be read is an error: no text is lost unseen."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest

from gateway.run.turn import TurnRun
from tests.doubles.upstream import Reply, StrictUpstream, raw, say
from tests.gateway.messages.sdk import Talk
from tests.gateway.sdk import World, agent, remember
from tests.patience import becomes
from tests.server import chat_upstreams

CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"


def event(delta: Any, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % orjson.dumps({**CHUNK, "choices": [choice], **fields})


def whole(**fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "So it is."}, "finish_reason": "stop"}
    return json.dumps({**CHUNK, "object": "chat.completion", "choices": [choice], **fields}).encode()


SO, IT, END = event({"role": "assistant", "content": "So "}), event({"content": "it is."}), event({}, "stop")
STREAMS = {
    "the last event lacks its blank line": (SO, IT, END[:-2]),
    "the last event lacks a line end": (SO, IT, END[:-1]),
    "two events lack the blank line between them": (SO[:-1] + IT, END, DONE),
    "the last two lack the blank line between them": (SO, IT, END[:-1] + DONE),
    "NaN": (SO.replace(b'"created":1', b'"created":NaN'), IT, END, DONE),
    "half a character of UTF-8": (SO.replace(b'"m"', b'"\xf0\x9f"'), IT, END, DONE),
    "a control character": (SO.replace(b'"m"', b'"m\t"'), IT, END, DONE),
    "the index of a choice is a text": tuple(
        each.replace(b'"index":0', b'"index":"0"') for each in (SO, IT, END, DONE)
    ),
    "messages in place of deltas": (b"data: " + whole() + b"\n\n", DONE),
    "a body under the type of a stream": (whole(),),
    "the whole reply once more, with its usage": (
        SO,
        IT,
        END,
        b"data: " + whole(usage=USAGE) + b"\n\n",
        DONE,
    ),
    "its end in the whole reply alone": (SO, IT, b"data: " + whole(usage=USAGE) + b"\n\n"),
}
BODIES = {
    "the index of a choice is a text": whole().replace(b'"index": 0', b'"index": "0"'),
    "a byte order mark": BOM + whole(),
    "NaN and infinity": whole(created=float("nan"), service_tier=float("-inf")),
    "NaN and an escape of half a character": whole(created=float("nan"), service_tier="\ud83d"),
    "half a character of UTF-8": whole().replace(b'"m"', b'"\xf0\x9f"'),
}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path) as world:
        yield world


def test_a_stream_in_an_odd_form_is_read(world: World, upstream: StrictUpstream) -> None:
    """As a message, and remembered: the next request of append mode has its text."""
    for name, pieces in STREAMS.items():
        upstream.queue(raw(*pieces))
        assert Talk(world, user=name, stream=True).say("Hi") == "So it is.", name
        assert remembered(world, name, raw(*pieces), stream=True) == "So it is.", name


def test_a_body_in_an_odd_form_is_read(world: World, upstream: StrictUpstream) -> None:
    for name, body in BODIES.items():
        reply = raw(body, content_type="application/json")
        upstream.queue(reply)
        assert Talk(world, user=name).say("Hi") == "So it is.", name
        assert remembered(world, name, reply, stream=False) == "So it is.", name


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_left_of_a_turn_whose_reply_broke(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    """Without a search for cycles, which may be long in coming: a request and its reply may have hundreds of MB."""
    upstream.queue(say("So it is.", cut_before_headers=True), say("So it is.", cut_after=1))
    gc.collect()
    gc.disable()
    try:
        for name in ("no reply", "half a reply"):
            reply = world.post([{"role": "user", "content": "Hi"}], user=name, stream=stream)
            assert b"upstream_" in reply.body, name
            becomes(lambda: not [each for each in gc.get_objects() if isinstance(each, TurnRun)])
    finally:
        gc.enable()


@pytest.mark.parametrize("ends", [True, False])
def test_a_call_that_comes_once_more_with_the_whole_reply_is_one(
    upstream: StrictUpstream, tmp_path: Path, ends: bool
) -> None:
    """MiniMax's streams end so."""
    edit = {"name": "memory_insert", "arguments": '{"label": "human", "new_string": "Likes tea."}'}
    call = {"id": "c1", "type": "function", "function": edit}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    last = orjson.dumps({**CHUNK, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    piece = event({"role": "assistant", "content": "", "tool_calls": [{**call, "index": 0}]})
    end = [event({}, "tool_calls")] if ends else []
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(raw(piece, *end, b"data: %b\n\n" % last), raw(SO, IT, END, DONE))
        hello = [{"role": "user", "content": "I like tea."}]
        reply = world.post(hello, user="alice", model="agent/helper", stream=True)
        assert b"it is." in reply.body
        assert b"memory_insert" not in reply.body
        *_, made, result = upstream.last.messages
        assert (made["tool_calls"], result["tool_call_id"]) == ([call], "c1")


@pytest.mark.parametrize("ends", [True, False])
def test_a_call_that_comes_with_the_whole_reply_alone_is_made(
    upstream: StrictUpstream, tmp_path: Path, ends: bool
) -> None:
    edit = {"name": "memory_insert", "arguments": '{"label": "human", "new_string": "Likes tea."}'}
    call = {"id": "c1", "type": "function", "function": edit}
    message = {"role": "assistant", "content": "So ", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    last = orjson.dumps({**CHUNK, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    end = [event({}, "tool_calls")] if ends else []
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(raw(SO, *end, b"data: %b\n\n" % last, DONE), raw(IT, END, DONE))
        hello = [{"role": "user", "content": "I like tea."}]
        reply = world.post(hello, user="alice", model="agent/helper", stream=True)
        assert (reply.body.count(b"So "), reply.body.count(b"it is.")) == (1, 1)
        assert b"memory_insert" not in reply.body
        *_, made, result = upstream.last.messages
        assert (made["content"], made["tool_calls"], result["tool_call_id"]) == ("So ", [call], "c1")


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("model", ["m", "agent/helper"])
def test_a_client_gets_a_call_that_comes_with_the_whole_reply_alone(
    upstream: StrictUpstream, tmp_path: Path, model: str, ends: bool
) -> None:
    """In deltas, where clients look for it."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    message = {"role": "assistant", "content": "So ", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    last = orjson.dumps({**CHUNK, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    end = [event({}, "tool_calls")] if ends else []
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(raw(SO, *end, b"data: %b\n\n" % last, DONE))
        hello = [{"role": "user", "content": "Hi"}]
        reply = world.post(hello, user="alice", model=model, stream=True, tools=[tool])
        lines = [line[6:] for line in reply.body.splitlines() if line.startswith(b"data: {")]
        deltas = [each.get("delta", {}) for line in lines for each in json.loads(line)["choices"]]
        assert [d["tool_calls"] for d in deltas if d.get("tool_calls")] == [[{**call, "index": 0}]]
        assert "".join(d.get("content") or "" for d in deltas) == "So "


def remembered(world: World, user: str, reply: Reply, *, stream: bool) -> str:
    """Returns what a later request sends up of a reply that came as a chat completion."""
    headers = {"x-mnemogate-history": "append", "x-mnemogate-conversation": "odd"}
    world.upstream.queue(reply)
    for words in ("Hi", "And then?"):
        assert (
            world.post([{"role": "user", "content": words}], headers, user=user, stream=stream).status == 200
        )
    return str(world.upstream.last.messages[1]["content"])


def test_an_event_that_cannot_be_read_ends_a_translated_stream_with_an_error(
    world: World, upstream: StrictUpstream
) -> None:
    upstream.queue(raw(SO, IT.replace(b"}]", b""), END, DONE), raw(SO, b"data: ping\n\n", IT, END, DONE))
    with pytest.raises(anthropic.APIError, match="no JSON"):
        Talk(world, stream=True).say("Hi")
    assert Talk(world, stream=True).say("Hi") == "So it is."


FAILED = {"error": {"code": 429, "message": "Out of room"}}


@pytest.mark.parametrize("place", ["body", "choice"])
@pytest.mark.parametrize("path", ["responses", "messages"])
def test_an_error_within_a_completion_is_an_error_in_dialects_without_a_place_for_it(
    upstream: StrictUpstream, tmp_path: Path, path: str, place: str
) -> None:
    """OpenRouter's replies are so when the upstream that it chose fails in the middle."""
    in_body, in_choice = (FAILED, {}) if place == "body" else ({}, FAILED)
    choice = {"index": 0, "finish_reason": "error", **in_choice}
    message = {"role": "assistant", "content": "So"}
    body = {**CHUNK, "object": "chat.completion", "choices": [{**choice, "message": message}], **in_body}
    chunk = {**CHUNK, "choices": [{**choice, "delta": {"content": ""}}], **in_body}
    field, limit = ("input", {}) if path == "responses" else ("messages", {"max_tokens": 99})
    request = {"model": "m", **limit, field: [{"role": "user", "content": "Hi"}]}
    with remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world:
        upstream.queue(
            raw(orjson.dumps(body), content_type="application/json"),
            raw(SO, b"data: %b\n\n" % orjson.dumps(chunk), DONE),
        )
        whole_reply = world.gateway.ask("POST", f"/v1/{path}", json.dumps(request).encode())
        assert whole_reply.status == 429
        assert json.loads(whole_reply.body)["error"]["message"] == "Out of room"
        streamed = world.gateway.ask("POST", f"/v1/{path}", json.dumps({**request, "stream": True}).encode())
        last_event = json.loads(streamed.body.strip().rsplit(b"data: ", 1)[1])
        assert last_event.get("response", last_event)["error"]["message"] == "Out of room"


def test_an_application_finds_the_error_in_a_choice_of_a_chat_completion(
    world: World, upstream: StrictUpstream
) -> None:
    choice = {"index": 0, "finish_reason": "error", **FAILED}
    last = b"data: %b\n\n" % orjson.dumps({**CHUNK, "choices": [{**choice, "delta": {"content": ""}}]})
    body = whole(choices=[{**choice, "message": {"role": "assistant", "content": "So"}}])
    upstream.queue(raw(SO, last, DONE), raw(body, content_type="application/json"))
    hello = [{"role": "user", "content": "Hi"}]
    assert world.post(hello, user="alice", stream=True).body == SO + last + DONE
    reply = world.post(hello, user="bob")
    assert (reply.status, reply.body) == (200, body)
