"""A chat request is read once; what we act on is checked, what we do not act on passes."""

from __future__ import annotations

import sys
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.conversation.wire_message import PRIVATE
from gateway.core.json_limits import MAX_VALUES
from gateway.core.request.chat_request import ChatRequest
from gateway.dialects.chat.parse import ROLES, parse
from gateway.dialects.repeated_keys import find_repeated_keys
from gateway.errors import BadRequest, BodyTooLarge
from tests.rows import each_row

USER = {"role": "user", "content": "hi"}
DEEP = b"[" * 400 + b"]" * 400


def read(**fields: Any) -> ChatRequest:
    return parse(orjson.dumps({"model": "m", "messages": [USER], **fields}))


def refused(body: bytes, **limits: int) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(body, **limits)
    return caught.value


def test_a_plain_request_keeps_its_own_bytes() -> None:
    body = b'{ "model": "gpt", "messages": [{"role":"user","content":"hi"}] }'
    request = parse(body)
    assert request.raw is body
    assert (request.model, request.messages, request.n) == ("gpt", [USER], 1)
    assert not any((request.stream, request.wants_usage, request.has_tools))
    assert (request.tool_names, request.token_limit) == ((), None)
    assert request.begin_edit().render() is body


def test_the_fields_that_the_gateway_acts_on_are_read() -> None:
    request = read(
        stream=True,
        stream_options={"include_usage": True},
        tools=[
            {"type": "function", "function": {"name": "a"}},
            {"type": "custom", "custom": {"name": "b"}},
            {"function": {"name": "c"}},
            {"type": "web_search"},
            {"type": "function", "function": {"name": 7}},
        ],
        functions=[{"name": "d"}],
        n=2.0,
        max_tokens=7,
        max_completion_tokens=5,
    )
    assert (request.stream, request.wants_usage, request.n) == (True, True, 2)
    assert (request.tool_names, request.has_tools) == (("a", "b", "c", "d"), True)
    assert request.token_limit == (5, "max_completion_tokens")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_negative_limit_is_none(field: str) -> None:
    """LM Studio and llama.cpp take -1 for "no limit", and get the body as it came."""
    request = read(**{field: -1})
    assert request.token_limit is None
    assert request.json[field] == -1


def test_null_is_absent() -> None:
    request = read(
        **dict.fromkeys(
            (
                "stream",
                "stream_options",
                "tools",
                "functions",
                "n",
                "max_tokens",
                "response_format",
                "logprobs",
            )
        )
    )
    assert (request.stream, request.n, request.max_tokens, request.has_tools) == (False, 1, None, False)


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize(
    "message",
    [
        {},
        {"content": None},
        {"content": ""},
        {"content": []},
        {"content": [{"type": "hologram", "beam": 1}, {}]},
        # broken calls are the upstream's to refuse
        {"tool_calls": [{"function": "?"}, 7]},
        {"tool_calls": {"a": 1}, "tool_call_id": 5, "function_call": []},
        {"name": 3, "reasoning_content": {"x": None}, "cache_control": 0},
    ],
)
def test_messages_of_any_make_pass(role: str, message: dict[str, Any]) -> None:
    assert read(messages=[{"role": role, **message}]).messages == [{"role": role, **message}]


def test_fields_we_do_not_know_pass() -> None:
    assert read(provider={"order": ["x"]}, call={"id": 1}, temperature="warm", metadata=[1]).model == "m"
    body = b'{"model":"m","messages":[{"role":"user"}],"x":1,"x":2}'
    assert parse(body).json["x"] == 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": "  "}, "model"),
    ({"model": 4}, "model"),
    ({"model": "gpt\x00"}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": [USER, "hi"]}, "messages[1]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [USER, USER, {"content": "x"}]}, "messages[2].role"),
    ({"messages": [{"role": 1}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"]}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard"}]}, "messages[0].role"),
    ({"messages": [{"role": "User"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{}, "x"]}]}, "messages[0].content[1]"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"tools": {}}, "tools"),
    ({"tools": [{}, "x"]}, "tools[1]"),
    ({"functions": "f"}, "functions"),
    ({"n": 0}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1e300}, "max_tokens"),
    ({"max_completion_tokens": []}, "max_completion_tokens"),
    ({"response_format": "json"}, "response_format"),
]


@each_row(("fields", "param"), BAD)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(orjson.dumps({"model": "m", "messages": [USER], **fields}))
    assert (error.status, error.param, error.kind) == (400, param, "invalid_request_error")


@pytest.mark.parametrize("key", ["model", "messages"])
def test_a_missing_field_is_named(key: str) -> None:
    fields = {"model": "m", "messages": [USER]}
    del fields[key]
    error = refused(orjson.dumps(fields))
    assert (error.param, error.code) == (key, "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"{",
        b'{"model":"m","messages":[{"role":"user"}]',
        b'{"model":"m"} {}',
        b"[]",
        b"null",
        b'"x"',
        b'{"model":"\xff"}',  # invalid UTF-8
        b'{"model":"m\x00"}',  # NUL itself, not its escape
        b'{"model":"\\ud83d"}',  # half a surrogate pair
        b'{"temperature":NaN}',
        b'{"temperature":-Infinity}',
        b'{"temperature":1e999}',
        b'{"a":' * 100_000,
        b"[" * 2_000 + b"]" * 2_000,
        b'{"a":' + b"[" * 2_000 + b"]" * 2_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    error = refused(body)
    assert error.param is None
    assert error.message.startswith("We could not parse the JSON body of your request")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"m","messages":[{"role":"user"}],"user":"a","user":"b"}', "user"),
        (b'{"model":"m","messages":[{"role":"user"}],"us\\u0065r":"a","user":"b"}', "user"),
        (b'{"model":"m","messages":[{"role":"user"},{"role":"user"}],"user":"a","user"\n :"b"}', "user"),
        (b'{"model":"m","messages":[{"role":"user"}],"messages":[{"role":"user"}]}', "messages"),
        (b'{"model":"m","model":"m","messages":[{"role":"user"}]}', "model"),
        *(
            (
                b'{"user":"a","model":"m","messages":[{"role":"user"}],"x":"'
                + b"x" * size
                + b'","user":"b"}',
                "user",
            )
            for size in (300_000, 3_000_000)
        ),
        (b'{"user": "a", "model": "m", "messages": [{"role": "user"}], "user": "b"}', "user"),
        (b'{"model":"m","messages":[{"role":"user"}],"user":"a","user":"b","x":%b}' % DEEP, "user"),
    ],
    ids=lambda each: repr(each[:60]),
)
def test_a_field_we_act_on_comes_once(body: bytes, param: str) -> None:
    assert refused(body).param == param


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (b"{}", ()),
        (b'{"a":{"b":[1,"c"]},"c":null}', ()),
        (b'{"a": {"b": [1, "c"]}, "c": null}', ()),
        (b'{"a":1e6,"b":1,"b":100}', ("b",)),  # written again it is as long
        (b'{"a":{"b":1,"b":2},"c":[{"a":1,"a":1}]}', ()),
        (rb'{"mod\u0065l":1,"n":[],"model":2,"N":3,"n":4}', ("model", "n")),
        (b'{"a":%b,"b":1,"a":1}' % (b"9" * 300), ("a",)),
        # The longest value is there once more: as a value, and across the end of a text.
        (b'{"a":["%b"],"a":["%b"]}' % (b"x" * 200, b"x" * 200), ("a",)),
        (b'{"a":"b\\"%b","a":"%b"}' % (b"x" * 200, b"x" * 200), ("a",)),
        (b'{"b\\"%b":1,"a":"%b"}' % (b"x" * 200, b"x" * 200), ()),
        # Counted one by one they would take the square of their number: minutes for these.
        (b"{%b}" % b",".join(b'"k%d":1' % (i % 200_000) for i in range(200_001)), ("k0",)),
    ],
    ids=lambda each: repr(each[:40]),
)
def test_repeated_keys_are_found(body: bytes, keys: tuple[str, ...]) -> None:
    assert find_repeated_keys(body) == find_repeated_keys(body, json=orjson.loads(body)) == keys


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 looks into all levels that orjson reads")
def test_a_field_that_is_too_deep_to_be_checked_is_refused() -> None:
    body = b'{"model":"m","messages":[{"role":"user"}],"user":"a","x":%b,"user":"b"}'
    deep = b"[" * 1_020 + b"]" * 1_020
    assert orjson.loads(body % deep)
    assert "nested too deep" in refused(body % deep).message


def test_arguments_of_very_many_values_are_refused_before_they_are_read() -> None:
    def body(*arguments: str) -> bytes:
        calls = [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": each}}
            for each in arguments
        ]
        return orjson.dumps({"model": "m", "messages": [USER, {"role": "assistant", "tool_calls": calls}]})

    half = "[" + "0," * (MAX_VALUES // 2 + 1) + "0]"
    assert parse(body(half)).model == "m"
    assert parse(body(orjson.dumps({"csv": half * 3}).decode())).model == "m"
    assert parse(body("0," * (2 * MAX_VALUES))).model == "m"  # a text of a custom tool
    with pytest.raises(BodyTooLarge):
        parse(body(half, half))


def test_a_clients_value_under_the_private_key_is_not_read_and_goes_upstream() -> None:
    message = {"role": "assistant", "content": "a", PRIVATE: {"fillers": [[5]]}}
    body = orjson.dumps({"model": "m", "messages": [USER, message, message]})
    request = parse(body)
    assert request.messages == [USER, *[{"role": "assistant", "content": "a"}] * 2]
    edit = request.begin_edit()
    edit.prefix_text(0, "N ")
    assert edit.render() == body.replace(b'"hi"', b'"N hi"')


def test_a_body_may_be_nested_more_deeply_than_we_write() -> None:
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps(orjson.loads(DEEP))
    assert parse(b'{"model":"m","messages":[{"role":"user"}],"x":%b}' % DEEP).model == "m"


@pytest.mark.parametrize("levels", [237, 238, 400])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"m","messages":[{"role":"user","x":%b}]}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":"Hi","x":%b}]}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":[{"type":"x"}],"x":%b}]}', "messages"),
        (b'{"model": "m", "messages": [{"role": "user"}], "tools": [{"type": %b}]}', "tools"),
        (b'{"model": "m", "messages": [{"role": "user"}], "functions": [{"name": %b}]}', "functions"),
    ],
)
def test_a_body_that_is_written_again_has_240_levels_at_most(body: bytes, param: str, levels: int) -> None:
    """Else it was answered and not stored, or was a 500 where tokens are counted."""
    whole = body % (b'{"a":' * levels + b"1" + b"}" * levels)
    if levels == 237:  # with those of the body, the list and its element
        assert parse(whole).model == "m"
    else:
        assert "240 levels" in refused(whole).message
        assert refused(whole).param == param


def test_ten_thousand_messages_are_too_many() -> None:
    body = orjson.dumps({"model": "m", "messages": [USER] * 10_000})
    assert refused(body).param == "messages"
    assert len(parse(body, max_messages=10_000).messages) == 10_000
    assert refused(body, max_messages=9_999).code == "array_above_max_length"


def test_an_error_does_not_repeat_what_was_said() -> None:
    assert "secret" not in refused(b'{"messages":"my secret" x').message
    assert len(refused(orjson.dumps({"model": "m", "messages": [{"role": "x" * 9_999}]})).message) < 300


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "name", "type"]), v)
    ),
    max_leaves=6,
)
FIELDS = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "tools",
    "functions",
    "n",
    "max_tokens",
    "tool_choice",
]


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from([*FIELDS, "response_format", "logprobs", "x"]), anything),
    st.booleans(),
)
def test_any_json_is_read_or_refused(fields: dict[str, Any], is_near_miss: bool) -> None:
    body = orjson.dumps({"model": "m", "messages": [USER], **fields} if is_near_miss else fields)
    try:
        request = parse(body)
    except BadRequest:
        return
    assert request.json == orjson.loads(body)
    assert request.messages == request.json["messages"]


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    whole = b'{"model":"m","messages":[{"role":"user"}]}'
    for body in (noise, whole[: len(noise)] + noise, whole + noise):
        try:
            parse(body)
        except BadRequest:
            continue
        assert body.strip() == whole
