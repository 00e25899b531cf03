"""The machine of a turn whose reply passes in the dialect of its upstream: what the client gets, and what is saved."""

from __future__ import annotations

import pytest

from adapters.types import Event
from gateway.core.turn.commands import (
    FINISHED,
    CloseUpstream,
    End,
    Finish,
    Save,
    SendBody,
    SendError,
    SendHead,
    SendWhole,
    TurnOutcome,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
)
from gateway.core.turn.native_reader import NativeReply
from gateway.core.turn.native_turn import NativeTurn
from gateway.core.turn.reply_change import ReplyChange
from gateway.errors import UpstreamRefused, UpstreamReplyBroken
from tests.core.turn.playbook import JSON, SSE

BROKE = UpstreamReplyBroken("It broke.")
HEAD, FINISH = SendHead(200, SSE), Finish()


class WordsReader:
    """Reads words, up to the word `end`."""

    background_id = None

    def __init__(self) -> None:
        self.words = ""
        self.is_over = False

    def read(self, event: Event) -> None:
        self.is_over = self.is_over or event.raw == b"end"
        self.words += "" if self.is_over else event.raw.decode()

    def read_whole(self, body: bytes) -> None:
        self.words, self.is_over = body.decode(), True

    def make_reply(self) -> NativeReply:
        end = FINISHED if self.is_over else End.CANCELLED
        return NativeReply(end, {"role": "assistant", "content": self.words} if self.words else None)


class Shouting(ReplyChange):
    """Changes a reply to capitals, and cannot read the word `bad`."""

    def change_event(self, event: Event) -> bytes:
        return self.change_body(event.raw)

    def change_unfinished(self, rest: bytes) -> bytes:
        return self.change_body(rest)

    def change_body(self, body: bytes) -> bytes:
        if body == b"bad":
            raise BROKE
        return body.upper()


def begun(headers: tuple[tuple[str, str], ...] = SSE, status: int = 200) -> NativeTurn:
    turn = NativeTurn(WordsReader(), Shouting(), "/responses")
    assert turn.feed(ReplyStarted(status, headers)) == []
    return turn


def words(*each: str) -> Received:
    return Received([Event(word.encode(), word.encode()) for word in each])


def save(end: End, text: str | None, **fields: bool) -> Save:
    message = None if text is None else {"role": "assistant", "content": text}
    return Save(TurnOutcome(end, shown_reply=message, **fields))


def test_the_end_of_a_stream_leaves_when_the_turn_is_saved() -> None:
    turn = begun()
    assert turn.feed(words("one", "two")) == [HEAD, SendBody(b"ONETWO")]
    assert turn.feed(words("three", "end")) == [save(FINISHED, "onetwothree")]
    assert turn.feed(Saved()) == [SendBody(b"THREEEND")]
    assert turn.feed(words("after")) == [SendBody(b"AFTER")]
    assert turn.feed(ReplyEnded()) == [FINISH]


def test_a_whole_reply_leaves_when_the_turn_is_saved() -> None:
    turn = begun(JSON)
    assert turn.feed(ReceivedWhole(b"one")) == [SendWhole(200, JSON, b"ONE"), save(FINISHED, "ONE")]
    assert turn.feed(Saved()) == [FINISH]


def test_an_error_of_the_upstreams_passes_as_it_came() -> None:
    error = b'{"error": {"message": "No."}}'
    assert begun(JSON, 400).feed(ReceivedWhole(error)) == [
        SendWhole(400, JSON, error), save(End.FAILED, None, is_refused=True), FINISH,
    ]  # fmt: skip
    assert begun(JSON, 429).feed(ReceivedWhole(error))[1] == save(End.FAILED, None)


def test_a_stream_without_an_end_is_saved_as_failed() -> None:
    turn = begun()
    turn.feed(words("one"))
    closing, *over = turn.feed(ReplyEnded())
    assert isinstance(closing, CloseUpstream)
    assert isinstance(closing.error, UpstreamReplyBroken)
    assert over == [save(End.FAILED, "one"), FINISH]
    assert begun().feed(ReplyEnded())[0] == HEAD


@pytest.mark.parametrize(
    ("code", "kind"), [("context_length_exceeded", UpstreamRefused), ("server_error", UpstreamReplyBroken)]
)
def test_a_stream_that_ends_with_an_error_ends_by_it(code: str, kind: type[UpstreamReplyBroken]) -> None:
    data = b'{"type":"error","code":"%b","message":"No."}' % code.encode()
    turn = begun()
    turn.feed(Received([Event(b"event: error\ndata: %b\n\n" % data, data, "error")]))
    closing = turn.feed(ReplyEnded())[0]
    assert isinstance(closing, CloseUpstream)
    assert type(closing.error) is kind
    assert "No." in str(closing.error)


def test_the_part_of_an_event_without_an_end_passes() -> None:
    assert begun().feed(ReplyFailed(BROKE, b"half")) == [
        HEAD, SendBody(b"HALF"), CloseUpstream(BROKE), save(End.FAILED, None), FINISH,
    ]  # fmt: skip


def test_a_reply_that_breaks_or_cannot_be_changed_is_an_error() -> None:
    for event in (ReplyFailed(BROKE), words("bad")):
        assert begun().feed(event) == [SendError(BROKE), CloseUpstream(BROKE), save(End.FAILED, None), FINISH]
    assert begun(JSON).feed(ReceivedWhole(b"bad"))[0] == SendError(BROKE)


def test_a_client_that_leaves_has_its_turn_saved_once() -> None:
    turn = begun()
    turn.feed(words("one"))
    assert turn.feed(ClientLeft()) == [CloseUpstream(), save(End.CANCELLED, "one"), FINISH]
    turn = begun()
    turn.feed(words("one", "end"))
    assert turn.feed(ClientLeft()) == [CloseUpstream(), FINISH]
