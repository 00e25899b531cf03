"""Arguments of our tools that speak to the client: words, thoughts, fillers, token by token."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.agents.core.rule_guide import RuleGuide
from gateway.core.turn.asides import HEARTBEAT, Asides
from gateway.core.turn.calls import NOT_SPOKEN_RESULT, SPOKEN_RESULT
from gateway.core.turn.commands import CallModel, Finish, RunTool, Save, SaveStep
from gateway.core.turn.events import Received, ReceivedWhole, ReplyStarted, Saved, StepSaved, ToolFinished
from gateway.core.turn.machine import Turn
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.turn.tool_result import ToolResult
from gateway.dialects.chat.render import ChatView
from tests.core.turn.playbook import (
    JSON,
    SSE,
    Playbook,
    call_piece,
    calls,
    chunk,
    completion,
    make_stream,
    orjson,
    read_stream,
)
from tests.core.turn.test_steps import skip
from tests.doubles.lines_view import LinesView

ASIDES = Asides(
    by_tool=dict.fromkeys(("send_message", "look"), frozenset({"thinking", HEARTBEAT, "pre_exec_msg"})),
    spoken_arguments={"send_message": "message"},
)


DONE = {"role": "assistant", "content": "One moment. Done."}


def guide() -> RuleGuide:
    return RuleGuide((), ("send_message", "look"), style="message")


def talk(*, is_chat: bool = False, **fields: Any) -> Playbook:
    given = {
        "holds_end": True,
        "wants_usage": True,
        "shows_steps": not is_chat,
        "saves_steps": not is_chat,
        **fields,
    }
    terms = TurnTerms(gateway_tools=AllBut(), asides=ASIDES, **given)
    return Playbook(Turn(terms, ChatView(terms) if is_chat else LinesView(terms), guide()))


def speak(message: str, id: str = "m", **asides: Any) -> tuple[str, str, str]:
    return (id, "send_message", orjson.dumps({**asides, "message": message}).decode())


def letters(text: str) -> list[str]:
    return [*text]


@pytest.mark.parametrize("cut", [letters, lambda text: [text]], ids=["letters", "whole"])
def test_words_stream_and_are_what_was_said(cut: Any) -> None:
    body = completion(None, (speak('Hello "Anna"\n', thinking="She is new."),), tokens=(10, 5))
    playbook = talk() >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(body, cut)))
    assert playbook << Save
    outcome = playbook.outcome
    assert outcome.shown_reply == {"role": "assistant", "content": 'Hello "Anna"\n'}
    reply, result = outcome.full_reply
    assert (
        reply["tool_calls"][0]["function"]["arguments"] == speak('Hello "Anna"\n', thinking="She is new.")[2]
    )
    asides = {"send_message": ["pre_exec_msg", "request_heartbeat", "thinking"]}
    assert reply["mnemogate"] == {"spoken": 'Hello "Anna"\n', "asides": asides}
    assert result == {"role": "tool", "tool_call_id": "m", "content": SPOKEN_RESULT}
    assert outcome.stop_reason is StopReason.END_TURN
    lines = playbook.client_body.decode().splitlines()
    thoughts = [line.removeprefix("thought ") for line in lines if line.startswith("thought")]
    assert "".join(thoughts) == "She is new."
    assert len(thoughts) == (11 if cut is letters else 1)
    texts = [eval(line.removeprefix("text ")) for line in lines if line.startswith("text")]
    assert "".join(texts) == 'Hello "Anna"\n'
    assert len(texts) == (13 if cut is letters else 1)


def test_words_leave_before_the_call_is_complete() -> None:
    playbook = talk() >> ReplyStarted(200, SSE)
    skip(playbook >> Received([calls(call_piece(0, id="m", name="send_message"))]))
    skip(playbook >> Received([calls(call_piece(0, '{"message":"He'))]))
    assert playbook.client_body.decode().endswith("text 'He'\n")


def test_a_heartbeat_goes_on_and_the_next_request_has_the_call_and_not_the_note() -> None:
    playbook = talk(is_chat=True) >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion(None, (speak("One.", request_heartbeat=True),)))))
    (again,) = [command for command in playbook._due if isinstance(command, CallModel)]
    playbook << again
    assert [message["role"] for message in again.messages] == ["assistant", "tool"]
    assert "mnemogate" not in again.messages[0]
    playbook >> ReplyStarted(200, SSE) >> Received(make_stream(completion("Hm.", (speak("Two.", "n"),))))
    assert skip(skip(playbook) << Save >> Saved()) << Finish
    assert read_stream(playbook.client_body).text == "One. Hm. Two."
    assert playbook.outcome.text == "One. Hm. Two."
    assert read_stream(playbook.client_body).calls == {}
    assert read_stream(playbook.client_body).finish == ["stop"]


def test_a_whole_reply_says_the_words_too() -> None:
    playbook = talk(is_chat=True) >> ReplyStarted(200, JSON)
    playbook >> ReceivedWhole(orjson.dumps(completion(None, (speak("Hi."), speak("Bye.", "n")))))
    assert skip(skip(playbook) << Save >> Saved()) << Finish
    choice = orjson.loads(playbook.client_body)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hi. Bye."}
    assert choice["finish_reason"] == "stop"


def test_plain_text_is_taken_as_said() -> None:
    playbook = talk() >> ReplyStarted(200, SSE) >> Received(make_stream(completion("Hi.")))
    assert skip(playbook) << Save
    assert playbook.outcome.text == "Hi."
    assert playbook.outcome.stop_reason is StopReason.END_TURN


def test_words_that_are_missing_are_an_error_and_go_on() -> None:
    playbook = talk() >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion(None, (("m", "send_message", '{"text":"Hi."}'),)))))
    wrong = ToolResult("m", NOT_SPOKEN_RESULT.format(name="send_message", key="message"), "error")
    assert playbook << (lambda c: isinstance(c, SaveStep) and c.results == (wrong,))


def test_a_tool_called_along_with_text_runs_without_the_gateways_arguments() -> None:
    look = ("l", "look", '{"thinking":"x","request_heartbeat":false,"pre_exec_msg":"One moment.","q":"tea"}')
    playbook = talk() >> ReplyStarted(200, SSE)
    skip(playbook >> Received(make_stream(completion(None, (look, speak("Done."))))))
    assert playbook << (
        lambda c: isinstance(c, SaveStep) and c.shown_reply == {**DONE, "mnemogate": {"fillers": [[0, 11]]}}
    )
    assert playbook >> StepSaved(1, 2) << RunTool("l", "look", {"q": "tea"})
    assert skip(playbook >> ToolFinished(ToolResult("l", "found"))) << Save
    # Nothing asked to go on, so the results are the last that is stored.
    assert [result.content for result in playbook.outcome.results] == ["found", SPOKEN_RESULT]


def test_a_filler_is_spoken_once_and_only_into_silence() -> None:
    def look(id: str) -> tuple[str, str, str]:
        return (id, "look", '{"pre_exec_msg":"Let me look.","request_heartbeat":true}')

    quiet = talk() >> ReplyStarted(200, SSE)
    skip(quiet >> Received(make_stream(completion(None, (look("a"), look("b"))), letters)))
    assert [c.shown_reply for c in quiet._due if isinstance(c, SaveStep)] == [
        {"role": "assistant", "content": "Let me look.", "mnemogate": {"fillers": [[0, 12]]}}
    ]
    loud = talk() >> ReplyStarted(200, SSE)
    skip(loud >> Received(make_stream(completion("So.", (look("a"),)))))
    assert [c.shown_reply for c in loud._due if isinstance(c, SaveStep)] == [None]


@pytest.mark.parametrize(("filler", "text"), [("One moment. ", "So."), ("One moment.", "So. ")])
def test_words_after_a_filler_and_text_are_stored_as_they_stream(filler: str, text: str) -> None:
    playbook = talk(is_chat=True) >> ReplyStarted(200, SSE)
    look = orjson.dumps({"pre_exec_msg": filler}).decode()
    skip(playbook >> Received([calls(call_piece(0, look, id="l", name="look"))]))
    skip(playbook >> Received([chunk({"content": text})]))
    skip(playbook >> Received([calls(call_piece(1, '{"message":"Done."}', id="m", name="send_message"))]))
    skip(playbook >> Received([chunk({}, "length"), *make_stream(completion("", tokens=None))[-1:]]))
    assert read_stream(playbook.client_body).text == playbook.outcome.text == "One moment. So. Done."


def test_a_cut_reply_keeps_the_words_that_were_shown() -> None:
    playbook = talk() >> ReplyStarted(200, SSE)
    pieces = [chunk({"content": "Hm."}), calls(call_piece(0, '{"message":"Hel', id="m", name="send_message"))]
    skip(playbook >> Received([*pieces, chunk({}, "length")]))
    skip(playbook >> Received(make_stream(completion("", tokens=None))[-1:]))
    assert playbook << Save
    assert playbook.outcome.full_reply == ({"role": "assistant", "content": "Hm. Hel"},)
    assert playbook.outcome.stop_reason is StopReason.MAX_TOKENS
