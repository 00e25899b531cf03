"""Calls that come without a number: each piece gets the one of its call, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.call_index import CallIndexer
from adapters.types import Event

Json = dict[str, Any]


def event(*pieces: Any, choice: int = 0, name: str | None = None) -> Event:
    delta = {"index": choice, "delta": {"tool_calls": list(pieces)}}
    data = orjson.dumps({"choices": [delta], "odd": [1.5, None]})
    return Event(b"data: " + data + b"\n\n", data, name)


def pieces_of(found: Event) -> list[Json]:
    assert found.data is not None
    calls: list[Json] = orjson.loads(found.data)["choices"][0]["delta"]["tool_calls"]
    return calls


def numbers(*events: Event) -> list[list[int]]:
    indexer = CallIndexer()
    return [[piece["index"] for piece in pieces_of(indexer.add_index(each))] for each in events]


def begin(call_id: str, **more: Any) -> Json:
    return {"id": call_id, "function": {"name": "f", "arguments": ""}, **more}


REST: Json = {"function": {"arguments": "{}"}}

TABLE: list[tuple[str, list[Event], list[list[int]]]] = [
    ("whole calls in one piece", [event(begin("a"), begin("b"))], [[0, 1]]),
    ("whole calls one by one", [event(begin("a")), event(begin("b"))], [[0], [1]]),
    (
        "in pieces",
        [event(begin("a")), event(REST), event(begin("b")), event(REST, REST)],
        [[0], [0], [1], [1, 1]],
    ),
    ("only a name", [event({"function": {"name": "f"}}), event(REST)], [[0], [0]]),
    ("without a beginning", [event(REST), event(REST)], [[0], [0]]),
    ("an empty index", [event(begin("a", index=None))], [[0]]),
    (
        "some have theirs",
        [event(begin("a", index=0)), event(begin("b", index=1)), event(REST), event(begin("c"))],
        [[0], [1], [1], [2]],
    ),
    ("only a signature", [event(begin("a")), event({"extra_content": {"x": 1}})], [[0], [0]]),
    ("of another choice", [event(begin("a")), event(begin("b"), choice=1)], [[0], [0]]),
]


@pytest.mark.parametrize(("events", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_piece_gets_the_number_of_its_call(events: list[Event], expected: list[list[int]]) -> None:
    assert numbers(*events) == expected


def test_nothing_else_changes() -> None:
    found = CallIndexer().add_index(event(begin("a", extra_content={"x": 1}), name="odd"))
    assert found.data is not None
    assert found.raw == b"event: odd\ndata: " + found.data + b"\n\n"
    assert orjson.loads(found.data)["odd"] == [1.5, None]
    assert pieces_of(found) == [{"index": 0, **begin("a", extra_content={"x": 1})}]


def test_a_piece_that_only_brings_a_signature_has_a_function() -> None:
    indexer = CallIndexer()
    indexer.add_index(event(begin("a")))
    (piece,) = pieces_of(indexer.add_index(event({"extra_content": {"x": 1}})))
    assert piece == {"index": 0, "extra_content": {"x": 1}, "function": {}}


def test_half_a_character_keeps_no_piece_from_its_number() -> None:
    data = rb'{"choices":[{"delta":{"content":"\ud83d","tool_calls":[{"id":"a"}]}}]}'
    assert numbers(Event(b"data: " + data + b"\n\n", data)) == [[0]]


@pytest.mark.parametrize(
    "passed",
    [
        event(begin("a", index=0), begin("b", index=1)),
        Event(b": ping\n\n", None),
        Event(b"data: [DONE]\n\n", b"[DONE]"),
        Event(b"data: x\n\n", b'"tool_calls": no JSON'),
        Event(b"data: x\n\n", b'["tool_calls"]'),
        Event(b"data: x\n\n", b'{"choices":[{"delta":{"tool_calls":null}},{"delta":null},3]}'),
        Event(b"data: x\n\n", b'{"choices":[{"delta":{"tool_calls":["x"]}}]}'),
        Event(b"data: x\n\n", b'{"choices":null,"tool_calls":1}'),
        Event(b"data: x\n\n", b'{"choices":[{"index":[],"delta":{"tool_calls":[{}]}}]}'),
        Event(
            b"data: x\n\n",
            b'{"choices":[{"delta":{"tool_calls":[{"odd":' + b"[" * 300 + b"]" * 300 + b"}]}}]}",
        ),
    ],
    ids=range(10),
)
def test_a_stream_that_needs_no_index_passes_unchanged(passed: Event) -> None:
    assert CallIndexer().add_index(passed) is passed
