"""A stream that is handed on is cut after its events, so that nothing of the gateway's breaks into one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.run.upstream.relay import WholeEvents

PARTS = st.sampled_from([b"data: 1", b": wait", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"x"])


@given(st.lists(PARTS, max_size=30).map(b"".join), st.data())
def test_the_relayed_bytes_end_with_an_event_and_are_complete(stream: bytes, data: st.DataObject) -> None:
    events, at, left = WholeEvents(), 0, b""
    while at < len(stream):
        size = data.draw(st.integers(1, 9))
        out = events.feed(stream[at : at + size])
        at += size
        assert not out or out.endswith((b"\n\n", b"\r\n\r\n"))
        left += out
        # No event waits that is complete.
        assert b"\n\n" not in stream[len(left) : at]
        assert b"\r\n\r\n" not in stream[len(left) : at]
    assert left + events.take_rest() == stream


def test_a_large_event_is_not_waited_for_and_is_searched_once() -> None:
    """4 MB in pieces of 8 bytes: what was searched is not searched again, or this test would take minutes."""
    events = WholeEvents()
    piece = b"data: xx"
    sizes = [len(events.feed(piece)) for _ in range(500_000)]
    assert max(sizes) <= 1024 * 1024 + len(piece)
    assert sum(sizes) + len(events.take_rest()) == 500_000 * len(piece)


def test_events_between_lone_carriage_returns_are_not_waited_for() -> None:
    events = WholeEvents()
    assert events.feed(b"data: 1\r") == b""
    assert events.feed(b"\rdata: 2") == b"data: 1\r\rdata: 2"
