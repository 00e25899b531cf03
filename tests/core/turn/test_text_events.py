"""Events that differ in their text alone: to read it between the others' bytes is to parse them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.types import Event
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.commands import Command
from gateway.core.turn.events import ClientLeft, Received, ReplyEnded, ReplyStarted, Saved
from gateway.core.turn.guide import FreeGuide
from gateway.core.turn.machine import Turn
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.text_events import TextEventForm
from gateway.dialects.chat.render import ChatView
from tests.core.turn.playbook import (
    DONE,
    SSE,
    call_piece,
    calls,
    chat_turn,
    chunk,
    feed_event,
    join_bodies,
    usage,
)
from tests.core.turn.tooled import with_tools
from tests.doubles.lines_view import LinesView

HEAD = b'{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{'
FORMS = [
    (b'"content":"', b'"},"finish_reason":null}]}'),
    (b'"role":"assistant","content":"', b'"},"logprobs":null,"finish_reason":null}],"usage":null}'),
    (b'"content": "', b'","tool_calls":[],"refusal":null}}],"error":null}'),
]
OTHER_CHOICE = chunk({}, choices=[{"index": 1, "delta": {"content": "a"}}])
SPECS = [
    TurnTerms(),
    TurnTerms(choice_count=2),
    TurnTerms(adds_usage=True),
    with_tools(),
    with_tools(holds_end=True),
]


def said(text: bytes, form: int = 0, padding: bytes | None = None) -> Event:
    """Returns an event of a server of this kind. padding: of OpenAI's, "" for one without characters."""
    before, behind = FORMS[form]
    if padding is not None:
        behind = behind[:-1] + b',"obfuscation":"%b"}' % padding
    data = HEAD + before + text + behind
    return Event(b"data: %b\n\n" % data, data)


def form_of(event: Event) -> TextEventForm | None:
    return TextEventForm.of(event.raw, orjson.loads(event.data or b""))


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("padding", [None, b"", b"aB3", "é".encode()])
def test_the_text_of_a_like_event_is_read_without_parsing(form: int, padding: bytes | None) -> None:
    like = form_of(said(b"Hello", form, padding))
    assert like is not None
    for text in ("", " world", "wörld 🎉", "}]}"):
        assert like.find_text(said(text.encode(), form, padding and b"x" + padding).raw) == text


@pytest.mark.parametrize(
    "other",
    [
        said(b"a\\nb"),
        said(b'a","content":"b'),
        said(b'a"},"finish_reason":"stop"}],"x":[{"y":{"z":"'),
        said(b"a\tb"),
        said(b"\xff"),
        said(b"a", 1),
        said(b"a", padding=b"x"),
        # One quotation mark in place of two.
        Event(b"data: %b\n\n" % (HEAD + FORMS[0][0] + FORMS[0][1][1:]), None),
        chunk({"content": "a"}, "stop"),
        OTHER_CHOICE,
        Event(b": beat\n\n", None),
        DONE,
    ],
)
def test_any_other_event_is_parsed(other: Event) -> None:
    like = form_of(said(b"Hello"))
    assert like is not None
    assert like.find_text(other.raw) is None


@pytest.mark.parametrize(
    "event",
    [
        said(b"a\\nb"),
        chunk({"role": "assistant"}),
        chunk({"content": "a", "reasoning_content": "b"}),
        chunk({"content": "a"}, "stop"),
        OTHER_CHOICE,
        chunk({"content": ["a"]}),
        chunk({"content": "a"}, usage={"completion_tokens": 1}),
        chunk({}, choices=[{"index": 0, "delta": {"content": "a"}}, {"index": 1, "finish_reason": "stop"}]),
        said(b'a","content":"a'),
        said(b'a"},"message":{"content":"a'),
        usage(1, 2),
        calls(call_piece(0, "{}", id="1", name="f")),
    ],
)
def test_no_form_is_made_of_an_event_that_does_more(event: Event) -> None:
    assert form_of(event) is None


def test_a_padding_that_ends_early_is_parsed() -> None:
    like = form_of(said(b"Hello", padding=b"aaa"))
    assert like is not None
    assert like.find_text(said(b"Hello", padding=b'a","usage":{},"x":"').raw) is None
    # As the end after a padding, but after a text.
    assert like.find_text(b'data: %b%bHello"}\n\n' % (HEAD, FORMS[0][0])) is None


@st.composite
def a_stream(draw: st.DrawFn) -> list[Event]:
    texts = st.sampled_from([b"", b"a", b" word", "wörld".encode(), b"a\\nb", b"\\u00e9", b"\xff"])
    others = st.sampled_from(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "hmm"}),
            OTHER_CHOICE,
            chunk({"content": "."}, "stop"),
            chunk({}, "stop"),
            calls(call_piece(0, id="1", name="theirs")),
            calls(call_piece(0, "{}")),
            calls(call_piece(0, "{}", id="2", name="memory_insert")),
            usage(9, 4),
            Event(b": beat\n\n", None),
            Event(b"data: 1\n\n", b"1"),
        ]
    )
    stream: list[Event] = []
    for _ in range(draw(st.integers(1, 4))):
        stream += draw(st.lists(others, max_size=2))
        form, padding = draw(st.integers(0, 2)), draw(st.sampled_from([None, None, b"", b"xY"]))
        stream += [said(text, form, padding) for text in draw(st.lists(texts, max_size=4))]
    return [*stream, DONE]


def played(turn: Turn, batches: list[list[Event]], feed: Any) -> tuple[bytes, Any]:
    """Returns what the client gets, and what the turn is at its end; gateway tools are not run."""
    seen: list[Command] = []
    for event in (ReplyStarted(200, SSE), *map(Received, batches), ReplyEnded(), Saved()):
        seen += feed(turn, event)
    others = [command for command in seen if not hasattr(command, "data")]
    return join_bodies(seen), others


@given(
    a_stream(), st.sets(st.integers(1, 11)), st.sampled_from(SPECS), st.sampled_from([ChatView, LinesView])
)
@settings(max_examples=150)
def test_client_and_memory_get_what_parsing_gives(
    stream: list[Event], cuts: set[int], terms: TurnTerms, view: type[ClientView]
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    batches = [stream[a:b] for a, b in pairwise(edges)]
    parsed = played(Turn(terms, view(terms), FreeGuide(10)), batches, Turn.feed)
    assert played(Turn(terms, view(terms), FreeGuide(10)), batches, feed_event) == parsed


def test_texts_that_come_too_late_command_nothing() -> None:
    turn = chat_turn(TurnTerms())
    for event in (ReplyStarted(200, SSE), Received([said(b"Hello")])):
        turn.feed(event)
    assert turn.feed_texts([said(b" world")]) == said(b" world").raw
    turn.feed(ClientLeft())
    assert not feed_event(turn, Received([said(b" again")]))
