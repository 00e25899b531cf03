"""Anthropic's dialect before an upstream that has chat completions only, with Anthropic's own SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest

from gateway.core.conversation.wire_message import read_text as text_of_chat
from gateway.tokens import choose_tokenizer
from tests.doubles.upstream import ZEROS, Call, StrictUpstream, call_tools, fail, raw, say, uncounted
from tests.gateway.messages.sdk import WEATHER, Talk, calls_of, client, sent_again, text_of
from tests.gateway.sdk import World, agent, remember
from tests.rows import each_row

Json = dict[str, Any]
PIXEL = "iVBORw0KGgo="
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def refused(world: World, **fields: Any) -> str:
    """Returns the message of the 400 that a request with these fields gets."""
    with pytest.raises(anthropic.BadRequestError) as raised:
        client(world).post(
            "/v1/messages",
            body={
                "model": "m",
                "max_tokens": 10,
                "messages": [{"role": "user", "content": "Hi"}],
                **fields,
            },
            cast_to=object,
        )
    body = raised.value.response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    return str(body["error"]["message"])


# -- what goes up


def test_a_request_becomes_a_chat_completion(world: World, upstream: StrictUpstream) -> None:
    talk = Talk(world, user=None)
    talk.messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is it in Bern?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "No network"},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    talk.complete(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cc_entrypoint=cli;"},
            {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[{**WEATHER, "defer_loading": True}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        extra_body={"temperature": 0.5},
        output_config={"effort": "high"},
        thinking={"type": "adaptive"},
    )
    body = upstream.last.json
    assert body["messages"] == [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "How is it in Bern?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Bern"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: No network"},
        {"role": "user", "content": "Well?"},
    ]
    function = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    asked = {
        key: body[key]
        for key in (
            *("tool_choice", "parallel_tool_calls", "stop", "temperature"),
            *("reasoning_effort", "max_tokens"),
        )
    }
    assert asked == {
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stop": ["END"],
        "temperature": 0.5,
        "reasoning_effort": "high",
        "max_tokens": 1000,
    }


def test_media_and_documents_become_parts(world: World, upstream: StrictUpstream) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    link = {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}}
    text = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "Red."},
    }
    found = {
        "type": "search_result",
        "title": "Cats",
        "source": "https://example.com",
        "content": [{"type": "text", "text": "Cats purr."}],
    }
    Talk(world, user=None).say([image, link, text, found, {"type": "text", "text": "What is this?"}])
    assert upstream.last.messages[-1]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "text", "text": "Notes\n\nRed."},
        {"type": "text", "text": "Cats (https://example.com)\nCats purr."},
        {"type": "text", "text": "What is this?"},
    ]


def test_an_image_of_a_result_follows_in_a_users_message(world: World, upstream: StrictUpstream) -> None:
    talk = Talk(world, user=None)
    upstream.queue(call_tools(Call("look", {})), say("A cat."))
    talk.messages.append({"role": "user", "content": "Look."})
    call = calls_of(talk.complete(tools=[{**WEATHER, "name": "look"}]))[0]
    talk.messages.append(
        {"role": "assistant", "content": [{"type": "tool_use", "id": call.id, "name": "look", "input": {}}]}
    )
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    talk.answer(call, [{"type": "text", "text": "Here."}, image])
    assert talk.go_on(tools=[{**WEATHER, "name": "look"}]) == "A cat."
    result, shown = upstream.last.messages[-2:]
    assert (result["role"], result["content"]) == ("tool", "Here.")
    assert [part["type"] for part in shown["content"]] == ["image_url"]


def test_a_schema_becomes_a_response_format(world: World, upstream: StrictUpstream) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    upstream.queue(say('{"a":"b"}'))
    Talk(world).say("Answer.", output_config={"format": {"type": "json_schema", "schema": schema}})
    form = upstream.last.json["response_format"]
    assert (form["type"], form["json_schema"]["schema"]) == ("json_schema", schema)


def test_fields_without_effect_are_named(world: World) -> None:
    raw = client(world).messages.with_raw_response.create(
        model="m",
        max_tokens=10,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}],
            }
        ],
        thinking={"type": "adaptive"},
        extra_headers={"anthropic-beta": "something-2026-01-01"},
        extra_body={
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "inference_geo": "us",
        },
        service_tier="auto",
    )
    named = set(raw.headers["x-mnemogate-consumed"].split(","))
    assert named == {
        *("thinking", "context_management", "cache_control", "anthropic-beta"),
        *("inference_geo", "service_tier"),
    }


@each_row(
    ("fields", "named"),
    [
        ({"top_k": 5}, "top_k"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"fallbacks": []}, "fallbacks"),
        ({"next_month": True}, "next_month"),
        ({"tools": [{"type": "web_search_20260101", "name": "web_search"}]}, "tools.0.web_search_20260101"),
        ({"tools": [{**WEATHER, "later": 1}]}, "tools.0.later"),
        ({"tools": [{**WEATHER, "allowed_callers": ["code_execution_20260120"]}]}, "tools.0.allowed_callers"),
        ({"output_config": {"task_budget": 1}}, "output_config.task_budget"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits.0.clear_tool_uses_20250919",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi", "next": 1}]},
                ]
            },
            "messages.0.content.0.next",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
            "messages.0.content.0.container_upload",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            },
            "messages.0.content.0.source.file",
        ),
    ],
)
def test_the_refusal_names_the_field_that_cannot_be_translated(
    world: World, fields: Json, named: str
) -> None:
    assert refused(world, **fields).startswith(f"{named}: Extra inputs are not permitted")


def test_a_field_that_is_null_counts_as_absent(world: World, upstream: StrictUpstream) -> None:
    """Blocks of the SDK have all fields that it knows, and applications send them back like that."""
    upstream.queue(call_tools(Call("weather", {"city": "Bern"}), text="Let me see."), say("It rains."))
    talk = Talk(world, options={"tools": [WEATHER], "extra_body": {"container": None}})
    talk.messages.append({"role": "user", "content": "The weather?"})
    reply = talk.complete()
    blocks = [block.model_dump() for block in reply.content]
    assert None in blocks[1].values()
    talk.messages.append({"role": "assistant", "content": blocks})
    talk.answer(calls_of(reply)[0], "Rain")
    assert talk.go_on() == "It rains."


def test_a_tool_without_a_name_is_refused_in_anthropics_words(world: World) -> None:
    for choice in ({"type": "tool"}, {"type": "tool", "name": ["weather"]}):
        found = refused(world, tools=[WEATHER], tool_choice=choice)
        assert found == "tool_choice.tool.name: Input should be a valid string"


USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "Rain."}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (
            [("user", "Hi"), ("assistant", [USE, {**USE, "id": "t2"}]), ("user", [RESULT])],
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: t2.",
        ),
        (
            [("user", "Hi"), ("assistant", [USE]), ("user", "And?"), ("assistant", "x"), ("user", [RESULT])],
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: t1.",
        ),
        ([("user", "Hi"), ("assistant", [USE])], "messages.1: `tool_use` ids were found"),
        (
            [("user", "Hi"), ("assistant", "x"), ("user", [RESULT])],
            "messages.2.content.0: unexpected `tool_use_id` found in `tool_result` blocks: t1.",
        ),
        (
            [("user", "Hi"), ("assistant", [USE]), ("user", [RESULT, RESULT])],
            "messages.2.content.1: unexpected `tool_use_id`",
        ),
        ([("user", [])], "messages.0: user messages must have non-empty content"),
    ],
)
def test_a_call_and_its_result_belong_together(
    world: World, messages: list[tuple[str, Any]], found: str
) -> None:
    listed = [{"role": role, "content": content} for role, content in messages]
    assert refused(world, messages=listed, tools=[WEATHER]).startswith(found)


def test_results_of_one_turn_may_come_in_several_messages(world: World, upstream: StrictUpstream) -> None:
    listed = [("user", "Hi"), ("assistant", [USE, {**USE, "id": "t2"}]), ("user", [RESULT])]
    listed += [("user", [{**RESULT, "tool_use_id": "t2"}])]
    messages: Any = [{"role": role, "content": content} for role, content in listed]
    client(world).messages.create(model="m", max_tokens=10, messages=messages, tools=[WEATHER])
    assert [m["role"] for m in upstream.last.messages] == ["user", "assistant", "tool", "tool"]


def test_an_upstreams_error_names_the_clients_fields(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(fail(400, "Invalid 'tools[0].function.parameters': no object. Invalid 'stop': too long."))
    assert refused(world) == "Invalid 'tools[0].input_schema': no object. Invalid 'stop_sequences': too long."
    upstream.queue(fail(400, "Please stop: `max_completion_tokens` is too large."))
    assert refused(world) == "Please stop: `max_tokens` is too large."


def test_a_prefill_is_refused_in_anthropics_words(world: World) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I"}]
    assert "does not support assistant message prefill" in refused(world, messages=messages)


def test_a_key_that_is_there_twice_is_refused(world: World) -> None:
    body = b'{"model": "m", "max_tokens": 1, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}'
    assert world.gateway.ask("POST", "/v1/messages", body).status == 400


# -- what comes down


@both_ways
def test_text_thoughts_and_calls_become_blocks(world: World, upstream: StrictUpstream, stream: bool) -> None:
    calls = (Call("weather", {"city": "Bern"}), Call("weather", {"city": "Rome"}))
    upstream.queue(call_tools(*calls, text="Let me see.", delta={"reasoning_content": "Hm."}))
    talk = Talk(world, stream=stream)
    talk.messages.append({"role": "user", "content": "How is it?"})
    reply = talk.complete(tools=[WEATHER])
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (reply.content[0].thinking, reply.content[0].signature) == ("Hm.", "")
    assert text_of(reply) == "Let me see."
    assert [call.input for call in calls_of(reply)] == [{"city": "Bern"}, {"city": "Rome"}]
    assert (reply.stop_reason, reply.role, reply.type) == ("tool_use", "assistant", "message")
    assert reply.usage.output_tokens > 0


@both_ways
def test_thoughts_among_the_parts_of_the_content_are_shown(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    """Mistral's."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    parts = [{"content": [thinking]}, {"content": [{"type": "text", "text": "Fine."}]}]
    if stream:
        choices = [{"index": 0, "delta": each} for each in parts]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        events = [b"data: %b\n\n" % orjson.dumps({"id": "c", "choices": [each]}) for each in choices]
        upstream.queue(raw(*events, b"data: [DONE]\n\n"))
    else:
        message = {"role": "assistant", "content": [part for each in parts for part in each["content"]]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        upstream.queue(raw(orjson.dumps({"id": "c", "choices": [choice]}), content_type="application/json"))
    talk = Talk(world, stream=stream)
    talk.messages.append({"role": "user", "content": "How is it?"})
    shown = [(block.type, getattr(block, "thinking", None)) for block in talk.complete().content]
    assert shown == [("thinking", "Hm."), ("text", None)]


@both_ways
@each_row(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        # The words of other makers.
        ("eos", "end_turn"),
        ("model_length", "max_tokens"),
        ("SAFETY", "refusal"),
        ("insufficient_system_resource", "max_tokens"),
    ],
)
def test_reasons_are_translated(
    world: World, upstream: StrictUpstream, stream: bool, finish: str, reason: str
) -> None:
    upstream.queue(say("So", finish_reason=finish))
    talk = Talk(world, stream=stream)
    talk.messages.append({"role": "user", "content": "Hi"})
    assert talk.complete().stop_reason == reason


@both_ways
def test_a_call_is_the_reason_whatever_the_upstream_says(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    """A call that was forced ends with "stop" in chat completions."""
    upstream.queue(call_tools(Call("weather", {"city": "Bern"}), finish_reason="stop"))
    talk = Talk(world, stream=stream, options={"tools": [WEATHER]})
    talk.messages.append({"role": "user", "content": "Hi"})
    forced = {"type": "tool", "name": "weather"}
    assert talk.complete(tool_choice=forced).stop_reason == "tool_use"


@both_ways
@pytest.mark.parametrize("field", ["stop_reason", "matched_stop"])  # of vLLM, of SGLang
def test_the_stop_sequence_that_ended_a_reply_is_named(
    world: World, upstream: StrictUpstream, stream: bool, field: str
) -> None:
    upstream.queue(say("So", ending={field: "END"}), say("So", ending={field: 128_009}), say("So"))
    talk = Talk(world, stream=stream, options={"stop_sequences": ["STOP", "END"]})
    talk.messages.append({"role": "user", "content": "Hi"})
    found = [talk.complete() for _ in range(3)]
    ends = [(reply.stop_reason, reply.stop_sequence) for reply in found]
    assert ends == [("stop_sequence", "END"), ("end_turn", None), ("end_turn", None)]


@both_ways
def test_a_reply_has_an_id_in_anthropics_header(world: World, upstream: StrictUpstream, stream: bool) -> None:
    made = client(world).messages.with_raw_response.create(
        model="m", max_tokens=10, stream=stream, messages=[{"role": "user", "content": "Hi"}]
    )
    made.http_response.read()
    assert made.headers["request-id"] == made.headers["x-mnemogate-request-id"]


@both_ways
def test_cached_tokens_are_counted_apart(world: World, upstream: StrictUpstream, stream: bool) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 60},
    }
    # Kimi puts it into the choice that ends a stream, and the cached tokens next to the others.
    kimi_usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "cached_tokens": 60}
    kimis = (
        [say("So", usage=ZEROS, ending={"usage": kimi_usage})] if stream else [say("So", usage=kimi_usage)]
    )
    for reply in (say("So", usage=usage), *kimis):
        upstream.queue(reply)
        talk = Talk(world, stream=stream)
        talk.messages.append({"role": "user", "content": "Hi"})
        found = talk.complete().usage
        assert (found.input_tokens, found.cache_read_input_tokens, found.output_tokens) == (40, 60, 7)


@both_ways
@pytest.mark.parametrize("usage", [None, ZEROS], ids=["none", "zeros"])
@pytest.mark.parametrize("memory", ["on", "off"])
def test_where_the_upstream_reports_no_usage_it_is_counted_here(
    world: World, upstream: StrictUpstream, stream: bool, memory: str, usage: dict[str, int] | None
) -> None:
    upstream.queue(uncounted("The quick brown fox jumps over the lazy dog.", stream=stream, usage=usage))
    talk = Talk(world, stream=stream, headers={"x-mnemogate-memory": memory})
    talk.messages.append(
        {"role": "user", "content": "And a longer question than the one before it was. " * 10}
    )
    found = talk.complete().usage
    assert 8 <= found.output_tokens <= 16
    assert 90 <= found.input_tokens <= 150


def test_events_come_in_anthropics_order(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(call_tools(Call("weather", {"city": "Bern"}), text="Well."))
    with client(world).messages.stream(
        model="m", max_tokens=10, tools=[WEATHER], messages=[{"role": "user", "content": "Hi"}]
    ) as stream:
        kinds = [
            event.type for event in stream if event.type.startswith(("message", "content")) and event.type
        ]
    singles = [kind for n, kind in enumerate(kinds) if not n or kinds[n - 1] != kind]
    assert singles == [
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop"),
        "message_delta",
        "message_stop",
    ]


def test_the_first_event_of_a_stream_counts_cached_tokens(world: World) -> None:
    """Clients add these to the other tokens, and Anthropic always sends them."""
    with client(world).messages.stream(
        model="m", max_tokens=10, messages=[{"role": "user", "content": "Hi"}]
    ) as stream:
        usage = next(event.message.usage for event in stream if event.type == "message_start")
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)


def test_an_error_within_a_stream_is_an_error_event(world: World, upstream: StrictUpstream) -> None:
    error = {"message": "Out of memory", "type": "server_error", "code": None}
    upstream.queue(say("So it goes", error_after=(2, error)))
    with pytest.raises(anthropic.APIStatusError, match="Out of memory"):
        Talk(world, stream=True).say("Hi")


def test_a_refusal_of_the_upstream_is_its_status(world: World, upstream: StrictUpstream) -> None:
    upstream.queue(fail(400, message="Too much."))
    with pytest.raises(anthropic.BadRequestError, match="Too much"):
        Talk(world, stream=True).say("Hi")


# -- memory


@both_ways
def test_a_conversation_recalls_messages_of_another(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    Talk(world, stream=stream).say("My cat is called Miso.")
    world.pass_time(1000)
    talk = Talk(world, stream=stream)
    talk.say("What is my cat called?")
    assert "Miso" in upstream.last.messages[-1]["content"]
    before = [orjson.dumps(each) for each in upstream.last.messages]
    talk.say("And its colour?")
    assert [orjson.dumps(each) for each in upstream.last.messages][: len(before)] == before


@both_ways
def test_hidden_rounds_are_one_message(world: World, upstream: StrictUpstream, stream: bool) -> None:
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(call_tools(insert, text="One moment."), say("Noted."))
    talk = Talk(world, model="agent/helper", stream=stream)
    assert talk.say("I like tea.").replace(" ", "") == "Onemoment.Noted."
    assert [block["type"] for block in talk.messages[-1]["content"]] == ["text"]
    talk.say("Good.")
    assert world.block("alice").value == "Likes tea."
    roles = [message["role"] for message in upstream.last.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]


def test_claude_codes_user_is_the_account_or_the_device(world: World, upstream: StrictUpstream) -> None:
    for user, person in (
        ({"device_id": "d1", "account_uuid": "a1", "session_id": "s1"}, "a1"),
        ({"device_id": "d1", "account_uuid": "", "session_id": "s2"}, "d1"),
    ):
        Talk(world, user=orjson.dumps(user).decode()).say("Hello")
        assert upstream.last.json["user"] == person
    Talk(world, user="user_abc_account__session_s3").say("Hello")
    assert upstream.last.json["user"] == "abc"
    assert sorted(world.query("SELECT DISTINCT subject FROM agents WHERE subject LIKE 'user:%'")) == [
        "user:a1",
        "user:abc",
        "user:d1",
    ]


def test_claude_codes_session_names_the_conversation(world: World) -> None:
    user = orjson.dumps({"device_id": "d1", "account_uuid": "", "session_id": "s1"}).decode()
    Talk(world, user=user).say("Hello")
    Talk(world, user=user).say("Hello again")
    assert world.query("SELECT count(*) FROM conversations") == [1]


@pytest.mark.parametrize("by", ["header", "attribution"])
def test_a_sub_agents_request_leaves_nothing(world: World, upstream: StrictUpstream, by: str) -> None:
    talk = Talk(world)
    talk.say("My cat is called Miso.")
    world.pass_time(1000)
    sub = Talk(world)
    if by == "header":
        sub.headers["x-claude-code-agent-id"] = "a1"
        sub.say("What is my cat called?")
    else:
        line = "x-anthropic-billing-header: cc_version=2; cc_is_subagent=true;"
        sub.say("What is my cat called?", system=[{"type": "text", "text": line}])
    assert upstream.last.messages == [{"role": "user", "content": "What is my cat called?"}]
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def test_a_conversation_goes_on_in_another_dialect(world: World, upstream: StrictUpstream) -> None:
    talk = Talk(world)
    talk.say("My cat is called Miso.")
    chat = world.chat(user="alice")
    chat.messages = [
        {"role": "user", "content": "My cat is called Miso."},
        {"role": "assistant", "content": "Ok."},
    ]
    chat.say("It is red.")
    items: Any = [
        *chat.messages,
        {"role": "user", "content": "And old."},
    ]
    world.sdk.responses.create(
        model="m", input=items, user="alice", extra_headers={"x-mnemogate-upstream": "up"}
    )
    talk.messages = [{"role": each["role"], "content": each["content"]} for each in items]
    talk.messages.append({"role": "assistant", "content": [{"type": "text", "text": "Ok."}]})
    talk.say("Goodbye.")
    assert world.query("SELECT count(*) FROM conversations") == [1]
    assert world.query("SELECT count(*) FROM exchanges") == [4]


# -- counting


def test_counting_is_near_what_the_turn_takes_and_leaves_nothing(
    world: World, upstream: StrictUpstream
) -> None:
    Talk(world).say("My cat is called Miso.")
    world.pass_time(1000)
    messages: Any = [{"role": "user", "content": "What is my cat called?"}]
    bare = client(world).messages.count_tokens(model="m", messages=messages)
    counted = client(world).messages.count_tokens(
        model="agent/helper",
        messages=messages,
        system="You are kind.",
        extra_body={"metadata": {"user_id": "alice"}},
    )
    assert counted.input_tokens > bare.input_tokens > 0
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    Talk(world, model="agent/helper").say("What is my cat called?", system="You are kind.")
    texts = [text_of_chat(each) for each in upstream.last.messages]
    texts += [orjson.dumps(tool["function"]).decode() for tool in upstream.last.json["tools"]]
    # By the model's own tokenizer, with three or four tokens around each message, as OpenAI counts.
    count = choose_tokenizer(upstream.last.json["model"]).count
    takes = sum(map(count, texts)) + 4 * len(upstream.last.messages)
    assert counted.input_tokens == pytest.approx(takes, rel=0.1)


# -- agents of the agents API


@pytest.mark.agents
@both_ways
def test_an_agent_answers_with_its_memory_and_tools(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    body = {
        "name": "ann",
        "model": "up/m",
        "memory_blocks": [{"label": "human", "value": ""}],
        "tools": ["memory_insert"],
    }
    assert world.gateway.ask("POST", "/v1/agents/", orjson.dumps(body)).status == 200
    insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    upstream.queue(call_tools(insert, text="I note that."), say("Tea it is."), say("Yes."))
    talk = Talk(world, model="agent/ann", stream=stream)
    assert talk.say("I like tea.").split()[-1] == "is."
    assert [block["type"] for block in talk.messages[-1]["content"]] == ["text"]
    assert talk.say("Do I like tea?") == "Yes."
    assert "Likes tea." in str(upstream.last.messages)


@pytest.mark.agents
@both_ways
def test_an_agents_own_conversation_takes_the_new_message_alone(
    world: World, upstream: StrictUpstream, stream: bool
) -> None:
    body = {"name": "ann", "model": "up/m", "memory_blocks": [{"label": "human", "value": ""}]}
    assert world.gateway.ask("POST", "/v1/agents/", orjson.dumps(body)).status == 200
    headers = {"x-mnemogate-conversation": "default"}
    talk = Talk(world, model="agent/ann", stream=stream, headers=headers)
    talk.say("My cat is called Miso.")
    talk.messages.clear()
    talk.say("What is my cat called?")
    assert [m["role"] for m in upstream.last.messages] == ["system", "user", "assistant", "user"]


@both_ways
@pytest.mark.parametrize("upstream_id", [None, "", "weather"])
def test_each_call_has_an_id_of_its_own(
    world: World, upstream: StrictUpstream, upstream_id: str | None, stream: bool
) -> None:
    """Some servers give calls no id, or their function's name: clients name the results of all turns by ids."""
    named: Json = {} if upstream_id is None else {"id": upstream_id}
    cities = ("Rome", "Oslo")
    calls = [
        {
            "index": n,
            "type": "function",
            "function": {"name": "weather", "arguments": orjson.dumps(city).decode()},
        }
        | named
        for n, city in enumerate({"city": city} for city in cities)
    ]
    reply = say("", delta={"tool_calls": calls}, finish_reason="tool_calls")
    talk = Talk(world, stream=stream, options={"tools": [WEATHER]})
    made_ids = []
    for question in ("Which is warmer?", "And now?"):
        upstream.queue(reply, say("Rome."))
        talk.messages.append({"role": "user", "content": question})
        message = talk.complete()
        talk.messages.append({"role": "assistant", "content": sent_again(message)})
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": call.input["city"]}
            for call in calls_of(message)
        ]
        made_ids += [call.id for call in calls_of(message) if call.id != upstream_id]
        assert talk.say(results) == "Rome."
        *_, asked, first, second = upstream.last.messages
        assert [call["id"] for call in asked["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
        assert (first["content"], second["content"]) == cities
    assert len(set(made_ids)) == len(made_ids) == (2 if upstream_id else 4)
