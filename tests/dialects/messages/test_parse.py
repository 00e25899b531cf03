"""A malformed field is an error that names it, wherever it is and whatever stands there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import orjson
import pytest

from gateway.core.request.native_body import NativeChanges
from gateway.dialects.messages.native import NativeMessages
from gateway.dialects.messages.parse import parse, parse_body
from gateway.errors import BadRequest

Json = dict[str, Any]
JUNK: list[Any] = [None, 0, -1, 1.5, True, "", "x", [], {}, [None], [[]], {"type": None}, {"type": ["a"]}]
MARK = {"type": "ephemeral"}
CHANGES = NativeChanges(
    system=("Memory.",),
    tools=({"type": "function", "function": {"name": "memory_search"}},),
    hidden_rounds=({"role": "assistant", "content": "Let me look."},),
    tool_choice={"tool_choice": "auto"},
    changes_prefix=True,
)
BODY: Json = {
    "model": "m",
    "max_tokens": 50,
    "system": [{"type": "text", "text": "You help.", "cache_control": MARK}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Hi"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
                {
                    "type": "document",
                    "title": "Notes",
                    "source": {"type": "text", "media_type": "text/plain", "data": "d"},
                },
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": "d"}]},
                },
                {
                    "type": "search_result",
                    "title": "t",
                    "source": "s",
                    "content": [{"type": "text", "text": "c"}],
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "ok"},
                {"type": "tool_use", "id": "t1", "name": "w", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "r"}, {"type": "tool_reference", "tool_name": "x"}],
                    "is_error": False,
                },
                {"type": "text", "text": "more"},
            ],
        },
        {"role": "system", "content": "Late.", "output_config": {"effort": "high"}},
    ],
    "tools": [{"name": "w", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "metadata": {"user_id": "alice"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    "stop_sequences": ["a"],
    "stream": False,
}


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def _unchanged(body: bytes, model: str) -> bytes:
    return body


def changed(path: tuple[Any, ...], value: Any) -> bytes:
    body = copy.deepcopy(BODY)
    inner: Any = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return orjson.dumps(body)


@pytest.mark.parametrize("is_lenient", [False, True], ids=["translated", "native"])
@pytest.mark.parametrize("path", [*paths(BODY)], ids=lambda path: ".".join(map(str, path)))
def test_a_field_of_another_form_is_refused_or_read(path: tuple[Any, ...], is_lenient: bool) -> None:
    for value in JUNK:
        body = changed(path, value)
        json = parse_body(body)
        try:
            request = parse(body, json, (), 100, is_lenient=is_lenient)
        except BadRequest:
            continue
        assert request.chat.messages
        assert len(request.origins) == len(request.chat.messages)
        if is_lenient:
            native = NativeMessages(body, json, request.origins, "/messages", partial(_unchanged, body))
            assert native.render("m").body == body
            assert native.render("m", CHANGES).body != body


@pytest.mark.parametrize(
    ("name", "translated"),
    [
        ("metadata", {"user"}),
        ("tools", {"tools"}),
        ("tool_choice", {"tool_choice", "parallel_tool_calls"}),
        ("output_config", {"reasoning_effort", "response_format"}),
        ("max_tokens", {"max_tokens"}),
        ("stop_sequences", {"stop"}),
    ],
)
def test_a_field_that_only_its_upstream_can_read_is_left_out_alone_and_named(
    name: str, translated: set[str]
) -> None:
    """A fallback that gets a chat completion gets all the others."""
    body = changed((name,), 7.5)
    request = parse(body, parse_body(body), (), 100, is_lenient=True)
    raw = orjson.dumps(BODY)
    whole = parse(raw, parse_body(raw), (), 100, is_lenient=True)
    assert set(whole.chat.json) - set(request.chat.json) == translated
    assert request.untranslatable == (*whole.untranslatable, name)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("messages", 1, "role"), "messages.1.role"),
        (("messages", 1, "content", 2, "input"), "messages.1.content.2.input"),
        (
            ("messages", 0, "content", 4, "source", "content", 0, "text"),
            "messages.0.content.4.source.content.0.text",
        ),
        (("messages", 2, "content", 0, "tool_use_id"), "messages.2.content.0.tool_use_id"),
        (("messages", 2, "content", 0, "content", 1), "messages.2.content.0.content.1"),
        (("messages", 2, "content", 1, "text"), "messages.2.content.1.text"),
    ],
)
def test_an_error_names_the_place(path: tuple[Any, ...], where: str) -> None:
    body = changed(path, 7)
    with pytest.raises(BadRequest) as raised:
        parse(body, parse_body(body), (), 100, is_lenient=False)
    assert raised.value.param == where


def test_the_body_itself_is_read() -> None:
    body = orjson.dumps(BODY)
    chat = parse(body, parse_body(body), (), 100, is_lenient=False).chat
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "tool", "user", "system"]
    assert chat.json["user"] == "alice"


@pytest.mark.parametrize(
    "where", ["tools", "metadata", "output_config", "tool_choice", "context_management", "messages"]
)
def test_an_unknown_field_is_refused_by_its_path(where: str) -> None:
    body = copy.deepcopy(BODY)
    inner = body[where][0] if isinstance(body[where], list) else body[where]
    inner["next_month"] = 1
    raw = orjson.dumps(body)
    with pytest.raises(BadRequest, match=r"next_month: Extra inputs are not permitted"):
        parse(raw, parse_body(raw), (), 100, is_lenient=False)
    assert parse(raw, parse_body(raw), (), 100, is_lenient=True).chat.messages


def test_an_error_quotes_no_more_of_a_field_s_name_than_names_have() -> None:
    body = changed(("messages", 0, "content", 0, "x" * 10_000), 1)
    with pytest.raises(BadRequest) as raised:
        parse(body, parse_body(body), (), 100, is_lenient=False)
    assert len(raised.value.message) < 1_000


def effort_of(*messages: Json, **fields: Any) -> Any:
    raw = orjson.dumps({"model": "m", "max_tokens": 5, "messages": messages, **fields})
    return parse(raw, parse_body(raw), (), 100, is_lenient=False).chat.json.get("reasoning_effort")


def test_a_system_message_sets_the_effort_of_its_turn() -> None:
    hi, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok."}
    high: Json = {"role": "system", "output_config": {"effort": "high"}}
    call = {"type": "tool_use", "id": "t", "name": "w", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
    calls = {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}
    low: Json = {"output_config": {"effort": "low"}}
    assert effort_of(hi, high) == effort_of(hi, high, **low) == effort_of(hi, high, *calls, **low) == "high"
    assert effort_of(hi, high, reply, hi, **low) == "low"
    assert effort_of(hi, {**high, "content": []}, **low) == "high"
    assert effort_of(hi, {**high, "content": "Be brief.", "output_config": {}}, **low) == "low"
    with pytest.raises(BadRequest, match=r"messages\.1\.output_config\.format: Extra inputs"):
        effort_of(hi, {"role": "system", "output_config": {"format": {}}})
    with pytest.raises(BadRequest, match=r"messages\.0\.output_config: Extra inputs"):
        effort_of({**hi, "output_config": {"effort": "high"}})


def named_of(body: Json) -> set[str]:
    raw = orjson.dumps(body, option=orjson.OPT_INDENT_2)
    return set(parse(raw, parse_body(raw), (), 100, is_lenient=False).chat.consumed)


def test_only_fields_that_are_left_out_are_named() -> None:
    words = {"role": "user", "content": [{"type": "text", "text": '"type":"thinking", "citations"'}]}
    assert named_of({"model": "m", "max_tokens": 5, "messages": [words]}) == set()
    assert named_of(BODY) == {"cache_control", "thinking", "context_management"}
    body = copy.deepcopy(BODY)
    del body["thinking"]
    body["tools"][0] |= {"defer_loading": True, "allowed_callers": ["direct"], "input_examples": [{"a": 1}]}
    body["messages"][0]["content"][3]["citations"] = {"enabled": True}
    body["messages"][1]["content"][2]["caller"] = {"type": "direct"}
    body["tools"][0]["eager_input_streaming"] = None
    own = {"defer_loading", "allowed_callers", "input_examples", "citations", "caller"}
    assert named_of(body) == {"cache_control", "thinking", "context_management"} | own


@pytest.mark.parametrize(
    "block", [{"type": "tool_reference", "tool_name": "x"}, {"type": "image", "source": {"type": "url"}}]
)
def test_an_unknown_field_within_a_result_is_refused(block: Json) -> None:
    body = copy.deepcopy(BODY)
    body["messages"][2]["content"][0]["content"] = [block]
    block.get("source", block)["next_month"] = 1
    raw = orjson.dumps(body)
    with pytest.raises(BadRequest, match=r"^messages\.2\.content\.0\.content\.0\..*next_month: Extra inputs"):
        parse(raw, parse_body(raw), (), 100, is_lenient=False)


def test_the_context_of_a_pdf_stands_before_it() -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    document = {"type": "document", "title": "a.pdf", "context": "The rent of May.", "source": source}
    raw = orjson.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [document]}]})
    [message] = parse(raw, parse_body(raw), (), 100, is_lenient=False).chat.messages
    assert message["content"] == [
        {"type": "text", "text": "The rent of May."},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
    ]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "w"}])
def test_a_tool_is_forced_only_where_there_are_tools(choice: Json) -> None:
    raw = orjson.dumps({**{k: v for k, v in BODY.items() if k != "tools"}, "tool_choice": choice})
    with pytest.raises(BadRequest, match="tool_choice: may only be specified while providing tools"):
        parse(raw, parse_body(raw), (), 100, is_lenient=False)


def test_stored_messages_that_this_dialect_has_no_form_for_leave_their_words() -> None:
    """The conversation was begun in another dialect, and goes on nevertheless."""
    audio = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
    custom = {"id": "c1", "type": "custom", "custom": {"name": "patch", "input": "-a"}}
    broken = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": '{"a": '}}
    stored: list[Json] = [
        {"role": "user", "content": [audio, {"type": "text", "text": "What do I say?"}]},
        {"role": "assistant", "content": "I patch.", "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "c1", "content": "Done."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": None, "tool_calls": [broken]},
        {"role": "tool", "tool_call_id": "c2", "content": "No."},
        {"role": "assistant", "content": "Well."},
    ]
    body = orjson.dumps({**BODY, "messages": [{"role": "user", "content": "Go on."}]})
    json = parse_body(body)
    request = parse(body, json, (), 100, is_lenient=True)
    native = NativeMessages(body, json, request.origins, "/messages", partial(_unchanged, body))
    sent = native.render("m", NativeChanges(stored_messages=[(message, "") for message in stored])).body
    turns = [
        (turn["role"], turn["content"] if isinstance(turn["content"], str) else turn["content"][0]["text"])
        for turn in orjson.loads(sent)["messages"]
    ]
    assert turns == [
        ("user", "What do I say?"),
        ("assistant", "I patch."),
        ("user", "And now?"),
        ("assistant", "Well."),
        ("user", "Go on."),
    ]


@pytest.mark.parametrize("space", [b"", b" "], ids=["compact", "spaced"])
def test_the_arguments_of_a_call_keep_all_digits(space: bytes) -> None:
    """orjson reads an integer beyond 64 bits as a float: an amount in wei, an id of 20 digits."""
    arguments = b'{"wei":1234567890123456789012,"of":[-99999999999999999999,18446744073709551615,1.5]}'
    body = orjson.dumps(BODY).replace(b'"input":{"a":1}', b'"input":' + space + arguments)
    read = parse(body, parse_body(body), (), 100, is_lenient=True)
    (call,) = next(m["tool_calls"] for m in read.chat.messages if "tool_calls" in m)
    assert call["function"]["arguments"].encode() == arguments
    assert arguments in read.chat.raw.replace(b'\\"', b'"')


def test_a_long_integer_in_the_wrong_place_is_named() -> None:
    hello = orjson.dumps({"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]})
    body = hello[:-1] + b',"stream":1234567890123456789012}'
    with pytest.raises(BadRequest, match="expected a boolean, but got an integer") as raised:
        parse(body, parse_body(body), (), 100, is_lenient=False)
    assert raised.value.param == "stream"
