"""The table of a turn's states: the machine takes each transition in it, and no other.

conftest.py checks each transition that the other tests of this folder make.
"""

from __future__ import annotations

import itertools
from typing import get_args

import orjson

from gateway.core.turn.calls import ResumedCalls
from gateway.core.turn.events import (
    ClientLeft,
    LongWait,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    Silence,
    StepFailed,
    StepSaved,
    Stopped,
    ToolFinished,
    ToolsLate,
    TurnEvent,
)
from gateway.core.turn.guide import NeedsApproval
from gateway.core.turn.machine import Turn
from gateway.core.turn.states import TRANSITIONS, TurnState
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import AllBut
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import MemoryUnavailable, UpstreamReplyBroken
from tests.core.turn.playbook import SSE, completion, make_stream
from tests.core.turn.test_steps import Script
from tests.doubles.lines_view import LinesView

CALL, UNREADABLE = ("a", "look", "{}"), ("a", "look", "{")
REPLIES = (
    completion("Hi."),
    completion(None, (CALL,)),
    completion(None, (CALL, ("b", "look", "{}"))),
    completion(None, (CALL, ("b", "search", "{}"))),  # one call of the client's
    completion(None, (UNREADABLE,)),  # its result needs no tool
)
PAY = {"id": "b", "type": "function", "function": {"name": "pay", "arguments": "{}"}}
EVENTS: tuple[TurnEvent, ...] = (
    ReplyStarted(200, SSE),
    *(ReceivedWhole(orjson.dumps(body)) for body in REPLIES),
    *(Received(make_stream(body)) for body in REPLIES),
    *(Received(make_stream(body)[:-1]) for body in REPLIES),  # without [DONE]
    ReplyEnded(),
    ReplyFailed(UpstreamReplyBroken("It broke.")),
    ToolFinished(ToolResult("a", "found")),
    ToolsLate(),
    Silence(),
    LongWait(),
    StepSaved(1, 2),
    StepFailed(MemoryUnavailable("The disk is full.")),
    Saved(),
    ResumedCalls(({**PAY, "function": {"name": "look", "arguments": "{}"}},)),
    ResumedCalls(({**PAY, "function": {"name": "look", "arguments": "{"}},)),
    ResumedCalls((PAY,)),
    ClientLeft(),
    Stopped(),
)
Transition = tuple[TurnState, type[TurnEvent], TurnState]


def take(terms: TurnTerms, events: tuple[TurnEvent, ...]) -> tuple[Turn, list[Transition]]:
    turn, seen = Turn(terms, LinesView(terms), Script({"pay": [NeedsApproval()]})), []
    for event in events:
        before = turn.state
        turn.feed(event)
        seen.append((before, type(event), turn.state))
    return turn, seen


def explore(terms: TurnTerms) -> set[Transition]:
    """Returns the transitions of all turns of a few events, those that come too late among them."""
    found: set[Transition] = set()
    paths: list[tuple[TurnEvent, ...]] = [()]
    for _ in range(4 if terms.saves_steps else 3):  # events before the last new transition
        longer: dict[
            object, tuple[TurnEvent, ...]
        ] = {}  # by transitions and last event, since many paths are alike
        for events, (n, event) in itertools.product(paths, enumerate(EVENTS)):
            if isinstance(event, ResumedCalls) and (events or not terms.saves_steps):
                continue  # a turn begins with them or not at all
            turn, seen = take(terms, (*events, event))
            found.update(seen[-1:])
            if turn.state is not TurnState.DONE and seen[-1][1] in TRANSITIONS[seen[-1][0]]:
                longer.setdefault((*seen, n), (*events, event))
        paths = [*longer.values()]
    return found


def test_the_machine_takes_each_transition_of_the_table_and_no_other() -> None:
    found: set[Transition] = set()
    for holds_end, saves_steps, shows_steps in itertools.product((True, False), repeat=3):
        terms = TurnTerms(
            gateway_tools=AllBut({"search"}),
            holds_end=holds_end,
            saves_steps=saves_steps,
            shows_steps=shows_steps,
        )
        found |= explore(terms)
    listed = {
        (state, event, after)
        for state, row in TRANSITIONS.items()
        for event, allowed in row.items()
        for after in allowed
    }
    late = {
        (state, event, state)
        for state, row in TRANSITIONS.items()
        for event in map(type, EVENTS)
        if event not in row
    }
    assert listed - found == set()
    assert found - listed - late == set()


def test_every_state_has_its_row_and_every_event_is_in_one() -> None:
    assert {*TRANSITIONS} == {*TurnState}
    assert TRANSITIONS[TurnState.DONE] == {}
    assert {event for row in TRANSITIONS.values() for event in row} == {*get_args(TurnEvent)}


def test_the_leaving_of_its_client_ends_a_turn_in_every_state() -> None:
    for state, row in TRANSITIONS.items():
        assert state is TurnState.DONE or row[ClientLeft] == {TurnState.DONE}
