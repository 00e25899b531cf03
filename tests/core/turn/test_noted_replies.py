"""Replies that are noted for another attempt: given to a second machine, they lead to the same commands."""

from __future__ import annotations

import orjson
import pytest

from adapters.sse import EventDecoder
from gateway.core.turn.commands import CallModel, Command, NoteReply, RunTool
from gateway.core.turn.events import Received, ReceivedWhole, ReplyStarted, ToolFinished, TurnEvent
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_result import ToolResult
from tests.core.turn.playbook import (
    JSON,
    SSE,
    chat_turn,
    completion,
    feed_event,
    join_bodies,
    make_stream,
    read_stream,
)

TERMS = TurnTerms(gateway_tools=frozenset({"look"}), notes_replies=True, wants_usage=True)
# One without an id, one that is cut off, and one without arguments under an id that is given already.
CALLS = (("", "look", '{"at":"a ship"}'), ("b", "look", '{"at":'), ("b", "look", ""))
FIRST = completion("Let me see.", CALLS, reasoning_content="Hm.", tokens=(10, 5))
LAST = completion("A ship.", id="chatcmpl-2", tokens=(20, 3))


def commands_after(first: TurnEvent, last: TurnEvent, headers: tuple[tuple[str, str], ...]) -> list[Command]:
    """Returns the commands of a turn with two replies, the tools of the first of which have run."""
    turn, made = chat_turn(TERMS), list[Command]()
    for reply in (first, last):
        feed_event(turn, ReplyStarted(200, headers))
        due = feed_event(turn, reply)
        made += due
        for command in due:
            if isinstance(command, RunTool):
                made += feed_event(turn, ToolFinished(ToolResult(command.call_id, f"{command.arguments}")))
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_a_noted_reply_leads_to_the_same_calls_messages_and_usage(stream: bool) -> None:
    headers = SSE if stream else JSON
    first, last = (
        Received(make_stream(each)) if stream else ReceivedWhole(orjson.dumps(each)) for each in (FIRST, LAST)
    )
    live = commands_after(first, last, headers)
    noted = [each for each in live if isinstance(each, NoteReply)]
    assert [each.number for each in noted] == [0, 1]
    replies = (
        Received(EventDecoder().feed(each.reply)) if stream else ReceivedWhole(each.reply) for each in noted
    )
    replayed = commands_after(*replies, headers)
    for kind in (RunTool, CallModel):
        calls = [each for each in live if isinstance(each, kind)]
        assert calls
        assert [each for each in replayed if isinstance(each, kind)] == calls
    if stream:
        assert read_stream(join_bodies(replayed)) == read_stream(join_bodies(live))
    else:
        assert join_bodies(replayed) == join_bodies(live)
