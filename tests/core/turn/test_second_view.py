"""A second dialect, to show that one needs a view and nothing of the machine: a reply as lines of text."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from adapters.types import EVENT_STREAM_HEADER
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.commands import (
    CloseUpstream,
    Command,
    End,
    Finish,
    RunTool,
    Save,
    SendBody,
    SendError,
    SendHead,
    SendWhole,
)
from gateway.core.turn.events import Received, ReceivedWhole, ReplyEnded, ReplyFailed, ReplyStarted, Saved
from gateway.core.turn.guide import FreeGuide
from gateway.core.turn.machine import Turn
from gateway.core.turn.terms import TurnTerms
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import (
    DONE,
    JSON,
    SSE,
    Playbook,
    PlayedTurn,
    chat_turn,
    chunk,
    completion,
    event,
    make_stream,
    play,
)
from tests.doubles.lines_view import LinesView

GATEWAY_TOOLS = {"memory_insert": "memory_insert"}
ARGS = '{"label":"human","new_string":"tea"}'


def lines_turn(**fields: Any) -> Turn:
    terms = TurnTerms(gateway_tools=GATEWAY_TOOLS, wants_usage=True, **fields)
    view: ClientView = LinesView(terms)
    return Turn(terms, view, FreeGuide(10))


def lines(played: PlayedTurn | Playbook) -> list[str]:
    return played.client_body.decode().splitlines()


ROUNDS = [
    completion("Let me see.", (("a", "memory_insert", ARGS),), id="one", tokens=(10, 5)),
    completion("Noted.", (("b", "weather", "{}"),), id="two", tokens=(20, 7)),
]


def test_a_hidden_round_is_shown_as_it_happens() -> None:
    played = play(lines_turn(holds_end=True), ROUNDS, stream=True, group=lambda e: [[each] for each in e])
    assert lines(played) == [
        "begin one",
        "text Let me see.",
        "round over",
        f"gateway memory_insert {ARGS}",
        "result result of a",
        "text ' '",
        "text Noted.",
        "client {'name': 'weather', 'arguments': ''}",
        "client {'arguments': '{}'}",
        "end tool_calls 12",
    ]


def test_a_call_is_shown_before_its_tool_has_run() -> None:
    playbook = Playbook(lines_turn()) >> ReplyStarted(200, SSE) >> Received(make_stream(ROUNDS[0]))
    assert (
        playbook
        << SendHead(200, (EVENT_STREAM_HEADER,))
        << SendBody(b"begin one\ntext Let me see.\nround over\n")
        << SendBody(b"gateway memory_insert %b\n" % ARGS.encode())
        << RunTool("a", "memory_insert", orjson.loads(ARGS))
    )


def test_a_whole_reply_is_one_body() -> None:
    played = play(lines_turn(holds_end=True), [ROUNDS[0], completion("Noted.")], stream=False)
    assert lines(played) == ["whole Let me see. Noted. stop 3 10"]


def test_a_refusal_of_the_upstream_has_the_views_form() -> None:
    playbook = Playbook(lines_turn()) >> ReplyStarted(429, JSON)
    playbook >> ReceivedWhole(b'{"error":{"message":"Too fast."}}')
    assert playbook << SendWhole(429, JSON, b"refused 429 Too fast.") << Save << Finish
    assert playbook.outcome.state is End.FAILED


def test_an_error_in_the_stream_has_the_views_form() -> None:
    playbook = Playbook(lines_turn()) >> ReplyStarted(200, SSE) >> Received([chunk({"content": "He"})])
    playbook << SendHead << SendBody(b"begin chatcmpl-1\ntext He\n")
    playbook >> Received([event({"error": {"message": "Out of tokens."}})])
    assert playbook << SendBody(b"error Out of tokens.\n") << CloseUpstream << Save << Finish


def test_the_error_of_a_stream_that_breaks_has_the_views_form() -> None:
    playbook = Playbook(lines_turn()) >> ReplyStarted(200, SSE) >> Received([chunk({"content": "He"})])
    playbook << SendHead << SendBody
    playbook >> ReplyFailed(UpstreamReplyBroken("It broke."))
    assert playbook << SendBody(b"error 502 It broke.\n") << CloseUpstream << Save << Finish


def test_a_stream_that_breaks_before_its_first_text_is_left_to_the_route() -> None:
    """The view of whom one writes a dialect after holds back what is no text yet, so that the error is a status."""
    error = UpstreamReplyBroken("It broke.")
    playbook = Playbook(lines_turn()) >> ReplyStarted(200, SSE) >> Received([chunk({"role": "assistant"})])
    playbook >> ReplyFailed(error)
    assert playbook << SendError(error) << CloseUpstream << Save << Finish


def test_a_failure_before_the_first_byte_is_left_to_the_route() -> None:
    error = UpstreamReplyBroken("It broke.")
    playbook = Playbook(lines_turn()) >> ReplyFailed(error)
    assert playbook << SendError(error) << CloseUpstream << Save << Finish


def test_a_turn_that_is_not_on_disk_says_so() -> None:
    playbook = Playbook(lines_turn(holds_end=True)) >> ReplyStarted(200, SSE)
    playbook >> Received([chunk({"content": "Hi"}), chunk({}, "stop"), DONE])
    playbook << SendHead << SendBody << Save >> Saved(is_durable=False)
    assert playbook << SendBody(b"end stop None\nnot durable\n") << Finish
    assert playbook.turn.feed(ReplyEnded()) == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("holds_end", [False, True])
def test_the_view_decides_nothing(stream: bool, holds_end: bool) -> None:
    """Calls of the model, tools and what is saved are the same in every dialect."""
    terms = TurnTerms(gateway_tools=GATEWAY_TOOLS, wants_usage=True, holds_end=holds_end)

    def decided(turn: Turn) -> list[Command]:
        played = play(turn, ROUNDS, stream=stream)
        return [*played.tool_runs, *played.model_calls, Save(played.outcome)]

    assert decided(Turn(terms, LinesView(terms), FreeGuide(10))) == decided(chat_turn(terms))
