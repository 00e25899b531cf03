"""The output of a response that is cancelled, of the events that were sent."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.dialects.responses.socket.partial_output import MAX_BYTES, PartialOutput

Json = dict[str, Any]
CALL = {"id": "fc_1", "type": "function_call", "name": "weather", "call_id": "c1", "arguments": '{"n":1.0}'}


def output_of(*events: tuple[str, Json | bytes]) -> list[Json]:
    output = PartialOutput()
    for kind, fields in events:
        output.read(kind, fields if isinstance(fields, bytes) else orjson.dumps({"type": kind, **fields}))
    found: list[Json] = orjson.loads(output.render())
    return found


def added(index: int, **item: Any) -> tuple[str, Json]:
    return "response.output_item.added", {"output_index": index, "item": item}


def text(index: int, delta: Any, part: int = 0) -> tuple[str, Json]:
    return "response.output_text.delta", {"output_index": index, "content_index": part, "delta": delta}


def done(index: int, item: Json) -> tuple[str, Json]:
    return "response.output_item.done", {"output_index": index, "item": item}


def test_whole_items_and_the_text_of_a_cut_message_are_the_output() -> None:
    items = output_of(
        added(0, type="function_call", id="fc_1"),
        done(0, CALL),
        added(1, type="message", id="msg_1"),
        *(text(1, "Zan"), text(1, "zibar"), text(1, "Two", part=1)),
        added(2, type="function_call", id="fc_2"),  # its arguments are cut
    )
    assert items[0] == CALL
    (cut,) = items[1:]
    assert (cut["id"], cut["status"]) == ("msg_1", "incomplete")
    assert [part["text"] for part in cut["content"]] == ["Zanzibar", "Two"]


def test_a_message_that_is_complete_stands_as_it_came() -> None:
    whole = {"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": "Ok."}]}
    assert output_of(added(0, type="message", id="msg_1"), text(0, "Ok"), done(0, whole)) == [whole]


def test_events_that_belong_to_no_item_are_ignored() -> None:
    odd: list[tuple[str, Json | bytes]] = [
        ("response.created", {"response": {}}),
        ("response.output_text.delta", b"["),
        ("response.output_text.delta", {"delta": "x"}),
        text(0, 7),
        added(0, type="message", id=7),
        added(1, type="message", id="msg_1"),  # no word of it has come
    ]
    assert output_of(*odd) == []


def test_no_more_is_held_than_models_write() -> None:
    word = "x" * 100_000
    (cut,) = output_of(added(0, type="message", id="msg_1"), *[text(0, word)] * 200)
    assert MAX_BYTES - 200_000 < len(cut["content"][0]["text"]) < MAX_BYTES


def test_the_text_has_no_gap_after_what_is_left_out() -> None:
    (cut,) = output_of(
        added(0, type="message", id="msg_1"), text(0, "One "), text(0, "x" * MAX_BYTES), text(0, "three")
    )
    assert cut["content"][0]["text"] == "One "
