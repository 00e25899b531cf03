"""The client's instructions in place of those that went upstream, in bodies and in events, however these are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.prompt.shown_blocks import SECTION_BEGIN, describe_mark
from gateway.dialects.responses.instructions import (
    ClientInstructions,
    cut_memory_section,
    restore_instructions,
)
from gateway.errors import UpstreamReplyBroken
from gateway.run.upstream.relay import ChangedEvents

Json = dict[str, Any]
SECRET = f"Ours.\n\n{SECTION_BEGIN}\nName: Ann\n</memory_blocks>"


def event(json: Json, end: bytes = b"\n") -> bytes:
    return b"event: %b%bdata: %b%b%b" % (json["type"].encode(), end, orjson.dumps(json), end, end)


def with_response(kind: str, instructions: Any, **more: Any) -> Json:
    return {"type": kind, "response": {"id": "resp_1", "instructions": instructions, **more}, "n": 1}


def passed(change: ClientInstructions, *pieces: bytes) -> bytes:
    events = ChangedEvents(change)
    return b"".join([*map(events.feed, pieces), events.take_rest()])


DELTA = b'event: x.delta\ndata: {"type":"x.delta", "delta":"\\"instructions\\""}\n\n'
COMMENT = b": wait\n\n"


@given(st.data(), st.sampled_from([b"\n", b"\r\n"]))
def test_a_stream_cut_anywhere_has_the_clients(data: st.DataObject, end: bytes) -> None:
    kinds = ("response.created", "response.completed")
    stream = COMMENT + DELTA.join(event(with_response(kind, SECRET, output=[1]), end) for kind in kinds)
    wanted = COMMENT + DELTA.join(event(with_response(kind, "Mine.", output=[1]), end) for kind in kinds)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    edges = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    assert passed(restore_instructions("Mine."), *pieces) == wanted


def test_values_stay_as_they_are_written() -> None:
    body = b'{"id":"r", "n": 1.0, "big":12345678901234567890123,"instructions" : "Ours.","t":"caf\\u00e9"}'
    assert restore_instructions(None).change_body(body) == (
        b'{"id":"r","n":1.0,"big":12345678901234567890123,"instructions":null,"t":"caf\\u00e9"}'
    )
    for other in (b'{"id":"r", "error": null}', b"[1, 2]", b"<html>", b""):
        assert restore_instructions(None).change_body(other) == other


def test_halves_of_characters_hide_no_instructions() -> None:
    """Upstreams that cut a text by its tokens write such halves."""
    body = rb'{"instructions":"Ours.","output":"Hi \ud83d","pair":"\ud83d\ude00"}'
    own = rb'{"instructions":"Mine.","output":"Hi \ufffd","pair":"\ud83d\ude00"}'
    change = restore_instructions("Mine.")
    assert change.change_body(body) == own
    assert passed(change, b'data: {"response":%b}\n\n' % body) == b'data: {"response":%b}\n\n' % own


def test_an_event_whose_json_has_several_lines_stays_one() -> None:
    lines = orjson.dumps(with_response("response.created", SECRET), option=orjson.OPT_INDENT_2).splitlines()
    out = passed(restore_instructions("Mine."), b"data: " + b"\ndata: ".join(lines) + b"\n\n")
    assert out.endswith(b"\n\n")
    data = b"\n".join(line.removeprefix(b"data: ") for line in out.splitlines())
    assert orjson.loads(data)["response"]["instructions"] == "Mine."


def test_an_event_without_an_end_does_not_show_them() -> None:
    whole = event(with_response("response.created", SECRET))
    for size in range(len(whole) - 1):
        out = passed(restore_instructions(None), whole[:size])
        assert b"Ours" not in out
        assert b"Ann" not in out
    assert passed(restore_instructions(None), COMMENT, b"data: {half") == COMMENT + b"data: {half"


@pytest.mark.parametrize("broken", [b'{"instructions": "Ours', b'{"instructions": "Ours"} more'])
def test_an_unreadable_body_that_may_have_instructions_is_an_error(broken: bytes) -> None:
    with pytest.raises(UpstreamReplyBroken):
        restore_instructions(None).change_body(broken)
    with pytest.raises(UpstreamReplyBroken):
        passed(restore_instructions(None), b"data: " + broken + b"\n\n")


SECTION = f"{SECTION_BEGIN}\n<memory_block>x</memory_block>\n</memory_blocks>"


@pytest.mark.parametrize(
    ("stored", "own"),
    [
        (None, None),
        ("Mine.", "Mine."),
        (f"Mine.\n\n{SECTION}", "Mine."),
        (f"Mine.\n\nProfile.\n\n{SECTION}", "Mine."),
        (f"Profile.\n\n{SECTION}", None),
        (SECTION, None),
        (f"Mine.\n\nProfile.\n\n{describe_mark('ab12')}", "Mine."),  # a summary, and no blocks
        (describe_mark("ab12"), None),
        ("Mine.\n\n", "Mine.\n\n"),
        ("Mine.\n\nProfile.", "Mine."),  # memory was off
        ("Profile.", None),
        ("A longer Profile.", None),  # another profile's prompt ends as this one
        ("My own Profile.", "My own Profile."),
        ([{"role": "developer"}], [{"role": "developer"}]),
    ],
)
def test_text_that_the_gateway_added_is_cut_from_a_stored_response(stored: Any, own: Any) -> None:
    change = cut_memory_section(["", "Profile.", "A longer Profile."])
    assert orjson.loads(change.change_body(orjson.dumps({"instructions": stored}))) == {"instructions": own}
