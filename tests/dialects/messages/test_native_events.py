"""The events of a native stream: what passes as it came, and what becomes of hidden rounds."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.claude.events import NamedEventDecoder
from adapters.claude.stream import StreamTranslator
from adapters.types import Event
from gateway.dialects.messages.native_events import NativeEvents, add_usage, find_event_name, merge_replies

Json = dict[str, Any]


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def block(index: int, kind: str, **fields: Any) -> list[bytes]:
    return [
        event("content_block_start", index=index, content_block={"type": kind, **fields}),
        event("content_block_stop", index=index),
    ]


def start(**usage: int) -> bytes:
    return event("message_start", message={"id": "msg_1", "type": "message", "usage": usage})


def end(reason: str, **usage: int) -> list[bytes]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [event("message_delta", delta=delta, usage=usage), event("message_stop")]


def parsed(raw: bytes) -> Json:
    found: Json = orjson.loads(raw.split(b"data: ", 1)[1])
    return found


def shown(events: NativeEvents, raws: list[bytes]) -> list[bytes]:
    passed = [events.translate_event(raw, find_event_name(raw) or "") for raw in raws]
    return [raw for raw in passed if raw]


def test_without_gateway_tools_every_event_passes_unread() -> None:
    raws = [b"event: next_month\ndata: {not JSON\n\n", event("ping"), *block(0, "text"), *end("end_turn")]
    assert shown(NativeEvents(frozenset()), raws) == raws


def test_a_hidden_round_leaves_no_call_no_gap_and_no_second_start() -> None:
    events = NativeEvents({"memory_insert"})
    call = block(1, "tool_use", id="toolu_1", name="memory_insert", input={})
    first = shown(events, [start(input_tokens=10), event("ping"), *block(0, "text"), *call])
    assert first == [start(input_tokens=10), event("ping"), *block(0, "text")]
    assert events.hide_round(end("tool_use", output_tokens=5)) == []
    second = shown(events, [start(input_tokens=20), *block(0, "thinking"), *block(1, "text")])
    assert [parsed(raw)["index"] for raw in second] == [1, 1, 2, 2]
    last, stop = events.end(end("end_turn", output_tokens=7), None)
    assert parsed(last)["delta"]["stop_reason"] == "end_turn"
    assert parsed(last)["usage"] == {"input_tokens": 30, "output_tokens": 12}
    assert stop == event("message_stop")


def test_a_client_call_after_a_gateway_call_has_the_next_index() -> None:
    events = NativeEvents({"memory_insert"})
    raws = [start(), *block(0, "tool_use", name="memory_insert"), *block(1, "tool_use", name="weather")]
    assert [parsed(raw).get("index") for raw in shown(events, raws)] == [None, 0, 0]


def test_a_last_round_that_was_hidden_has_an_end_nevertheless() -> None:
    events = NativeEvents({"memory_insert"})
    shown(events, [start(input_tokens=1), *block(0, "tool_use", name="memory_insert")])
    events.hide_round(end("tool_use", output_tokens=2))
    delta, stop = events.end([], "length")
    assert (parsed(delta)["delta"]["stop_reason"], parsed(stop)["type"]) == ("max_tokens", "message_stop")


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        ({}, {"output_tokens": 1}, {"output_tokens": 1}),
        ({"output_tokens": 1}, {"output_tokens": 2}, {"output_tokens": 3}),
        ({"service_tier": "standard"}, {"service_tier": "batch"}, {"service_tier": "batch"}),
        ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, {"a": {"b": 3, "c": 3}}),
        ({"output_tokens": 1}, {"output_tokens": None}, {"output_tokens": 1}),
        (
            {"iterations": [{"a": 1}]},
            {"iterations": [{"a": 1}, {"a": 2}]},
            {"iterations": [{"a": n} for n in (1, 1, 2)]},
        ),
    ],
)
def test_usage_is_summed_at_every_depth(one: Json, other: Json, total: Json) -> None:
    assert add_usage(one, other) == total


def test_whole_rounds_are_one_message() -> None:
    text = {"type": "text", "text": "One."}
    call = {"type": "tool_use", "id": "t", "name": "memory_insert", "input": {}}
    first = {"id": "msg_1", "content": [text, call], "stop_reason": "tool_use", "usage": {"output_tokens": 1}}
    last = {
        "id": "msg_2",
        "content": [{"type": "text", "text": "Two."}],
        "stop_reason": "end_turn",
        "usage": {"output_tokens": 2},
        "next_month": True,
    }
    assert merge_replies([first, last], {"memory_insert"}, None) == {
        "id": "msg_1",
        "content": [text, {"type": "text", "text": "Two."}],
        "stop_reason": "end_turn",
        "usage": {"output_tokens": 3},
        "next_month": True,
    }


def test_events_that_are_read_along_keep_their_bytes_wherever_they_are_cut() -> None:
    stream = b"".join(
        [
            start(input_tokens=1),
            event("ping"),
            b": a comment\n\n",
            *block(0, "text", text="Hi"),
            event("content_block_delta", index=0, delta={"no": "type"}),
            event("next_month", more=1),
            *end("end_turn", output_tokens=2),
        ]
    )
    for size in (1, 7, len(stream)):
        decoder = NamedEventDecoder()
        translator = StreamTranslator(0, wants_usage=True)
        read: list[Event] = []
        for at in range(0, len(stream), size):
            for each in decoder.feed(stream[at : at + size]):
                read += translator.annotate(each)
        read += [made for each in decoder.finish() for made in translator.annotate(each)]
        assert b"".join(each.raw for each in read) == stream
        assert read[-1].data == b"[DONE]"


def test_data_in_several_lines_is_one_value() -> None:
    events = NativeEvents({"memory_insert"})
    called, ended = block(0, "tool_use", id="toolu_1", name="memory_insert", input={})
    assert shown(events, [start(), called.replace(b"data: {", b"data: {\ndata: "), ended]) == [start()]


@pytest.mark.parametrize("name", [None, 5, ["memory_insert"], {}])
def test_a_call_with_no_name_is_shown(name: Any) -> None:
    raws = [start(), *block(0, "tool_use", id="toolu_1", name=name, input={})]
    assert shown(NativeEvents({"memory_insert"}), raws) == raws
