"""Anthropic's dialect before an upstream that speaks it: what passes, and where memory goes in.

The strict upstream refuses what Anthropic refuses: unknown fields, five marks, calls without results, thoughts that
were changed, moved, or stand after something else than they were thought about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest

from gateway.settings import ModelSettings, ProfileSettings, UpstreamSettings
from storage.usage_records import UsageLimit
from tests.doubles.anthropic_rules import BINDING_BETA, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, refuse, think
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    insert,
    raw,
    say,
)
from tests.gateway.admin.test_forget import perform
from tests.gateway.messages.long_claude_conversation import converse
from tests.gateway.messages.sdk import WEATHER, Talk, calls_of, client, sent_again, text_of
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply

Json = dict[str, Any]
MODEL, BOUND = "claude-opus-4-6", "claude-opus-5-5"
MARK = {"type": "ephemeral"}
SCHEMA = {"type": "object", "additionalProperties": False}
HEADERS = {"anthropic-version": "2026-10-21", "content-type": "application/json"}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "cats"}}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [{"type": "web_search_result", "url": "https://example.com", "title": "Cats"}],
}
CITED = {
    "type": "web_search_result_location",
    "url": "https://example.com",
    "title": "Cats",
    "encrypted_index": "Eo8",
    "cited_text": "They purr.",
}
RUN = {"type": "server_tool_use", "id": "srvtoolu_2", "name": "code_execution", "input": {"code": "1"}}
RAN = {
    "type": "code_execution_tool_result",
    "tool_use_id": "srvtoolu_2",
    "content": {
        "type": "code_execution_result",
        "stdout": "1",
        "stderr": "",
        "return_code": 0,
        "content": [],
    },
}
SKILL = {"type": "anthropic", "skill_id": "xlsx", "version": "latest"}
PAUSED = {"stop_reason": "pause_turn"}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
both_models = pytest.mark.parametrize("model", [MODEL, BOUND], ids=["free", "bound"])


def claude(upstream: StrictAnthropic, **more: Any) -> tuple[UpstreamSettings, ...]:
    return (UpstreamSettings("up", "anthropic", upstream.base_url, **more),)


@contextmanager
def with_fallback(
    upstream: StrictAnthropic, folder: Path, *profiles: ProfileSettings
) -> Iterator[tuple[World, StrictUpstream]]:
    """Serves the model `smart` of Claude's, whose fallback is the other upstream's `m`. Yields that upstream, too."""
    with StrictUpstream() as other:
        upstreams = (
            *claude(upstream, retries=0),
            UpstreamSettings("other", base_url=other.base_url, retries=0),
        )
        models = (
            ModelSettings("smart", MODEL, "up", fallbacks=("other/m",)),
            ModelSettings("m", "m", "other"),
        )
        with remember(upstream, folder, *profiles, upstreams=upstreams, models=models) as world:
            yield world, other


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


@pytest.fixture
def world(upstream: StrictAnthropic, tmp_path: Path) -> Iterator[World]:
    profiles = agent(model=MODEL), agent("bound", model=BOUND)
    with remember(upstream, tmp_path, *profiles, upstreams=claude(upstream)) as made:
        yield made


def post(world: World, body: Json, headers: Json | None = None, query: str = "") -> RawReply:
    path = f"/v1/messages{query}"
    return world.gateway.ask("POST", path, orjson.dumps(body), {**HEADERS, **(headers or {})})


def hello(words: Any = "Hello", **more: Any) -> Json:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": words}], **more}


def blocks(request: UpstreamRequest, index: int = -1) -> list[Json]:
    content = request.json["messages"][index]["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def plain(text: str) -> Json:
    return {"type": "text", "text": text}


def events_of(reply: RawReply) -> list[Json]:
    return [orjson.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: ")]


# -- what passes


@pytest.mark.parametrize("headers", [{}, {"x-mnemogate-memory": "off", "x-mnemogate-user": "alice"}])
def test_without_memory_a_request_passes_byte_for_byte(
    world: World, upstream: StrictAnthropic, headers: Json
) -> None:
    body = b'{ "model": "claude-opus-4-6",  "max_tokens":100, "messages" : [{"role":"user","content":"\\u0048i"}]}'
    reply = world.gateway.ask("POST", "/v1/messages?beta=true", body, {**HEADERS, **headers})
    assert reply.status == 200
    assert (upstream.last.body, upstream.last.path, upstream.last.query) == (
        body,
        "/v1/messages",
        "beta=true",
    )


def test_betas_and_version_are_the_clients(world: World, upstream: StrictAnthropic) -> None:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "one-2026-01-01,two-2026-01-01"}
    for user in ({}, {"x-mnemogate-user": "alice"}):
        post(world, hello(), {**headers, **user})
        assert {key: upstream.last.headers[key] for key in headers} == headers


def test_the_clients_key_goes_on_in_its_header(world: World, upstream: StrictAnthropic) -> None:
    for name, value in (
        ("x-api-key", "anything"),
        ("x-api-key", "sk-ant-api03-x"),
        ("authorization", "Bearer sk-ant-api03-x"),
    ):
        post(world, hello(), {name: value, "x-mnemogate-user": "alice"})
        sent = {key: upstream.last.headers.get(key) for key in ("x-api-key", "authorization")}
        assert sent == {"x-api-key": None, "authorization": None, name: value}


@both_ways
def test_a_reply_passes_byte_for_byte(world: World, upstream: StrictAnthropic, stream: bool) -> None:
    """With memory that reads along, and a field that no translation knows."""
    upstream.queue(*[think("Hm.", text="Well then.", fields={"next_month": [1, {"a": "b"}]}, id="msg_1")] * 2)
    plain = post(world, hello(stream=stream))
    read = post(world, hello(stream=stream), {"x-mnemogate-user": "alice"})
    assert plain.body == read.body
    assert b"next_month" in read.body
    assert read.headers["request-id"].startswith("req_")
    assert read.headers["x-mnemogate-memory"] == "on"


def test_an_error_passes_as_it_came(world: World, upstream: StrictAnthropic) -> None:
    for user in ({}, {"x-mnemogate-user": "alice"}):
        upstream.queue(refuse(429, "rate_limit_error", "Slow down.", retry_after="9"))
        reply = post(world, hello(), user)
        assert (reply.status, reply.headers["retry-after"]) == (429, "9")
        assert reply.json["error"] == {"type": "rate_limit_error", "message": "Slow down."}
        assert reply.json["request_id"] == "req_refused"


_START_FIELDS = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
_FINE: tuple[Json, ...] = (
    {"type": "message_start", "message": {**_START_FIELDS, "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": sign("Hm.")},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Fine."}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
)


@pytest.mark.parametrize(
    "form",
    [
        "id: 1\nevent: {name}\ndata: {data}\n\n",
        "retry: 9\n: waiting\nevent: {name}\ndata: {data}\n\n",
        "event: {name}\rdata: {data}\r\r",
        "data: {data}\nevent: {name}\n\n",
        "data: {data}\n\n",
    ],
    ids=["id", "retry", "carriage returns", "data first", "no name"],
)
def test_a_proxys_events_pass_whatever_stands_before_their_name(
    world: World, upstream: StrictAnthropic, form: str
) -> None:
    """Read as another dialect's, a message would lose the signatures of its thoughts, and its usage."""
    pieces = [form.format(name=each["type"], data=orjson.dumps(each).decode()).encode() for each in _FINE]
    upstream.queue(raw(*pieces))
    message = Talk(world, model=MODEL, stream=True).complete(
        messages=[{"role": "user", "content": "How are you?"}]
    )
    thinking, text = message.content
    assert (thinking.thinking, thinking.signature, text.text) == ("Hm.", sign("Hm."), "Fine.")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)


_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[]}}\n\n'


@pytest.mark.parametrize("before", [b"", _PING, _START + _PING], ids=["at-once", "ping", "start"])
@pytest.mark.parametrize("user", [{}, {"x-mnemogate-user": "alice"}], ids=["unread", "read"])
def test_a_stream_that_begins_with_an_error_is_that_status(
    world: World, upstream: StrictAnthropic, user: Json, before: bytes
) -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    event = b"event: error\ndata: %b\n\n" % orjson.dumps({"type": "error", "error": error})
    upstream.queue(raw(before + event))
    reply = post(world, hello(stream=True), user)
    assert reply.status == 529
    assert (reply.json["type"], reply.json["error"]) == ("error", error)


@pytest.mark.parametrize("user", [{}, {"x-mnemogate-user": "alice"}], ids=["unread", "read"])
def test_a_success_that_is_an_error_is_that_status(
    world: World, upstream: StrictAnthropic, user: Json
) -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    body = orjson.dumps({"type": "error", "error": error})
    upstream.queue(Reply(headers={"content-type": "application/json"}, body=[body]))
    reply = post(world, hello(), user)
    assert (reply.status, reply.body) == (529, body)
    upstream.queue(Reply(headers={"content-type": "application/json"}, body=[body]))
    reply = world.post([{"role": "user", "content": "Hello"}], user, model=MODEL)
    assert (reply.status, reply.error["type"], reply.error["message"]) == (529, *error.values())


def test_an_error_within_a_stream_passes(world: World, upstream: StrictAnthropic) -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    upstream.queue(say("So it goes on", error_after=(4, error)))
    reply = post(world, hello(stream=True), {"x-mnemogate-user": "alice"})
    assert reply.status == 200
    assert reply.body.rstrip().endswith(
        b'data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_late"}'
    )


def test_the_upstream_says_what_is_wrong_with_a_body(world: World, upstream: StrictAnthropic) -> None:
    for body, words in (
        (hello(next_month=1), "next_month: Extra inputs are not permitted"),
        ({"model": MODEL, "max_tokens": 1}, "messages: Field required"),
        ({**hello(), "max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
    ):
        reply = post(world, body, {"x-mnemogate-user": "alice"})
        assert (reply.status, reply.json["error"]["message"]) == (400, words)
        assert reply.json["request_id"] == "req_strict"


def test_a_request_that_memory_cannot_read_passes_without_memory(
    world: World, upstream: StrictAnthropic
) -> None:
    reply = post(world, {"model": MODEL, "max_tokens": 1, "messages": "Hi"}, {"x-mnemogate-user": "alice"})
    assert (reply.status, reply.headers["x-mnemogate-memory"]) == (400, "off")
    strict = {"x-mnemogate-user": "alice", "x-mnemogate-memory": "strict"}
    reply = post(world, {"model": MODEL, "max_tokens": 1, "messages": "Hi"}, strict)
    assert "x-mnemogate-memory: strict" in reply.json["error"]["message"]


def test_the_error_of_a_request_for_a_profile_names_the_fault(world: World) -> None:
    for body in (
        {"model": "agent/helper", "max_tokens": 1, "messages": "Hi"},
        {"model": "agent/helper", "messages": [{"role": "user", "content": 5}]},
    ):
        reply = post(world, body, {"x-mnemogate-user": "alice"})
        assert (reply.status, reply.json["error"]["message"].split(":")[0]) == (
            400,
            "messages" if body["messages"] == "Hi" else "messages.0.content",
        )


@pytest.mark.parametrize("user", [{}, {"x-mnemogate-user": "alice"}], ids=["unread", "read"])
def test_a_stream_without_its_last_event_has_one_reason(
    world: World, upstream: StrictAnthropic, user: Json
) -> None:
    upstream.queue(say("Fine.", done=False))
    reply = post(world, hello(stream=True), user)
    assert reply.body.count(b"event: message_delta") == 1
    assert reply.body.count(b'"output_tokens"') == 2  # of the start and of the end


def test_a_user_that_the_api_would_refuse_is_refused_by_its_own_name(world: World) -> None:
    names = {"device_id": "d", "session_id": "s" * 300}
    for user in ("user_a_account__session_" + "b" * 300, orjson.dumps(names).decode()):
        reply = post(world, hello(metadata={"user_id": user}))
        assert reply.status == 400
        assert "metadata.user_id" in reply.json["error"]["message"]


# -- where memory goes


def test_the_section_follows_the_clients_system(world: World, upstream: StrictAnthropic) -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"},
        {"type": "text", "text": "You code.", "cache_control": MARK},
    ]
    Talk(world, model="agent/helper").say("Hello", system=system)
    sent = upstream.last.json["system"]
    assert sent[:2] == system
    assert [set(block) for block in sent[2:]] == [{"type", "text"}]
    assert "You help." in sent[2]["text"]
    Talk(world, model="agent/helper").say("Hi", system="You code.")
    assert upstream.last.json["system"].startswith("You code.\n\nYou help.")
    Talk(world, model="agent/helper").say("Hey")
    assert upstream.last.json["system"].startswith("You help.")


def test_a_note_is_a_block_before_the_persons_words(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=MODEL).say("My cat is called Miso.")
    world.pass_time(1000)
    reminder = {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"}
    words = {"type": "text", "text": "What is my cat called?", "cache_control": MARK}
    talk = Talk(world, model=MODEL)
    talk.say([reminder, words])
    first, note, last = blocks(upstream.last)
    assert (first, last) == (reminder, words)
    assert set(note) == {"type", "text"}
    assert "Miso" in note["text"]
    # The words come back as they like: the note stands where it stood.
    talk.messages[0]["content"] = [reminder, {"type": "text", "text": words["text"]}]
    talk.say("And its age?")
    assert blocks(upstream.last, 0) == [reminder, note, {"type": "text", "text": words["text"]}]


def test_a_note_before_a_text_is_the_same_as_before_a_block(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=MODEL).say("My cat is called Miso.")
    world.pass_time(1000)
    words = "What is my cat called?"
    talk = Talk(world, model=MODEL)
    talk.say([{"type": "text", "text": words, "cache_control": MARK}])
    sent = blocks(upstream.last)
    talk.messages[0]["content"] = words
    talk.say([{"type": "text", "text": "And its age?", "cache_control": MARK}])
    again = blocks(upstream.last, 0)
    assert again == [sent[0], {"type": "text", "text": words}]
    assert upstream.cache.reads[-1][0] == upstream.cache.reads[-1][1] > 0


def test_results_alone_get_no_note(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=MODEL).say("My cat is called Miso.")
    world.pass_time(1000)
    upstream.queue(call_tools(Call("weather", {"city": "Bern"})), say("Rain."))
    talk = Talk(world, model=MODEL, options={"tools": [WEATHER]})
    talk.messages.append({"role": "user", "content": "Is my cat out in the weather?"})
    reply = talk.complete()
    talk.messages.append({"role": "assistant", "content": sent_again(reply)})
    talk.answer(calls_of(reply)[0], "Rain")
    assert talk.go_on() == "Rain."
    assert [block["type"] for block in blocks(upstream.last)] == ["tool_result"]
    assert [block["type"] for block in blocks(upstream.last, 0)] == ["text", "text"]


def test_a_late_system_message_stays_last(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=BOUND).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=BOUND)
    environment = {"role": "system", "content": [{"type": "text", "text": "It is Monday."}]}
    talk.messages = [{"role": "user", "content": "What is my cat called?"}, environment]
    talk.go_on()
    assert upstream.last.json["messages"][1] == environment
    assert "Miso" in blocks(upstream.last, 0)[0]["text"]


def test_four_marks_of_a_client_stay_four(world: World, upstream: StrictAnthropic) -> None:
    """A fifth would be refused by the double, as by Anthropic."""
    talk = Talk(world, model="agent/helper", options={"tools": [{**WEATHER, "cache_control": MARK}]})
    system = [{"type": "text", "text": part, "cache_control": MARK} for part in ("One.", "Two.")]
    talk.say([{"type": "text", "text": "Hello", "cache_control": MARK}], system=system)
    assert upstream.last.body.count(b"cache_control") == 4
    assert upstream.last.json["tools"][0] == {**WEATHER, "cache_control": MARK}
    assert all("cache_control" not in tool for tool in upstream.last.json["tools"][1:])


def test_a_mark_on_a_reply_with_a_hidden_round_stays_at_its_end(
    world: World, upstream: StrictAnthropic
) -> None:
    talk = Talk(world, model="agent/helper")
    upstream.queue(call_tools(insert("Has a cat. "), text="Let me note it."), say("Done."))
    talk.say("I have a cat.")
    talk.messages[-1]["content"][-1]["cache_control"] = MARK
    talk.say("And a dog.")
    [_, called, _, replied, _] = upstream.last.json["messages"]
    assert called["content"][-1]["type"] == "tool_use"
    assert replied["content"] == [{"type": "text", "text": "Done.", "cache_control": MARK}]


@both_ways
def test_blocks_that_only_the_api_knows_stay_as_they_are(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    """In a list and in a reply with a hidden round: of a connector and of the API's own tools."""
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "Rome"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    asked = {
        "type": "mcp_tool_use",
        "id": "mcptoolu_1",
        "name": "find",
        "server_name": "s",
        "input": {"a": 1},
    }
    answer = {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": []}
    earlier = [search, found, asked, answer, {"type": "text", "text": "Rome is old."}]
    later = [{**block, key: f"{block[key]}2"} for block, key in zip(earlier[:4], _ID_KEYS, strict=True)]
    talk = Talk(
        world,
        model="agent/helper",
        stream=stream,
        headers={"anthropic-beta": "mcp-client-2025-11-20"},
        messages=[{"role": "user", "content": "Is Rome old?"}, {"role": "assistant", "content": earlier}],
    )
    upstream.queue(Message(blocks=later, text="One moment.", calls=[insert("Likes Rome.")]), say("Noted."))
    talk.say("I like it.")
    inner = upstream.last.json["messages"]
    assert inner[1]["content"] == earlier
    assert [block["type"] for block in talk.messages[-1]["content"]] == [
        *(block["type"] for block in later),
        "text",
        "text",
    ]
    talk.say("Go on.")
    assert upstream.last.json["messages"][: len(inner)] == inner
    assert [block for block in inner[3]["content"] if block in later] == later


_ID_KEYS = ("id", "tool_use_id", "id", "tool_use_id")


def newer_api(id: str, block: Json, delta: Json, stop: Json, usage: Json) -> Reply:
    """Returns a stream with an event, deltas, fields and counts that nothing here knows. block: its only one."""
    message = {"id": id, "type": "message", "role": "assistant", "model": MODEL, "content": []}
    events: list[Json] = [
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 5}, "mood": "calm"}},
        {"type": "weather", "sky": f"of {id}"},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "tone_delta", "tones": ["warm"]}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": usage, "weights": [1]},
        {"type": "message_stop"},
    ]
    return raw(*(b"event: %b\ndata: %b\n\n" % (each["type"].encode(), orjson.dumps(each)) for each in events))


def test_characters_that_a_stream_cuts_between_their_halves_are_whole_in_memory(
    world: World, upstream: StrictAnthropic
) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "memory_insert", "input": {}}
    arguments = ('{"label": "human", "new_string": "Likes \ud83d', '\ude00."}')
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    events: list[Json] = [
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 5}}},
        *cut_block(0, {"type": "thinking", "thinking": "", "signature": sign("So \U0001f600.")}, "thinking"),
        *cut_block(1, plain(""), "text"),
        {"type": "content_block_start", "index": 2, "content_block": call},
        *(
            {
                "type": "content_block_delta",
                "index": 2,
                "delta": {"type": "input_json_delta", "partial_json": each},
            }
            for each in arguments
        ),
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    upstream.queue(
        raw(
            *(
                b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
                for each in events
            )
        ),
        say("Noted."),
    )
    talk = Talk(world, model="agent/helper", stream=True)
    talk.say("I like smiles.")
    thought, text, called = blocks(upstream.last, -2)
    assert (thought["thinking"], text["text"]) == ("So \U0001f600.", "So \U0001f600.")
    assert called["input"]["new_string"] == "Likes \U0001f600."
    talk.messages = json.loads(json.dumps(talk.messages))  # joins the halves
    talk.say("And now?")
    assert [request.refusal for request in upstream.requests] == [None] * 3
    assert world.block("alice").value == "Likes \U0001f600."


def cut_block(index: int, block: Json, key: str) -> list[Json]:
    """Returns the events of a block whose text is cut between the halves of its character."""
    deltas = [{"type": f"{key}_delta", key: piece} for piece in ("So \ud83d", "\ude00.")]
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def test_unknown_events_of_a_newer_api_pass_with_a_hidden_round(
    world: World, upstream: StrictAnthropic
) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "memory_insert", "input": {}}
    arguments = orjson.dumps({"label": "human", "new_string": "Likes tea."}).decode()
    rounds = (
        newer_api(
            "msg_1",
            call,
            {"type": "input_json_delta", "partial_json": arguments},
            {"stop_reason": "tool_use"},
            {"output_tokens": 7, "watts": {"idle": 3}, "grid": "west"},
        ),
        newer_api(
            "msg_2",
            {"type": "text", "text": ""},
            {"type": "text_delta", "text": "Noted."},
            {"stop_reason": "hibernated", "stop_details": {"type": "cold"}},
            {"output_tokens": 2, "watts": {"idle": 4}, "grid": "east"},
        ),
    )
    upstream.queue(*rounds)
    user = {"x-mnemogate-user": "alice"}
    got = events_of(post(world, {**hello("I like tea."), "model": "agent/helper", "stream": True}, user))
    assert [each["type"] for each in got] == [
        *("message_start", "weather", "weather", "content_block_start", "content_block_delta"),
        *("content_block_delta", "content_block_stop", "message_delta", "message_stop"),
    ]
    assert got[0]["message"]["mood"] == "calm"
    assert [each["sky"] for each in got[1:3]] == ["of msg_1", "of msg_2"]
    assert got[5]["delta"] == {"type": "tone_delta", "tones": ["warm"]}
    ending = got[-2]
    assert ending["delta"] == {"stop_reason": "hibernated", "stop_details": {"type": "cold"}}
    assert (ending["weights"], ending["usage"]["grid"]) == ([1], "east")
    assert (ending["usage"]["output_tokens"], ending["usage"]["watts"]) == (9, {"idle": 7})

    upstream.queue(*rounds)
    asked = {"model": "agent/helper", "messages": [{"role": "user", "content": "I like tea, too."}]}
    reply = world.gateway.post({**asked, "stream": True, "stream_options": {"include_usage": True}}, user)
    chunks = [orjson.loads(line[6:]) for line in reply.body.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "Noted."
    ends = [choice for choice in choices if choice["finish_reason"]]
    assert [(end["finish_reason"], end["native_finish_reason"]) for end in ends] == [("stop", "hibernated")]
    assert (chunks[-1]["usage"]["completion_tokens"], chunks[-1]["usage"]["watts"]) == (9, {"idle": 4})

    upstream.queue(*rounds)
    body = orjson.dumps({"model": "agent/helper", "input": "And I like milk.", "stream": True})
    last = events_of(world.gateway.ask("POST", "/v1/responses", body, {**HEADERS, **user}))[-1]
    assert (last["type"], last["response"]["usage"]["output_tokens"]) == ("response.completed", 9)
    assert last["response"]["output"][-1]["content"][0]["text"] == "Noted."


def test_an_alias_is_the_models_name_upstream(upstream: StrictAnthropic, tmp_path: Path) -> None:
    models = (ModelSettings("smart", MODEL, "up"),)
    with remember(upstream, tmp_path, upstreams=claude(upstream), models=models) as world:
        for user in (None, "alice"):
            Talk(world, user=user, model="smart").say("Hello")
            assert upstream.last.json["model"] == MODEL


# -- thoughts


@both_ways
@both_models
def test_thoughts_stay_valid_over_turns_with_notes(
    world: World, upstream: StrictAnthropic, stream: bool, model: str
) -> None:
    """The double refuses a thought whose prefix has changed."""
    Talk(world, model=model).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=model, stream=stream)
    for number in range(4):
        upstream.queue(think(f"Thought {number}.", text=f"Reply {number}."))
        assert talk.say(f"What is my cat called, number {number}?") == f"Reply {number}."
        world.pass_time(1000)  # longer than any cache lives
    assert [block["type"] for block in talk.messages[1]["content"]] == ["thinking", "text"]
    assert b"block_binding" not in upstream.last.body


@both_ways
@pytest.mark.parametrize("profile", ["helper", "bound"])
def test_hidden_rounds_are_one_message_and_go_up_as_they_were(
    world: World, upstream: StrictAnthropic, stream: bool, profile: str
) -> None:
    thoughts = [
        {"type": "thinking", "thinking": words, "signature": sign(words)} for words in ("Tea.", "So.")
    ]
    upstream.queue(
        Message(blocks=[thoughts[0]], text="One moment.", calls=[insert("Likes tea.")]),
        Message(blocks=[thoughts[1]], text="Noted."),
        say("Yes."),
    )
    talk = Talk(world, model=f"agent/{profile}", stream=stream)
    assert talk.say("I like tea.") == "One moment.Noted."
    assert [block["type"] for block in talk.messages[-1]["content"]] == [
        *("thinking", "text"),
        *("thinking", "text"),
    ]
    inner = upstream.last.json["messages"]
    assert b"block_binding" not in upstream.last.body  # the thought is of this turn, and stands where it was
    assert talk.say("Good?") == "Yes."
    again = upstream.last.json["messages"]
    assert again[: len(inner)] == inner
    kinds = [[block["type"] for block in turn["content"]] for turn in again[1:-1]]
    assert kinds == [["thinking", "text", "tool_use"], ["tool_result"], ["thinking", "text"]]
    assert world.block("alice", profile=profile).value == "Likes tea."


@both_ways
@pytest.mark.parametrize("profile", ["helper", "bound"])
def test_blocks_of_hidden_rounds_go_up_as_they_came(
    world: World, upstream: StrictAnthropic, stream: bool, profile: str
) -> None:
    """Texts in a row stay several, with what each cites. The double refuses a thought after other blocks."""
    thoughts = [
        {"type": "thinking", "thinking": words, "signature": sign(words)} for words in ("Cats.", "So.", "Hm.")
    ]
    cited = {"type": "text", "text": "Cats purr.", "citations": [CITED, {**CITED, "title": "More"}]}
    upstream.queue(
        Message(
            blocks=[SEARCH, FOUND, plain("I read: "), cited, plain(" And"), plain(" sleep."), thoughts[0]],
            text="Noting.",
            calls=[insert("Likes cats.")],
        ),
        Message(blocks=[thoughts[1], plain("Well: "), cited, plain(" "), thoughts[2]], text="Noted."),
        say("Yes."),
    )
    talk = Talk(world, model=f"agent/{profile}", stream=stream)
    talk.messages.append({"role": "user", "content": "I like cats."})
    reply = talk.complete()
    first = blocks(upstream.last, -2)
    assert [block for block in first if block["type"] == "text"] == [
        *(plain("I read: "), cited, plain(" And"), plain(" sleep."), plain("Noting."))
    ]
    assert [block["type"] for block in first[-3:]] == ["thinking", "text", "tool_use"]
    shown = sent_again(reply)
    assert shown[: len(first) - 1] == first[:-1]
    # The API would refuse the blank one.
    talk.messages.append(
        {"role": "assistant", "content": [each for each in shown if each.get("text") != " "]}
    )
    inner = upstream.last.json["messages"]
    assert talk.say("Good?") == "Yes."
    again = upstream.last.json["messages"]
    assert again[: len(inner)] == inner
    assert [block for block in again[-2]["content"] if block["type"] == "text"] == [
        *(plain("Well: "), cited, plain("Noted."))
    ]
    assert b"block_binding" not in upstream.last.body
    assert world.block("alice", profile=profile).value == "Likes cats."


@both_ways
@pytest.mark.parametrize(
    ("own", "sent"),
    [
        (None, "container_2"),
        ({"skills": [SKILL]}, {"skills": [SKILL], "id": "container_2"}),
        ("container_1", "container_1"),
        ({"id": "container_1"}, {"id": "container_1"}),
    ],
)
def test_the_round_after_a_hidden_one_goes_on_in_its_container(
    world: World, upstream: StrictAnthropic, stream: bool, own: Any, sent: Any
) -> None:
    named = {"container": {"id": "container_2", "expires_at": "2026-11-26T12:00:00Z"}}
    # A stream names it at its end.
    where: Json = {"stop": named} if stream else {"fields": named}
    upstream.queue(
        Message(blocks=[RUN, RAN], text="One.", calls=[insert("Likes tea.")], **where),
        call_tools(insert("Likes cake.")),
        say("Noted."),
    )
    talk = Talk(world, model="agent/helper", stream=stream)
    talk.messages.append({"role": "user", "content": "I like tea."})
    reply = talk.complete(**({} if own is None else {"extra_body": {"container": own}}))
    assert [request.json.get("container") for request in upstream.chats] == [own, sent, sent]
    assert reply.container.id == "container_2"


@both_ways
def test_a_reply_of_hidden_rounds_that_was_cut_goes_up_cut(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    upstream.queue(
        Message(text="One moment.", calls=[insert("Likes tea.")]),
        say("Noted. I will bring it up again."),
        say("Fine."),
        say("So?"),
    )
    talk = Talk(world, model="agent/helper", stream=stream)
    talk.say("I like tea.")
    talk.messages[-1] = {"role": "assistant", "content": "One moment. Noted."}
    # The stored reply takes this form with the first of these, and is put back in it with the second.
    for words in ("Stop.", "Go on."):
        talk.say(words)
        assert b"Noted." in upstream.last.body
        assert b"bring it up" not in upstream.last.body


@both_ways
def test_a_hidden_round_goes_on_in_another_dialect_in_its_words(
    tmp_path: Path, upstream: StrictAnthropic, stream: bool
) -> None:
    with with_fallback(upstream, tmp_path, agent(model="smart")) as (world, other):
        upstream.queue(
            Message(blocks=[plain("I "), plain("see.")], text=None, calls=[insert("Likes tea.")]),
            say("Noted."),
            refuse(529, "overloaded_error"),
        )
        other.queue(say("From afar."))
        talk = Talk(world, model="agent/helper", stream=stream)
        talk.say("I like tea.")
        assert talk.say("And now?") == "From afar."
        assert other.last.refusal is None
        round_ = next(message for message in other.last.messages if message.get("tool_calls"))
        assert ("native_reply" in round_, round_["content"]) == (False, "I see.")


@both_ways
def test_a_paused_reply_with_a_memory_call_is_followed_by_a_hidden_round(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    """The calls decide, not the reason. The API ends its own call in the next round."""
    upstream.queue(
        Message(blocks=[SEARCH], text=None, calls=[insert("Likes cats.")], stop=PAUSED),
        Message(blocks=[FOUND], text="Found."),
    )
    talk = Talk(world, model="agent/helper", stream=stream)
    talk.messages.append({"role": "user", "content": "Search for cats."})
    reply = talk.complete()
    assert [block["type"] for block in sent_again(reply)] == [SEARCH["type"], FOUND["type"], "text"]
    assert reply.stop_reason == "end_turn"
    assert [block["type"] for block in blocks(upstream.last, -2)] == ["server_tool_use", "tool_use"]
    (result,) = blocks(upstream.last)
    assert result["type"] == "tool_result"
    assert "Likes cats." in result["content"]


def test_a_search_that_is_broken_off_after_a_hidden_round_does_not_lock_the_conversation(
    world: World, upstream: StrictAnthropic
) -> None:
    """The client left before the next round, which begins with what the search has found."""
    upstream.queue(
        Message(blocks=[plain("I look."), SEARCH], text=None, calls=[insert("Likes cats.")], stop=PAUSED),
        Message(blocks=[FOUND], text="Found.", hold_before_headers=Gate()),
        say("Sure."),
    )
    body = hello("Search for cats.", stream=True, metadata={"user_id": "alice"}) | {"model": "agent/helper"}
    with world.gateway.connect() as connection:
        connection.request("POST", "/v1/messages", orjson.dumps(body), HEADERS)
        upstream.request_gate(2).wait_sync()
    upstream.requests[1].gone.wait_sync()
    world.settle()
    talk = Talk(world, model="agent/helper")
    talk.messages = [*body["messages"], {"role": "assistant", "content": "I look."}]
    assert talk.say("Well?") == "Sure."
    assert [block["type"] for block in blocks(upstream.last, -2)] == ["text", "tool_use"]


def test_a_search_without_a_result_that_the_client_sends_is_left_to_the_upstream(
    world: World, upstream: StrictAnthropic
) -> None:
    """With a note, too: the upstream says what is wrong with the client's list, as without memory."""
    Talk(world).say("I look for cats.")
    cut_off = {"role": "assistant", "content": [plain("I look."), SEARCH]}
    talk = Talk(world, messages=[{"role": "user", "content": "Hello."}, cut_off])
    with pytest.raises(anthropic.BadRequestError, match="without a corresponding result"):
        talk.say("What do I look for?")
    sent = orjson.loads(upstream.last.body)["messages"]
    assert sent[1] == cut_off
    assert "for cats" in sent[2]["content"][0]["text"]


@both_ways
@pytest.mark.parametrize("profile", ["helper", "bound"])
def test_a_pause_after_a_hidden_round_is_the_clients_to_go_on_with(
    world: World, upstream: StrictAnthropic, stream: bool, profile: str
) -> None:
    thought = {"type": "thinking", "thinking": "So.", "signature": sign("So.")}
    upstream.queue(
        Message(text="Well.", calls=[insert("Likes cats.")]),
        Message(blocks=[thought, SEARCH], text=None, stop=PAUSED),
        Message(blocks=[FOUND], text="Found."),
        say("Yes."),
    )
    talk = Talk(world, model=f"agent/{profile}", stream=stream)
    talk.messages.append({"role": "user", "content": "Search for cats."})
    paused = talk.complete()
    assert paused.stop_reason == "pause_turn"
    talk.messages.append({"role": "assistant", "content": sent_again(paused)})
    reply = talk.complete()
    assert text_of(reply) == "Found."
    talk.messages[-1]["content"] += sent_again(reply)
    assert talk.say("Good?") == "Yes."
    assert [request.refusal for request in upstream.requests] == [None] * 4
    # So no reply has hidden rounds on both sides of a pause, which the one message of the client could not part.
    assert ["tools" in request.json for request in upstream.requests] == [True, True, False, True]


@both_ways
def test_a_stop_sequence_after_a_hidden_round_is_named(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    stop = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    upstream.queue(call_tools(insert("Likes tea.")), Message(text="Noted.", stop=stop))
    talk = Talk(world, model="agent/helper", stream=stream, options={"stop_sequences": ["END"]})
    talk.messages.append({"role": "user", "content": "I like tea."})
    reply = talk.complete()
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "END")


@both_ways
def test_usage_of_hidden_rounds_is_their_sum(world: World, upstream: StrictAnthropic, stream: bool) -> None:
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 1,
    }
    upstream.queue(call_tools(insert("Likes tea."), usage=usage), say("Noted.", usage=usage))
    talk = Talk(world, model="agent/helper", stream=stream)
    talk.messages.append({"role": "user", "content": "I like tea."})
    found = talk.complete()
    counts = (found.usage.output_tokens, found.usage.input_tokens, found.usage.cache_read_input_tokens)
    assert counts == (10, 20, 6)
    assert (found.stop_reason, text_of(found)) == ("end_turn", "Noted.")


@both_ways
def test_the_round_after_a_hidden_one_has_room_for_the_thoughts_that_the_client_asks_for(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    """Claude refuses a limit that does not exceed the budget of the thoughts."""
    thinking = {"type": "enabled", "budget_tokens": 1900}
    thought = {"type": "thinking", "thinking": "Tea.", "signature": sign("Tea.")}
    usage = {"input_tokens": 10, "output_tokens": 300}
    upstream.queue(
        Message(text=None, blocks=[thought], calls=[insert("Likes tea.")], usage=usage), say("Noted.")
    )
    talk = Talk(
        world,
        model="agent/helper",
        stream=stream,
        options={"max_tokens": 2000, "thinking": thinking},
    )
    assert talk.say("I like tea.") == "Noted."
    assert upstream.last.json["max_tokens"] == 1901


@both_ways
def test_iterations_of_hidden_rounds_are_listed_in_their_order(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    first, second, third = (
        {"type": "message", "input_tokens": n, "output_tokens": 1, "cache_read_input_tokens": 0}
        for n in range(3)
    )
    usage = {"input_tokens": 10, "output_tokens": 5}
    upstream.queue(
        call_tools(insert("Likes tea."), usage={**usage, "iterations": [first, second]}),
        say("Noted.", usage={**usage, "iterations": [third]}),
    )
    reply = post(
        world, {**hello("I like tea.", stream=stream), "model": "agent/helper"}, {"x-mnemogate-user": "alice"}
    )
    usages = (
        [event["usage"] for event in events_of(reply) if event["type"] == "message_delta"]
        if stream
        else [reply.json["usage"]]
    )
    assert [found["iterations"] for found in usages] == [[first, second, third]]


@both_ways
def test_a_mixed_round_gives_each_its_calls(world: World, upstream: StrictAnthropic, stream: bool) -> None:
    upstream.queue(
        call_tools(insert("Likes tea."), Call("weather", {"city": "Bern"}), text="Well."), say("It rains.")
    )
    talk = Talk(world, model="agent/helper", stream=stream, options={"tools": [WEATHER]})
    talk.messages.append({"role": "user", "content": "I like tea. The weather?"})
    reply = talk.complete()
    assert [call.name for call in calls_of(reply)] == ["weather"]
    assert reply.stop_reason == "tool_use"
    talk.messages.append({"role": "assistant", "content": sent_again(reply)})
    talk.answer(calls_of(reply)[0], "Rain")
    assert talk.go_on() == "It rains."
    turn, results = upstream.last.json["messages"][-2:]
    assert [block["name"] for block in turn["content"] if block["type"] == "tool_use"] == [
        "memory_insert",
        "weather",
    ]
    assert [block["type"] for block in results["content"]] == ["tool_result", "tool_result"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ],
)
def test_memory_tools_are_not_offered_where_they_could_not_be_hidden(
    world: World, upstream: StrictAnthropic, fields: Json
) -> None:
    Talk(world, model="agent/helper").say("Hello", **fields)
    names = [tool["name"] for tool in upstream.last.json.get("tools", ())]
    assert [name for name in names if name.startswith("memory")] == []


@both_ways
def test_an_error_of_a_later_round(world: World, upstream: StrictAnthropic, stream: bool) -> None:
    """Before any byte it is a status, after that an event."""
    upstream.queue(call_tools(insert("Likes tea.")), refuse(400, "invalid_request_error", "No more."))
    with pytest.raises(anthropic.BadRequestError, match="No more"):
        Talk(world, model="agent/helper", stream=stream).say("I like tea.")
    if stream:
        upstream.queue(
            call_tools(insert("Likes tea."), text="One."), refuse(400, "invalid_request_error", "No.")
        )
        with pytest.raises(anthropic.APIStatusError, match="No"):
            Talk(world, model="agent/helper", stream=stream).say("I like tea.")


def test_thoughts_that_no_longer_fit_are_dropped_as_the_api_provides(
    world: World, upstream: StrictAnthropic
) -> None:
    """Words that the client has edited begin another conversation here, whose notes are others."""
    Talk(world, model=BOUND).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=BOUND)
    upstream.queue(think("Miso it is.", text="Miso."), say("Again."), say("And again."))
    talk.say("What is my cat called?")
    talk.messages[0]["content"] = "What was my cat called?"
    assert talk.say("Say it again.") == "Again."
    assert upstream.last.json["thinking"] == {
        "type": "adaptive",
        "block_binding": {"prefix_mismatch_behavior": "drop_block"},
    }
    assert BINDING_BETA in upstream.last.headers["anthropic-beta"]
    # They come again with every later turn.
    assert talk.say("Say it once more.") == "And again."
    assert talk.say("And now?") == "Ok."


@pytest.mark.parametrize(("behavior", "status"), [("error", 400), ("drop_block", 200)])
def test_a_client_may_say_itself_what_becomes_of_its_thoughts(
    world: World, upstream: StrictAnthropic, behavior: str, status: int
) -> None:
    Talk(world, model=BOUND).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=BOUND)
    upstream.queue(think("Miso it is.", text="Miso."))
    talk.say("What is my cat called?")
    talk.messages[0]["content"] = "What was my cat called?"
    own = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": behavior}}
    body = {**hello(), "model": BOUND, "thinking": own}
    body["messages"] = [*talk.messages, {"role": "user", "content": "Say it again."}]
    reply = post(world, body, {"x-mnemogate-user": "alice", "anthropic-beta": BINDING_BETA})
    assert reply.status == status
    assert orjson.loads(upstream.last.body)["thinking"] == own


def test_thoughts_of_a_turn_that_memory_took_no_part_in_are_dropped(
    world: World, upstream: StrictAnthropic
) -> None:
    talk = Talk(world, model=BOUND)
    talk.say("My cat is called Miso.")
    upstream.queue(think("Hm.", text="Fine."))
    talk.headers["x-mnemogate-memory"] = "off"
    talk.say("How are you?")
    del talk.headers["x-mnemogate-memory"]
    for text in ("And now?", "And then?", "What is my cat called?"):
        assert talk.say(text) == "Ok."


def test_thoughts_that_no_longer_fit_are_left_out_where_they_cannot_be_dropped(
    world: World, upstream: StrictAnthropic
) -> None:
    model, thinking = "claude-sonnet-5-5", {"type": "between_tools"}
    Talk(world, model=model).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=model, options={"extra_body": {"thinking": thinking}})
    upstream.queue(think("Miso it is.", text="Miso."), say("Again."))
    talk.say("What is my cat called?")
    talk.messages[0]["content"] = "What was my cat called?"
    assert talk.say("Say it again.") == "Again."
    assert upstream.last.json["thinking"] == thinking
    assert b'"signature"' not in upstream.last.body


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ],
    ids=["no call", "schema"],
)
@pytest.mark.parametrize("asks_first", [False, True])
def test_thoughts_of_turns_with_and_without_memory_tools_may_be_dropped(
    world: World, upstream: StrictAnthropic, fields: Json, asks_first: bool
) -> None:
    """Claude binds a thought to the tools as well, and the client has changed none that it knows of."""
    options = {"tools": fields["tools"]} if "tools" in fields else {}
    talk = Talk(world, model="agent/bound", options=options)
    for number, withheld in enumerate([asks_first, not asks_first, False, False, True, False]):
        upstream.queue(think(f"Thought {number}.", text=f"Reply {number}."))
        assert talk.say(f"Number {number}?", **(fields if withheld else {})) == f"Reply {number}."


@both_ways
@pytest.mark.parametrize("words", [[], [{"type": "text", "text": "I search."}]], ids=["no words", "words"])
def test_a_paused_thought_goes_on_where_memory_tools_were_offered(
    world: World, upstream: StrictAnthropic, words: list[Json], stream: bool
) -> None:
    talk = Talk(world, model="agent/bound", stream=stream)
    thought = {"type": "thinking", "thinking": "So.", "signature": sign("So.")}
    upstream.queue(
        Message(blocks=[thought, *words, SEARCH], text=None, stop=PAUSED),
        Message(blocks=[FOUND, {**thought, "thinking": "Hm.", "signature": sign("Hm.")}], text="Found."),
        think("Well.", text="Yes."),
    )
    talk.messages.append({"role": "user", "content": "Search for cats."})
    talk.messages.append({"role": "assistant", "content": sent_again(talk.complete())})
    talk.messages[-1]["content"] += sent_again(talk.complete())
    assert talk.say("Good?") == "Yes."
    assert talk.say("And now?") == "Ok."


@both_ways
def test_rounds_of_a_paused_reply_are_the_same_before_and_after_it_is_stored_whole(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    talk = Talk(world, model="agent/bound", stream=stream)
    texts = [{"type": "text", "text": "Well. "}, {"type": "text", "text": "I note that."}]
    upstream.queue(
        Message(blocks=texts, text=None, calls=[insert("Likes cats.")]),
        Message(blocks=[{"type": "text", "text": "I search."}, SEARCH], text=None, stop=PAUSED),
        Message(blocks=[FOUND], text="Found."),
        think("Hm.", text="Yes."),
    )
    talk.messages.append({"role": "user", "content": "Search for cats."})
    talk.messages.append({"role": "assistant", "content": sent_again(talk.complete())})
    talk.messages[-1]["content"] += sent_again(talk.complete())
    assert talk.say("Good?") == "Yes."
    before = upstream.last.json["messages"]
    assert talk.say("And now?") == "Ok."
    assert upstream.last.json["messages"][: len(before)] == before


@both_ways
@pytest.mark.parametrize("text", ["Found.", None])
@pytest.mark.parametrize("words", [[{"type": "text", "text": "I search."}], []], ids=["words", "no words"])
def test_a_paused_reply_after_a_hidden_round_keeps_the_search_of_its_provider(
    world: World, upstream: StrictAnthropic, words: list[Json], text: str | None, stream: bool
) -> None:
    talk = Talk(world, model="agent/bound", stream=stream)
    thoughts = [{"type": "thinking", "thinking": each, "signature": sign(each)} for each in ("So.", "Hm.")]
    searching = [thoughts[1], *words, SEARCH]
    upstream.queue(
        Message(blocks=[thoughts[0]], text=None, calls=[insert("Likes cats.")]),
        Message(blocks=searching, text=None, stop=PAUSED),
        Message(blocks=[FOUND], text=text),
    )
    talk.messages.append({"role": "user", "content": "Search for cats."})
    talk.messages.append({"role": "assistant", "content": sent_again(talk.complete())})
    talk.messages[-1]["content"] += sent_again(talk.complete())
    reply = talk.messages[-1]["content"]
    for question in ("Good?", "And now?"):
        talk.say(question)
        sent = upstream.last.json["messages"]
        assert [block["type"] for block in sent[1]["content"]] == ["thinking", "tool_use"]
        assert sent[3] == {"role": "assistant", "content": reply[1:]}


@both_ways
def test_thoughts_may_be_dropped_where_a_hidden_round_makes_the_window_too_small(
    upstream: StrictAnthropic, tmp_path: Path, stream: bool
) -> None:
    models = (ModelSettings("small", BOUND, "up", context_window=4000),)
    profiles = (agent("bound", model="small"),)
    with remember(upstream, tmp_path, *profiles, upstreams=claude(upstream), models=models) as world:
        Talk(world, model="agent/bound").say("My cat is called Miso. " * 40)
        world.pass_time(1000)
        talk = Talk(world, model="agent/bound", stream=stream, options={"max_tokens": 200})
        for turn in range(12):
            thought = {"type": "thinking", "thinking": f"{turn}", "signature": sign(f"{turn}")}
            upstream.queue(
                Message(text=None, blocks=[thought], calls=[insert(f"Number {turn}. " * 30)]),
                say("Fine. " * 40),
            )
            talk.say(f"How is it, number {turn}? " * 10)
        assert len(upstream.last.json["messages"]) < 2 * len(talk.messages)


@both_ways
def test_thoughts_of_hidden_rounds_may_be_dropped_where_a_later_one_makes_the_window_too_small(
    upstream: StrictAnthropic, tmp_path: Path, stream: bool
) -> None:
    models = (ModelSettings("small", BOUND, "up", context_window=4000),)
    profiles = (agent("bound", model="small"),)
    with remember(upstream, tmp_path, *profiles, upstreams=claude(upstream), models=models) as world:
        talk = Talk(world, model="agent/bound", stream=stream, options={"max_tokens": 900})
        for turn in range(4):
            talk.say(f"How is it, number {turn}? " * 20)
        before = len(upstream.chats)
        rounds = [think(f"{n}", calls=[insert(f"Number {n}. " * 60)]) for n in range(4)]
        upstream.queue(*rounds, say("Fine."))
        assert talk.say("And now?") == "Fine."
        sent = [request.json for request in upstream.chats[before:]]
        firsts = [body["messages"][0]["content"] for body in sent]
        assert (
            firsts[0] == firsts[1] != firsts[-1]
        )  # the window became too small after a round with a thought
        assert "thinking" not in sent[1]


def test_thoughts_before_a_section_that_a_forgetting_has_changed_may_be_dropped_for_good(
    world: World, upstream: StrictAnthropic
) -> None:
    """The section is rendered again, and the client still sends the thoughts that came after the earlier one."""
    other = Talk(world, model="agent/bound", headers={"x-mnemogate-conversation": "other"})
    other.say("My cat is called Miso.")
    talk = Talk(world, model="agent/bound")
    upstream.queue(think("Hm.", text="Fine."))
    talk.say("How are you?")
    before = upstream.last.json["system"]
    world.write_block("alice", "Likes tea.", profile="bound")
    perform(world, "memory-forget", user="alice", profile="bound", exchange=1)
    assert talk.say("And now?") == "Ok."
    assert upstream.last.json["system"] != before
    assert talk.say("And then?") == "Ok."


def test_thoughts_after_hidden_rounds_of_a_cut_reply_may_be_dropped_for_good(
    world: World, upstream: StrictAnthropic
) -> None:
    """The reply goes up as its client has it, without its rounds, with each later request."""
    talk = Talk(world, model="agent/bound")
    upstream.queue(
        think("Tea.", text="One moment.", calls=[insert("Likes tea.")]),
        think("So.", text="I have noted that you like tea."),
    )
    talk.say("I like tea.")
    talk.messages[-1]["content"] = [
        {**block, "text": "One"} if block.get("text") == "One moment." else block
        for block in talk.messages[-1]["content"]
    ]
    for words in ("Good?", "And now?", "And then?"):
        assert talk.say(words) == "Ok."


def test_thoughts_that_no_longer_fit_are_left_out_where_a_call_is_forced(
    world: World, upstream: StrictAnthropic
) -> None:
    """Claude refuses `thinking` in a request that forces a call, so it cannot be asked to drop them."""
    talk = Talk(world, model="claude-haiku-5-5", options={"tools": [WEATHER]})
    upstream.queue(think("Hm.", text="Fine."), call_tools(Call("weather", {"city": "Bern"})))
    talk.say("How are you?")
    talk.messages[0]["content"] = "And how are you?"
    talk.say("How is the weather?", tool_choice={"type": "any"})
    assert upstream.last.json["tool_choice"] == {"type": "any"}
    assert "thinking" not in upstream.last.json
    assert b'"signature"' not in upstream.last.body


def test_a_refusal_of_thoughts_that_the_client_has_caused_passes(
    world: World, upstream: StrictAnthropic
) -> None:
    """Claude Code repairs its list by these words."""
    talk = Talk(world, model=BOUND)
    upstream.queue(think("Hm.", text="Fine."))
    talk.say("How are you?", system="Be kind.")
    with pytest.raises(anthropic.BadRequestError, match="bound to a different conversation"):
        talk.say("And now?", system="Be brief.")
    assert b"block_binding" not in upstream.last.body


def test_thoughts_of_rounds_that_are_put_back_after_a_summary_may_be_dropped(
    world: World, upstream: StrictAnthropic
) -> None:
    """The client has sent none, so that it could not repair its list."""
    talk = Talk(world, model="agent/bound", headers={"x-mnemogate-conversation": "s"})
    talk.say("How are you?")
    upstream.queue(
        think("Tea.", text="One moment.", calls=[insert("Likes tea.")]),
        think("So.", text="I have noted that you like tea."),
    )
    talk.say("I like tea.")
    reply = [block for block in talk.messages[-1]["content"] if block["type"] == "text"]
    summary = "This session is being continued from a previous conversation that ran out of context. Tea."
    talk.messages = [{"role": "user", "content": summary}, {"role": "assistant", "content": reply}]
    talk.say("Go on.")
    assert b'"name":"memory_insert","input"' in upstream.last.body
    assert b'"prefix_mismatch_behavior":"drop_block"' in upstream.last.body


def test_thoughts_of_rounds_may_be_dropped_where_the_client_sends_none(
    world: World, upstream: StrictAnthropic
) -> None:
    """The client has a clock in its system prompt, and has dropped all thoughts, so that it cannot repair its list."""
    talk = Talk(world, model="agent/bound")
    upstream.queue(
        think("Tea.", text="One moment.", calls=[insert("Likes tea.")]),
        think("So.", text="I have noted that you like tea."),
    )
    talk.say("I like tea.", system="It is nine o'clock.")
    talk.messages[-1]["content"] = [
        block for block in talk.messages[-1]["content"] if block["type"] == "text"
    ]
    assert talk.say("Good?", system="It is ten o'clock.") == "Ok."
    assert b'"name":"memory_insert","input"' in upstream.last.body


def test_thoughts_made_with_memory_may_be_dropped_in_a_turn_without(
    world: World, upstream: StrictAnthropic
) -> None:
    """And the other way round. The client cannot know with what they were made."""
    Talk(world, model="agent/bound").say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model="agent/bound")
    upstream.queue(*(think("Hm.", text="Fine.") for _ in range(4)))
    talk.say("How is my cat?")
    assert b"Miso" in upstream.last.body
    talk.headers["x-mnemogate-memory"] = "off"
    assert talk.say("And now?") == "Fine."
    assert b"Miso" not in upstream.last.body
    talk.headers.clear()
    for words in ("And then?", "And tomorrow?"):
        assert talk.say(words) == "Fine."
        assert b"Miso" in upstream.last.body


def test_a_stored_reply_whose_rounds_cannot_go_back_has_its_words_alone(
    world: World, upstream: StrictAnthropic
) -> None:
    """Its thoughts and searches have their places between the rounds."""
    talk = Talk(world, model="agent/helper", headers={"x-mnemogate-conversation": "c"})
    thought = {"type": "thinking", "thinking": "So.", "signature": sign("So.")}
    upstream.queue(
        Message(text="I make a note.", calls=[insert("Likes tea.")]),
        Message(text="Green is best.", blocks=[{"type": "text", "text": "I look. "}, SEARCH, FOUND, thought]),
    )
    talk.say("I like tea.")
    talk.say("Thanks.")
    talk.messages = talk.messages[2:]  # without the first turn
    talk.say("And now?", tool_choice={"type": "none"}, tools=[WEATHER])
    assert upstream.last.json["messages"][1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "I make a note. I look. Green is best."}],
    }


def serve_with_fallback(upstream: StrictAnthropic, folder: Path, other: str) -> AbstractContextManager[World]:
    """Serves the model `smart`, whose fallback `other` is another model of Claude's at an upstream of its own."""
    upstreams = tuple(
        UpstreamSettings(name, "anthropic", upstream.base_url, retries=0) for name in ("up", "too")
    )
    models = (
        ModelSettings("smart", MODEL, "up", fallbacks=("other",)),
        ModelSettings("other", other, "too"),
    )
    return remember(upstream, folder, upstreams=upstreams, models=models)


@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize("thinking", [None, {"type": "enabled", "budget_tokens": 1024}])
@pytest.mark.parametrize("is_limited", [False, True], ids=["fallback", "limit"])
def test_another_model_gets_no_thoughts(
    tmp_path: Path, upstream: StrictAnthropic, user: str | None, thinking: Json | None, is_limited: bool
) -> None:
    other = "claude-sonnet-4-5"
    with serve_with_fallback(upstream, tmp_path, other) as world:
        options: Json = {"tools": [WEATHER], "max_tokens": 3000}
        talk = Talk(world, user=user, model="smart", options=options)
        thought = {"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")}
        upstream.queue(Message(text=None, blocks=[thought], calls=[Call("weather", {})]))
        talk.messages.append({"role": "user", "content": "How is it?"})
        asked = {} if thinking is None else {"thinking": thinking}
        reply = talk.complete(**asked)
        talk.messages.append({"role": "assistant", "content": sent_again(reply)})
        talk.answer(calls_of(reply)[0], "Rain")
        if is_limited:
            world.settle()
            limit = UsageLimit(0, "default", None, None, "requests", "day", 0, "other")
            world.gateway.call(world.store.limits.add(limit))
        else:
            upstream.queue(refuse(529, "overloaded_error"))
        upstream.queue(say("It rains."))
        assert talk.go_on(**asked) == "It rains."
        assert upstream.last.json["model"] == other
        assert b'"signature"' not in upstream.last.body


@pytest.mark.parametrize("user", [None, "alice"])
@pytest.mark.parametrize(
    ("other", "asked", "sent", "consumed"),
    [
        (
            "claude-sonnet-4-5",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            {},
            "thinking,output_config.effort",
        ),
        ("claude-opus-4-7", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {}, "thinking"),
        ("claude-opus-5-5", {"thinking": {"type": "disabled"}}, {}, "thinking"),
        (
            "claude-opus-4-7",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            None,
        ),
    ],
)
def test_another_model_is_not_asked_to_think_as_it_cannot(
    tmp_path: Path,
    upstream: StrictAnthropic,
    user: str | None,
    other: str,
    asked: Json,
    sent: Json,
    consumed: str | None,
) -> None:
    with serve_with_fallback(upstream, tmp_path, other) as world:
        upstream.queue(refuse(529, "overloaded_error"))
        body = {**hello(max_tokens=3000, **asked), "model": "smart"}
        reply = post(world, body, {} if user is None else {"x-mnemogate-user": user})
        assert reply.status == 200
        assert reply.headers.get("x-mnemogate-consumed") == consumed
        left = {
            key: upstream.last.json[key] for key in ("thinking", "output_config") if key in upstream.last.json
        }
        assert (upstream.last.json["model"], left) == (other, sent)


# -- dialects, hang-up, counting


def test_a_conversation_changes_its_dialect(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=MODEL).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, model=MODEL)
    talk.say("What is my cat called?")
    note = blocks(upstream.last)[0]["text"]
    chat = world.chat(user="alice", model=MODEL)
    chat.messages = [
        {"role": "user", "content": "What is my cat called?"},
        {"role": "assistant", "content": "Ok."},
    ]
    chat.say("And its age?")
    assert note in blocks(upstream.last, 0)[0]["text"]
    talk.messages = [{"role": each["role"], "content": each["content"]} for each in chat.messages]
    talk.say("And its colour?")
    assert blocks(upstream.last, 0)[0]["text"] == note
    assert world.query("SELECT count(*) FROM conversations") == [2]
    assert world.query("SELECT count(*) FROM exchanges") == [4]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}, "title": "Rent"},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}, "context": "Of May."},
        {"type": "image", "source": {"type": "file", "file_id": "file_2"}},
    ],
    ids=["document by url", "document by id", "image by id"],
)
@pytest.mark.parametrize("appends", [False, True])
def test_blocks_without_a_form_in_chat_completions_are_put_back_unchanged(
    world: World, upstream: StrictAnthropic, block: Json, appends: bool
) -> None:
    headers = {"x-mnemogate-conversation": "phone"}
    if appends:
        headers["x-mnemogate-history"] = "append"
    talk = Talk(world, model=MODEL, headers=headers)
    talk.say([{**block, "cache_control": MARK}, plain("What is in it?")])
    talk.messages = [] if appends else talk.messages
    talk.say("And in May?")
    talk.messages = talk.messages[2:]
    talk.say("And in June?")
    assert block in blocks(upstream.last, 0)


def test_stored_messages_may_stand_before_thoughts_in_another_form(
    world: World, upstream: StrictAnthropic
) -> None:
    """In append mode the client could not repair its list, since it has none."""
    Talk(world, model=BOUND).say("My cat is called Miso.")
    world.pass_time(1000)
    headers = {"x-mnemogate-conversation": "phone", "x-mnemogate-history": "append"}
    talk = Talk(world, model=BOUND, headers=headers)
    upstream.queue(think("Miso.", text="Your cat."))
    talk.say([PIXEL, plain("Is this my cat?")])
    for words in ("And now?", "And then?"):
        talk.messages = []
        assert talk.say(words) == "Ok."


@pytest.mark.parametrize("tools", [[], [WEATHER]])
@pytest.mark.parametrize("choice", [{"type": "tool", "name": "web_search"}, {"type": "auto"}, None])
def test_a_fallback_of_another_dialect_names_what_it_cannot_do(
    tmp_path: Path, upstream: StrictAnthropic, tools: list[Json], choice: Json | None
) -> None:
    with with_fallback(upstream, tmp_path) as (world, other):
        upstream.queue(refuse(529, "overloaded_error"))
        search = {"type": "web_search_20250305", "name": "web_search"}
        body = {**hello(tools=[*tools, search], container="container_1"), "model": "smart"}
        reply = post(world, body if choice is None else {**body, "tool_choice": choice})
        assert reply.status == 200, reply.json
        names = set(reply.headers["x-mnemogate-consumed"].split(","))
        assert names >= {"tools.web_search_20250305", "container"}
        assert [tool["function"]["name"] for tool in other.last.json.get("tools", [])] == [
            tool["name"] for tool in tools
        ]
        is_dropped = choice is not None and (choice["type"] == "tool" or not tools)
        assert ("tool_choice" in names, "tool_choice" in other.last.json) == (
            is_dropped, choice is not None and not is_dropped,
        )  # fmt: skip


@pytest.mark.parametrize("user", [{}, {"x-mnemogate-user": "alice"}], ids=["unread", "read"])
def test_a_fallback_of_another_dialect_gets_a_text_for_a_file_that_it_cannot_read(
    tmp_path: Path, upstream: StrictAnthropic, user: Json
) -> None:
    file = {"type": "document", "source": {"type": "url", "url": "https://example.com/boats.pdf"}}
    with with_fallback(upstream, tmp_path) as (world, other):
        post(world, {**hello("My cat is called Miso."), "model": "smart"}, user)
        world.pass_time(1000)
        upstream.queue(refuse(529, "overloaded_error"))
        reply = post(world, {**hello([file, plain("Is my cat Miso in it?")]), "model": "smart"}, user)
        assert reply.status == 200, reply.json
        assert "document.source.url" in reply.headers["x-mnemogate-consumed"]
        texts = [part["text"] for part in other.last.messages[-1]["content"]]
        assert "[A file that cannot be read here.]" in texts
        assert any("My cat is called Miso." in text for text in texts) is bool(user)


def test_images_of_results_follow_in_a_users_message_in_another_dialect(
    tmp_path: Path, upstream: StrictAnthropic
) -> None:
    """Where another upstream stands in, and where the conversation goes on there: the same messages, and one talk."""
    with with_fallback(upstream, tmp_path) as (world, other):
        Talk(world, model="smart").say("My cat is called Miso.")
        world.pass_time(1000)
        talk = Talk(world, model="smart", options={"tools": [WEATHER]})
        upstream.queue(call_tools(Call("weather", {})), refuse(529, "overloaded_error"), say("Fine."))
        talk.messages.append({"role": "user", "content": "Look at my cat Miso."})
        reply = talk.complete()
        talk.messages.append({"role": "assistant", "content": sent_again(reply)})
        talk.answer(calls_of(reply)[0], [{"type": "text", "text": "Here."}, PIXEL])
        talk.go_on()
        note = blocks(upstream.requests[-1], 0)[0]["text"]
        assert [part["type"] for part in other.last.messages[-1]["content"]] == ["image_url"]
        assert other.last.messages[-2]["content"] == "Here."
        assert talk.say("And now?") == "Fine."
        talk.model = "m"
        talk.say("And there?")
        first, _, result, shown, *_ = other.last.messages
        assert first["content"].startswith(note)
        assert (result["content"], shown["content"][0]["type"]) == ("Here.", "image_url")
        talk.model = "smart"
        talk.say("And back?")
        assert blocks(upstream.last, 0)[0]["text"] == note
        assert world.query("SELECT count(*) FROM conversations") == [2]
        assert world.query("SELECT count(*) FROM exchanges") == [6]
        assert [request.refusal for request in upstream.chats if request.refusal] == []


@both_ways
def test_a_client_that_leaves_cancels_the_upstream(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    secret = "The treasure lies under the third palm tree."
    gate = Gate()
    held: Json = {"hold_after": {5: gate}} if stream else {"hold_before_headers": gate}
    upstream.queue(say(secret, **held))
    body = orjson.dumps({**hello("Where is it?", stream=stream), "metadata": {"user_id": "alice"}})
    with world.gateway.connect() as connection:
        connection.request("POST", "/v1/messages", body, HEADERS)
        upstream.request_gate(1).wait_sync()
        if stream:
            connection.read_until(b"treasure")
    upstream.requests[0].gone.wait_sync()
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]
    if stream:
        # It is remembered for what it heard, once the talk goes on.
        talk = Talk(world, model=MODEL)
        talk.messages = [
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": "The treasure"},
        ]
        talk.say("Go on.")
        assert world.query("SELECT count(*) FROM conversations") == [1]


@both_ways
def test_a_client_that_leaves_between_hidden_rounds_cancels_the_second(
    world: World, upstream: StrictAnthropic, stream: bool
) -> None:
    upstream.queue(call_tools(insert("Likes tea.")), say("Noted.", hold_before_headers=Gate()))
    body = orjson.dumps(
        {**hello("I like tea.", stream=stream), "model": "agent/helper", "metadata": {"user_id": "alice"}}
    )
    with world.gateway.connect() as connection:
        connection.request("POST", "/v1/messages", body, HEADERS)
        upstream.request_gate(2).wait_sync()
    upstream.requests[1].gone.wait_sync()
    world.settle()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [0]


def test_counting_goes_upstream_with_what_memory_adds(world: World, upstream: StrictAnthropic) -> None:
    Talk(world, model=MODEL).say("My cat is called Miso.")
    world.pass_time(1000)
    sdk = client(world)
    messages: Any = [{"role": "user", "content": "What is my cat called?"}]
    headers = {"x-mnemogate-user": "alice"}
    bare = sdk.messages.count_tokens(model=MODEL, messages=messages)
    counted = sdk.messages.count_tokens(model="agent/helper", messages=messages, extra_headers=headers)
    assert upstream.last.path == "/v1/messages/count_tokens"
    assert counted.input_tokens > bare.input_tokens
    body = upstream.last.json
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    Talk(world, model="agent/helper").say("What is my cat called?")
    sent = {key: upstream.last.json[key] for key in body}
    assert sent == body


def test_a_fallback_to_another_dialect_answers_in_this_one(tmp_path: Path, upstream: StrictAnthropic) -> None:
    with with_fallback(upstream, tmp_path) as (world, other):
        talk = Talk(world, model="smart")
        upstream.queue(think("Hm.", text="Well."))
        talk.say("Hello")
        upstream.queue(refuse(529, "overloaded_error"))
        other.queue(say("From afar."))
        assert talk.say("And now?") == "From afar."
        assert [m["role"] for m in other.last.messages] == ["user", "assistant", "user"]
        assert b"thinking" not in other.last.body


# -- the prompt's cache


def test_the_prefix_of_sixty_turns_is_read_back(upstream: StrictAnthropic, tmp_path: Path) -> None:
    """With notes, edits of blocks by the model and by others, and rounds of both kinds of tools."""
    with remember(upstream, tmp_path, agent(model=BOUND), upstreams=claude(upstream)) as world:
        converse(world, upstream, 60)
        assert not [request.refusal for request in upstream.chats if request.refusal]
        assert max(len(request.json["messages"]) for request in upstream.chats) > 120
        assert upstream.cache.read >= 0.95 * upstream.cache.could_read > 0


@both_ways
def test_a_window_is_cut_so_that_calls_and_results_stay_together(
    upstream: StrictAnthropic, tmp_path: Path, stream: bool
) -> None:
    models = (ModelSettings("small", MODEL, "up", context_window=3000),)
    with remember(upstream, tmp_path, upstreams=claude(upstream), models=models) as world:
        talk = Talk(world, model="small", stream=stream, options={"tools": [WEATHER], "max_tokens": 200})
        for turn in range(8):
            upstream.queue(call_tools(Call("weather", {"city": f"City {turn}"})), say("Rain. " * 60))
            words: Any = f"How is it, number {turn}? " * 12
            if talk.messages and talk.messages[-1]["content"][0]["type"] == "tool_result":
                talk.messages[-1]["content"].append({"type": "text", "text": words})
            else:
                talk.messages.append({"role": "user", "content": words})
            reply = talk.complete()
            talk.messages.append({"role": "assistant", "content": sent_again(reply)})
            talk.answer(calls_of(reply)[0], [{"type": "text", "text": "Rain. " * 40}, PIXEL])
            upstream.forget_replies()
        assert [request.refusal for request in upstream.chats if request.refusal] == []
        assert len(upstream.last.json["messages"]) < len(talk.messages) - 1


def test_the_heard_part_of_a_reply_off_the_record_follows_the_stored_reply(
    world: World, upstream: StrictAnthropic
) -> None:
    """Roles alternate, or the API refuses the request."""
    headers = {
        "x-mnemogate-user": "alice",
        "x-mnemogate-conversation": "call-1",
        "x-mnemogate-history": "append",
    }
    upstream.queue(say("Good day."), say("Once there was a fox."), say("It woke."))
    assert post(world, hello(), headers).status == 200
    assert post(world, hello("A tale?"), {**headers, "x-mnemogate-memory": "off"}).status == 200
    heard = {"role": "assistant", "content": "Once there was"}
    body = {**hello(), "messages": [heard, {"role": "user", "content": "And then?"}]}
    assert post(world, body, headers).status == 200
    assert [message["role"] for message in upstream.last.json["messages"]] == ["user", "assistant", "user"]
    assert blocks(upstream.last, 1) == [plain("Good day."), plain("Once there was")]
