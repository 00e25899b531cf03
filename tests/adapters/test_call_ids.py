"""Tool calls of other models before an upstream that takes none but its own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.tool_calls import with_call_ids, with_gemini_signatures, with_mistral_ids, with_thoughts

Json = dict[str, Any]


def loop(id: Any, answered: Any) -> Json:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return {
        "model": "m",
        "messages": [message, {"role": "tool", "tool_call_id": answered, "content": "call_1"}],
    }


@pytest.mark.parametrize(
    "id", ["call_1", "toolu_01A", "call_mnemogate_1_0", "functions.f:0", "é", "12345678", ""]
)
def test_a_call_and_its_answer_keep_one_id(id: str) -> None:
    said, answer = orjson.loads(with_mistral_ids(orjson.dumps(loop(id, id))))["messages"]
    (call,) = said["tool_calls"]
    assert call["id"] == answer["tool_call_id"]
    assert call["id"].isalnum() and call["id"].isascii() and len(call["id"]) == 9  # noqa: PT018
    assert (call["function"], answer["content"]) == ({"name": "f", "arguments": "{}"}, "call_1")


def _call(id: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("nothing", ["", None])
def test_a_call_without_an_id_gets_one_and_its_result_has_it(nothing: Any) -> None:
    def ids(messages: list[Json]) -> list[Any]:
        return [each.get("tool_call_id") or [call["id"] for call in each["tool_calls"]] for each in messages]

    calls = [{"role": "assistant", "tool_calls": [_call(nothing), _call("c1"), _call(nothing)]}]
    results = [{"role": "tool", "tool_call_id": id} for id in (nothing, "c1", nothing)]
    body = orjson.dumps({"model": "m", "messages": [*calls, *results, *calls, *results[:1]]})
    first, a, b, c, second, d = ids(orjson.loads(with_call_ids(body))["messages"])
    assert first == [a, "c1", c]
    assert b == "c1"
    assert second[0] == d
    assert len({*first, *second}) == 5
    named = ids(orjson.loads(with_mistral_ids(body))["messages"])
    assert [len(id) for id in (*named[0], *named[1:4])] == [9] * 6
    assert named[0] == named[1:4]


@pytest.mark.parametrize(
    "body",
    [
        orjson.dumps(loop("c1", "c1")),
        b'{"id": null, "messages": [{"role": "tool", "tool_call_id": ""}]}',
        b'{"messages": [{"role": "user", "id": ""}], "x": 1.0}',
        b'{"tool_call_id": ""',
    ],
)
def test_a_request_without_unnamed_calls_keeps_its_bytes(body: bytes) -> None:
    assert with_call_ids(body) is body


def test_different_ids_stay_different() -> None:
    said, answer = orjson.loads(with_mistral_ids(orjson.dumps(loop("call_1", "call_2"))))["messages"]
    assert said["tool_calls"][0]["id"] != answer["tool_call_id"]


@pytest.mark.parametrize(
    "body",
    [
        b'{ "messages":[{"role":"user","content":"tool_calls"}], "n":1.0}',
        orjson.dumps(loop("a1B2c3D4e", "a1B2c3D4e"), option=orjson.OPT_INDENT_2),  # its own
        orjson.dumps(loop(8, 7)),  # what is wrong is for the upstream to say
        b'{"messages": [1, {"tool_calls": 1}, {"tool_calls": [1]}], "x": 1.0}',
        b'{"messages": 1, "tool_calls": []}',
        b'{"messages": {"tool_calls": []}}',
        b'["tool_calls"]',
        b'{"tool_calls',
        orjson.dumps(loop("call_1", "call_1"))[:-1] + b',"tools":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_other_requests_keep_their_bytes(body: bytes) -> None:
    assert with_mistral_ids(body) is body


SIGNED = {"google": {"thought_signature": "SIG"}}
NONE = {"google": {"thought_signature": "skip_thought_signature_validator"}}
USER = {"role": "user", "content": "Hi"}


def said(*signatures: Json | None) -> Json:
    bare = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {
        "role": "assistant",
        "tool_calls": [bare if each is None else {**bare, "extra_content": each} for each in signatures],
    }


@pytest.mark.parametrize(
    ("model", "messages", "sent"),
    [
        ("gemini-3.1-pro", [USER, said(None)], [[NONE]]),
        ("models/gemini-3-flash", [USER, said(None, None)], [[NONE, None]]),  # side by side the first has one
        ("gemini-3.1-pro", [USER, said(SIGNED, None), said(None)], [[SIGNED, None], [NONE]]),
        ("gemini-3.1-pro", [USER, said(None), said(None)], [[NONE], [NONE]]),
        ("gemini-3.1-pro", [USER, said({"google": {"x": 1}})], [[{"google": {"x": 1, **NONE["google"]}}]]),
        ("gemini-3.1-pro", [USER, said({"other": 1, "google": 2})], [[{"other": 1, **NONE}]]),
        ("gemini-3.1-pro", [USER, said(None), USER], [[None]]),  # of an earlier turn none is asked for
        ("gemini-3.1-pro", [said(None), USER, said(None)], [[None], [NONE]]),
        ("gemini-2.5-pro", [USER, said(None)], [[None]]),  # nor by a model of before
        ("models/gemini-2.5-pro", [USER, said(None)], [[None]]),
    ],
)
def test_a_call_without_a_signature_says_so(model: str, messages: list[Json], sent: list[Any]) -> None:
    body = orjson.dumps({"model": model, "messages": messages})
    made = with_gemini_signatures(body)
    calls = [each["tool_calls"] for each in orjson.loads(made)["messages"] if "tool_calls" in each]
    assert [[call.get("extra_content") for call in each] for each in calls] == sent
    assert (made is body) is (orjson.loads(made)["messages"] == messages)


@pytest.mark.parametrize(
    ("reply", "sent"),
    [({}, ""), ({"reasoning_content": None}, ""), ({"reasoning_content": "So."}, "So.")],
)
def test_a_reply_without_thoughts_gets_empty_ones_beside_tools(reply: Json, sent: str) -> None:
    messages = [USER, {"role": "assistant", "content": "Hi", **reply}, USER]
    body = orjson.dumps({"model": "m", "messages": messages, "tools": []})
    made = with_thoughts(body)
    asked, said, again = orjson.loads(made)["messages"]
    assert (asked, said["reasoning_content"], again) == (USER, sent, USER)
    assert (made is body) is (sent == "So.")
    plain = orjson.dumps({"model": "m", "messages": messages})
    assert with_thoughts(plain) is plain
