"""A response that is read along, and a request with what it refers to."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from adapters.types import Event
from gateway.core.prompt.note_text import render_note
from gateway.core.turn.commands import FINISHED, End
from gateway.dialects.responses.background_end import BackgroundEnd
from gateway.dialects.responses.native import read_native
from gateway.dialects.responses.native_lists import NoteRemoval
from gateway.dialects.responses.response_reader import MAX_CONTENT_EVENTS, ResponseReader
from gateway.run.earlier_replies import EarlierReplies

Json = dict[str, Any]
ALICE = ("alice's", 0)
SAID = {
    "type": "message",
    "role": "assistant",
    "id": "msg_1",
    "content": [{"type": "output_text", "text": "Ok."}],
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def event(kind: str, *, is_named: bool = True, **fields: Any) -> Event:
    data = json.dumps({"type": kind, **fields}).encode()
    return Event(b"", data, kind if is_named else None)


def response(*output: Json, **fields: Any) -> Json:
    return {"id": "resp_1", "error": None, "output": list(output), **fields}


def delta(text: str, at: int = 0, **options: Any) -> Event:
    return event("response.output_text.delta", output_index=at, delta=text, **options)


def done(item: Json, at: int) -> Event:
    return event("response.output_item.done", output_index=at, item=item)


CREATED = event("response.created", response=response())


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    ("events", "end", "said"),
    [
        ([], End.CANCELLED, None),
        ([delta("Hel"), delta("lo")], End.CANCELLED, "Hello"),
        # Some servers cut a text between the halves of a character.
        ([delta("Hel\ud83d"), delta("\ude00")], End.CANCELLED, "Hel😀"),
        ([delta("Hel\ud83d")], End.CANCELLED, "Hel\ufffd"),
        ([done(SAID, 0), delta("And", 1)], End.CANCELLED, "Ok. And"),
        ([done({"type": "reasoning", "id": "rs_1"}, 0), done(SAID, 1), done(CALL, 2)], End.CANCELLED, "Ok."),
        ([done(CALL, 0)], End.CANCELLED, None),
        ([delta("Hello"), event("error", message="It broke.")], End.FAILED, "Hello"),
        ([delta("Hi"), event("response.failed", response=response(SAID))], End.FAILED, "Ok."),
        ([delta("Hi"), event("response.incomplete", response=response(SAID))], FINISHED, "Ok."),
        ([done(SAID, 0), event("response.completed", response={"id": "resp_1"})], FINISHED, "Ok."),
        ([done(SAID, 0), event("response.completed", response=7)], FINISHED, "Ok."),
        ([event("response.completed", response=response(SAID)), delta("late")], FINISHED, "Ok."),
        (
            [Event(b"", b"[DONE]"), Event(b"", b"not JSON"), Event(b"", None), delta("Hi")],
            End.CANCELLED,
            "Hi",
        ),
        ([event("response.completed", response=response({"type": "message"}))], FINISHED, None),
        ([event("response.completed", response=response(7))], FINISHED, None),
    ],
)
def test_a_stream_is_read_as_far_as_it_came(
    events: Sequence[Event], end: End, said: str | None, is_named: bool
) -> None:
    reader = ResponseReader()
    for each in events:
        reader.read(each if is_named else each._replace(name=None))
    reply = reader.make_reply()
    assert reply.end is end
    assert reply.shown_reply == (None if said is None else {"role": "assistant", "content": said})
    assert reader.is_over == (end is not End.CANCELLED)


def test_a_complete_reply_has_its_calls_and_its_ids() -> None:
    reader = ResponseReader()
    reader.read(CREATED)
    assert reader.make_reply().ids == ("resp_1",)
    reader.read(event("response.completed", response=response(SAID, CALL)))
    reply = reader.make_reply()
    assert reply.shown_reply == {"role": "assistant", "content": "Ok.", "tool_calls": [CALLED]}
    assert reply.ids == ("resp_1", "msg_1", "fc_1")


@pytest.mark.parametrize(
    ("body", "end", "said"),
    [
        (orjson.dumps(response(SAID)), FINISHED, "Ok."),
        (orjson.dumps(response(SAID, error={"message": "It broke."})), End.FAILED, "Ok."),
        (orjson.dumps(response(SAID)).replace(b"Ok.", b"Ok\\ud83d"), FINISHED, "Ok\ufffd"),
        (b"not JSON", FINISHED, None),
        (b"[]", FINISHED, None),
    ],
)
def test_a_whole_reply_may_be_anything(body: bytes, end: End, said: str | None) -> None:
    reader = ResponseReader()
    reader.read_whole(body)
    reply = reader.make_reply()
    assert (reply.end, (reply.shown_reply or {}).get("content")) == (end, said)


def test_referenced_items_are_read_in_place_of_their_references() -> None:
    earlier = EarlierReplies()
    one, two = {"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}
    messages = [{"role": "assistant", "content": text} for text in ("One.", "Two.")]
    earlier.add(ALICE, ("resp_1", "msg_1"), None, [one], messages[0])
    earlier.add(ALICE, ("resp_2", "msg_2"), "resp_1", [two], messages[1])
    items = [{"role": "user", "content": "Three?"}]
    body = {"model": "m", "input": items, "instructions": "Be brief.", "previous_response_id": "resp_2"}
    native = read_native(orjson.dumps(body), "/responses", 100)
    assert native is not None
    behind = native.with_history(earlier, ALICE)
    head = {"role": "system", "content": "Be brief."}
    assert behind.chat.messages == [head, one, messages[0], two, messages[1], *items]
    assert orjson.loads(behind.chat.raw)["messages"] == behind.chat.messages
    sent = orjson.loads(behind.render_body("m", "A section.", {1: "not here ", 5: "a note "}))
    assert sent["input"] == [{"role": "user", "content": "a note Three?"}]
    assert sent["instructions"] == "Be brief.\n\nA section."
    assert native.with_history(earlier, ("bob's", 0)).chat.messages == [head, *items]

    items = [one, {"type": "item_reference", "id": "msg_1"}, {"type": "item_reference", "id": "gone"}, two]
    native = read_native(orjson.dumps({"model": "m", "input": [*items[:2], two]}), "/responses", 100)
    assert native is not None
    behind = native.with_history(earlier, ALICE)
    assert behind.chat.messages == [one, messages[0], two]
    sent = orjson.loads(behind.render_body("m", "", {2: "a note "}))
    assert sent["input"] == [*items[:2], {"role": "user", "content": "a note Two?"}]
    native = read_native(orjson.dumps({"model": "m", "input": [one, items[2], two]}), "/responses", 100)
    assert native is not None
    assert native.with_history(earlier, ALICE).chat.messages == [one, two]


def test_ids_that_lead_back_to_themselves_end() -> None:
    earlier = EarlierReplies()
    message = {"role": "assistant", "content": "Ok."}
    for before in (None, "resp_1"):
        earlier.add(ALICE, ("resp_1",), before, [{"role": "user", "content": "Hi"}], message)
    assert len(earlier.list_path(ALICE, "resp_1")) == 2


def test_the_oldest_replies_give_way() -> None:
    earlier = EarlierReplies(limit_bytes=10_000)
    message = {"role": "assistant", "content": "x" * 1000}
    for n in range(20):
        earlier.add(ALICE, (f"resp_{n}", f"msg_{n}"), f"resp_{n - 1}", [], message)
        assert earlier.find_reply(ALICE, "resp_0") is not None  # who is asked for stays
        assert earlier.size_bytes <= 10_000
    assert 2 < len(earlier) < 12
    assert earlier.find_reply(ALICE, "msg_1") is None
    earlier.add(ALICE, ("resp_large",), None, [], {"content": "x" * 20_000})
    assert earlier.find_reply(ALICE, "resp_large") is None
    earlier.clear()
    assert (len(earlier), earlier.size_bytes) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        {"input": 7},
        {"input": []},
        {"input": [7]},
        {"input": "Hi", "previous_response_id": 7},
        {"input": "Hi", "conversation": 7},
        {"input": "Hi", "text": 7},
        {"input": "Hi", "model": 7},
        {"input": [{"role": "user", "content": "Hi"}] * 101},
        {"input": "Hi", "prompt": {"id": "pmpt_1"}},
    ],
    ids=orjson.dumps,
)
def test_a_request_that_memory_cannot_read_goes_upstream(body: Json) -> None:
    assert read_native(orjson.dumps({"model": "m", **body}), "/responses", 100) is None
    assert read_native(b'{"model": "m", "input": "a", "input": "b"}', "/responses", 100) is None


def test_a_request_that_cannot_be_written_again_is_the_upstreams_matter() -> None:
    deep = b"[" * 500 + b"]" * 500
    tool = b'{"type":"function","name":"f","parameters":{"a":%b}}' % deep
    for field in (b'"tools":[%b]' % tool, b'"metadata":{"a":%b}' % deep):
        assert read_native(b'{"model":"m","input":"Hi",%b}' % field, "/responses", 100) is None


def test_a_forgetting_makes_another_memory_of_it() -> None:
    earlier = EarlierReplies()
    earlier.add(ALICE, ("resp_1",), None, [{"role": "user", "content": "Hi"}], None)
    assert len(earlier.list_path(ALICE, "resp_1")) == 1  # it said nothing, and goes on nevertheless
    assert earlier.find_reply(ALICE, "resp_1") is None
    assert earlier.list_path((ALICE[0], 1), "resp_1") == []


def test_the_beginning_of_a_long_conversation_is_dropped_first() -> None:
    earlier = EarlierReplies(limit_bytes=20_000)
    before = None
    for n in range(50):
        new = [{"role": "user", "content": str(n)}]
        earlier.add(ALICE, (f"resp_{n}",), before, new, {"role": "assistant", "content": "Ok."})
        before = f"resp_{n}"
        path = earlier.list_path(ALICE, before)
        assert path[-2] == new[0]
        assert len(path) == 2 * len(earlier)  # without a gap


@pytest.mark.parametrize(
    ("ids", "before", "text"),
    [
        (["x" * 3000], None, ""),
        (["x"], "y" * 3000, ""),
        (["x"], None, "z" * 3000),
        (["x"], None, [[{}] * 60] * 3),
        ([str(n) for n in range(12)], None, "x" * 1000),
    ],
)
def test_the_cached_earlier_replies_are_bounded(ids: list[str], before: str | None, text: Any) -> None:
    earlier = EarlierReplies(limit_bytes=200_000)
    tracemalloc.start()
    try:
        for n in range(300):
            new = orjson.loads(orjson.dumps([{"role": "user", "content": text, "n": n}]))
            earlier.add(ALICE, [f"{n} {id}" for id in ids], before and f"{n} {before}", new, None)
            for k in range(max(0, n - 20), n):
                earlier.list_path(ALICE, f"{k} {ids[0]}")  # one of its ids is always in use
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 400_000


def test_a_bounded_part_of_a_reply_without_an_end_is_read() -> None:
    """What is read at its end holds up all else, and a stream may go on for ever."""
    reader = ResponseReader()
    for _ in range(MAX_CONTENT_EVENTS + 10):
        reader.read(delta("x"))
    reply = reader.make_reply()
    assert reply.end is End.CANCELLED
    assert reply.shown_reply == {"role": "assistant", "content": "x" * MAX_CONTENT_EVENTS}
    reader.read(event("response.completed", response=response(SAID)))
    assert reader.make_reply().shown_reply == {"role": "assistant", "content": "Ok."}


def test_a_list_with_half_a_character_is_read() -> None:
    """Upstreams that cut a text by its tokens write such halves."""
    listed = b'{"data":[{"content":[{"type":"input_text","text":"<memory \\ud83d"}]}]}'
    assert NoteRemoval().change_body(listed) == listed
    ended = b'{"id":"resp_1","background":true,"status":"completed","output":["\\ud83d"]}'
    end = BackgroundEnd(NoteRemoval())
    end.change_body(ended)
    assert end.take_ended() == ("resp_1", ended)


@pytest.mark.parametrize("sign", [b"<", b"\\u003c"], ids=["plain", "as Go escapes it"])
@pytest.mark.parametrize("form", [b"%b", b'{"data":[%b]}'], ids=["an item", "a page"])
def test_a_note_is_removed_however_its_tag_is_escaped(form: bytes, sign: bytes) -> None:
    note = render_note([], ["Has a cat."], 0.0, mark="abcdefgh")
    item = orjson.dumps({"content": [{"type": "input_text", "text": f"{note}Hi"}]})
    client_item = b'{"content":[{"type":"input_text","text":"Hi"}]}'
    assert NoteRemoval().change_body(form % item.replace(b"<", sign)) == form % client_item


def test_the_end_of_a_response_is_noted_as_it_came_however_deeply_it_is_nested() -> None:
    tools = b"[" * 600 + b"]" * 600
    ended = b'{"id":"resp_1","background":true,"status":"completed","tools":%b}' % tools
    data = b'{"type":"response.completed","response":%b}' % ended
    end = BackgroundEnd(NoteRemoval())
    assert end.change_event(Event(b"data: %b\n\n" % data, data)) == b"data: %b\n\n" % data
    assert end.take_ended() == ("resp_1", ended)
