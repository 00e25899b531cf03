"""The decoder: the same bytes cut anywhere give the same events, and the events' bytes are the stream."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import sse
from adapters.errors import ProviderTooLarge, UnfinishedEvent
from adapters.first_event import HELD_S, FirstEvent
from adapters.sse import (
    MAX_EVENT_BYTES,
    MAX_EVENT_LINES,
    EventDecoder,
)
from adapters.types import Event

# Of a stream whose last event lacks its blank line; some upstreams forget it.
DONES = [b"data: [DONE]", b"data:[DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n", b": bye\ndata: [DONE] "]


def decode(*pieces: bytes) -> list[Event]:
    decoder = EventDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.finish()


def byte_by_byte(stream: bytes) -> list[Event]:
    return decode(*(stream[i : i + 1] for i in range(len(stream))))


STREAMS: list[tuple[str, bytes, list[bytes | None]]] = [
    ("nothing", b"", []),
    ("what OpenAI sends", b'data: {"a":1}\n\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"]),
    ("no blank after the colon", b"data:{}\n\n", [b"{}"]),
    ("only one blank is taken", b"data:  x\n\n", [b" x"]),
    ("windows line ends", b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    ("old mac line ends", b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    ("mixed line ends", b"data: a\r\n\ndata: b\n\r\ndata: c\n\rdata: d\n\n", [b"a", b"b", b"c", b"d"]),
    ("comments", b": ping\n\ndata: a\n\n:\n\n", [None, b"a", None]),
    ("a comment within an event", b": hm\ndata: a\n\n", [b"a"]),
    ("several data lines", b"data: a\ndata: b\n\n", [b"a\nb"]),
    ("empty data", b"data:\n\ndata\n\n", [b"", b""]),
    ("a byte order mark", b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    ("no field called data", b"event: ping\n\n", [None]),
    ("more blank lines than needed", b"data: a\n\n\ndata: b\n\n\n\n", [b"a", b"b", None]),
    ("a blank line left over", b"data: a\n\n\n", [b"a", None]),
    ("lone returns, then a line feed", b"data: a\r\r\ndata: b\n\n", [b"a", b"b"]),
    ("a colon in the data", b'data: "a:b"\n\n', [b'"a:b"']),
]


@pytest.mark.parametrize(("stream", "data"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_a_stream_fed_whole_or_byte_by_byte_gives_these_events(
    stream: bytes, data: list[bytes | None]
) -> None:
    whole = decode(stream)
    assert [event.data for event in whole] == data
    assert b"".join(event.raw for event in whole) == stream
    assert byte_by_byte(stream) == whole


def test_a_field_named_error_is_the_data_of_an_error() -> None:
    """An older llama.cpp writes so, and then `[DONE]`."""
    stream = b'error: {"code":400,"message":"No."}\n\ndata: [DONE]\n\n'
    error, done = EventDecoder().feed(stream)
    assert (error.name, error.data, done.data) == ("error", b'{"code":400,"message":"No."}', b"[DONE]")


def test_the_name_is_read_and_other_fields_stay_in_the_bytes() -> None:
    stream = b"event: message_start\nid: 7\nretry: 10\ndata: {}\n\n"
    [event] = decode(stream)
    assert (event.name, event.data, event.raw) == ("message_start", b"{}", stream)


def test_an_event_is_given_with_its_last_byte_and_not_later() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert [event.data for event in decoder.feed(b"\ndata: b\n\ndata: ")] == [b"a", b"b"]
    assert [event.data for event in decoder.feed(b"c\n\n")] == [b"c"]


def test_only_a_return_that_may_have_its_line_feed_yet_to_come_is_waited_for() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r\n\r") == []
    assert [event.raw for event in decoder.feed(b"\n")] == [b"data: a\r\n\r\n"]
    assert [event.raw for event in decoder.feed(b"data: b\r\r")] == [b"data: b\r\r"]


@pytest.mark.parametrize(
    "rest", [b"data: half", b"data: whole line\n", b"data: a\n\ndata: b", b": comment\r\n"]
)
def test_a_stream_that_ends_inside_an_event_is_an_error_with_a_name(rest: bytes) -> None:
    decoder = EventDecoder()
    decoder.feed(rest)
    with pytest.raises(UnfinishedEvent) as caught:
        decoder.finish()
    assert rest.endswith(caught.value.rest)


@pytest.mark.parametrize("rest", [b'data: {"a":1}', b'data: {"a":1}\n', b'event: x\r\ndata: {"a":1}\r\n'])
def test_a_last_event_of_whole_json_needs_no_blank_line(rest: bytes) -> None:
    decoder = EventDecoder()
    decoder.feed(rest)
    (event,) = decoder.finish()
    assert (event.raw, event.data) == (rest.rstrip() + b"\n\n", b'{"a":1}')


@pytest.mark.parametrize("body", [b'{"a":1}', b'{\n  "a": 1\n}\n', b'{"a":\r\n\t1}'])
def test_nothing_but_json_is_one_event(body: bytes) -> None:
    decoder = EventDecoder()
    decoder.feed(body)
    assert decoder.finish() == [Event(b'data: {"a":1}\n\n', b'{"a":1}')]


def test_an_event_without_end_is_refused_at_the_bound() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 6)) == []
    with pytest.raises(ProviderTooLarge):
        decoder.feed(b"x")


@pytest.mark.parametrize("form", [b": wait\n\n", b"\n\n", b"\r\r", b"event: ping\r\n\r\n", b"id: 1\n\n"])
@pytest.mark.parametrize("cut", [1, 7, 4096, 10**9])
def test_an_event_without_data_has_a_bound_of_its_own(
    form: bytes, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_COMMENT_BYTES", 8192)  # so that it is soon reached, byte by byte
    most = sse.MAX_COMMENT_BYTES // len(form)
    stream = b"data: 1\n\n" + most * form + b"data: 2\n\n" + most * form

    def feed(decoder: EventDecoder, data: bytes) -> list[bytes | None]:
        pieces = (data[at : at + cut] for at in range(0, len(data), cut))
        return [event.data for piece in pieces for event in decoder.feed(piece)]

    decoder = EventDecoder()
    assert [data for data in feed(decoder, stream) if data is not None] == [b"1", b"2"]
    with pytest.raises(ProviderTooLarge, match="between two events"):
        feed(decoder, 2 * form)


@pytest.mark.parametrize("line", [b"data: x", b":", b"data"])
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_of_many_lines_is_refused_at_the_bound(line: bytes, end: bytes) -> None:
    most = b"data: 1" + end + (MAX_EVENT_LINES - 2) * (line + end)
    (event,) = decode(most + end)
    assert event.data is not None
    with pytest.raises(ProviderTooLarge, match="lines"):
        decode(most + line + end + end)


def test_a_big_event_in_small_pieces_is_searched_once() -> None:
    """20 MB in 64 kB pieces: what was searched is not searched again, or this test would take minutes."""
    piece = b"x" * 65536
    decoder = EventDecoder()
    decoder.feed(b"data: ")
    for _ in range(320):
        assert decoder.feed(piece) == []
    [event] = decoder.feed(b"\n\n")
    assert event.data is not None
    assert len(event.data) == 320 * 65536


LINES = st.sampled_from(
    [b"", b"data: a", b"data:b", b"data", b": c", b"event: e", b"id: 1", b"\xef\xbb\xbf", b"x"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    st.lists(st.tuples(LINES, ENDS), max_size=30).map(lambda parts: b"".join(a + b for a, b in parts)),
    st.data(),
)
def test_any_stream_cut_anywhere_gives_the_same_events_and_bytes(stream: bytes, data: st.DataObject) -> None:
    def run(pieces: list[bytes]) -> tuple[list[Event], bytes]:
        decoder = EventDecoder()
        events = [event for piece in pieces for event in decoder.feed(piece)]
        try:
            return events + decoder.finish(), b""
        except UnfinishedEvent as error:
            return events, error.rest

    whole, rest = run([stream])
    assert b"".join(event.raw for event in whole) + rest == stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    assert run([stream[a:b] for a, b in pairwise(edges)]) == (whole, rest)
    assert run([stream[i : i + 1] for i in range(len(stream))]) == (whole, rest)


def test_comments_are_passed_over_for_a_while() -> None:
    first = FirstEvent()
    assert first.feed(b": waiting\n\n: still\n\ndata: 1", 5.0) is None
    found = first.feed(b"\n\n", 1e9)
    assert (found and found.data) == b"1"
    first = FirstEvent()
    assert first.feed(b": wai", 0.0) is None
    assert first.feed(b"ting\n\n", 5.0) is None
    assert first.feed(b": still\n\n", 5.0 + HELD_S - 1) is None
    found = first.feed(b": still\n\n", 5.0 + HELD_S)
    assert found is not None
    assert found.data is None


ROLE = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("chunk", "is_passed_over"),
    [
        ({"choices": [{"index": 0, "delta": ROLE, "finish_reason": None}]}, True),
        ({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, True),  # Azure's first
        ({"choices": [{"index": 0, "delta": {**ROLE, "content": "Hi"}}]}, False),
        ({"choices": [{"index": 0, "delta": {**ROLE, "reasoning": "Hm"}}]}, False),
        ({"choices": [{"index": 0, "delta": ROLE, "finish_reason": "content_filter"}]}, False),
        ({"choices": [{"index": 0, "delta": ROLE}, {"index": 1, "delta": {"content": "Hi"}}]}, False),
        ({"choices": [], "error": {"message": "Overloaded."}}, False),
        ({"choices": [], "usage": {"total_tokens": 1}}, False),
        ({"choices": None}, False),
        ({"choices": [None]}, False),
    ],
)
def test_chunks_without_content_are_passed_over_for_a_while(chunk: object, is_passed_over: bool) -> None:
    first, data = FirstEvent(), orjson.dumps(chunk)
    event = Event(b"data: %b\n\n" % data, data)
    assert first.feed(event.raw, 1.0) == (None if is_passed_over else event)
    assert first.feed(b"data: [DONE]\n\n", 2.0) == Event(b"data: [DONE]\n\n", b"[DONE]")


def test_a_client_is_not_kept_waiting_while_a_model_thinks() -> None:
    """Clients of LiveKit wait 5 s for the head of a reply, and Claude may think for longer while it sends pings."""
    first = FirstEvent()
    begun = b'event: message_start\ndata: {"type":"message_start"}\n\n'
    assert first.feed(begun, 1.0) is None
    assert first.feed(b"event: ping\ndata: {}\n\n", 2.0) is None
    assert first.feed(b"event: ping\ndata: {}\n\n", 3.0) == Event(
        begun, b'{"type":"message_start"}', "message_start"
    )
