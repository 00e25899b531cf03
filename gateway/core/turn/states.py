"""The states of a turn, and the states that each event can lead to from each of them.

`Turn.feed` (gateway.core.turn.machine) ignores an event that the row of its state does not name: it comes too late.
docs/architecture.md draws the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

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


class TurnState(Enum):
    """The state of a turn. The values are its meaning."""

    WAITING = "the model has been called"
    READING = "its reply is being read"
    SAVING_CALLS = "a reply with calls is being saved, before its tools run"
    RUNNING_TOOLS = "gateway tools are running"
    SAVING_RESULTS = "a round is being saved with its results, before the model is called again"
    SAVING_TURN = "the end of the reply waits until the turn is saved"
    DONE = "the turn is over"


# Names of the module, since each event of a stream reads them: from the enum, one takes 70 ns (measured, Python 3.11).
WAITING, READING, SAVING_CALLS, RUNNING_TOOLS, SAVING_RESULTS, SAVING_TURN, DONE = TurnState

Transitions = Mapping[type[TurnEvent], frozenset[TurnState]]
# DONE at once if the end of the reply does not wait for the turn to be saved (`TurnTerms.holds_end`).
_ENDED_STATES: Final = frozenset({SAVING_TURN, DONE})
_DONE_ALONE: Final = frozenset({DONE})
# WAITING at once if steps are not saved.
_NEXT_ROUND_STATES: Final = frozenset({SAVING_RESULTS, WAITING})
# The states that may follow a complete reply.
_REPLY_COMPLETE_STATES: Final = _NEXT_ROUND_STATES | _ENDED_STATES | {SAVING_CALLS, RUNNING_TOOLS}
# The states after an interruption, by its event.
_INTERRUPTIONS: Final[Transitions] = {ClientLeft: _DONE_ALONE, Stopped: _ENDED_STATES}

TRANSITIONS: Final[Mapping[TurnState, Transitions]] = MappingProxyType(
    {
        WAITING: {
            Silence: frozenset({WAITING}),
            ReplyStarted: frozenset({READING}),
            ReplyFailed: _DONE_ALONE,
            ResumedCalls: frozenset({RUNNING_TOOLS, SAVING_RESULTS}) | _ENDED_STATES,
            **_INTERRUPTIONS,
        },
        READING: {
            Received: _REPLY_COMPLETE_STATES | {READING},
            ReceivedWhole: _REPLY_COMPLETE_STATES,
            ReplyEnded: _REPLY_COMPLETE_STATES,
            ReplyFailed: _REPLY_COMPLETE_STATES,  # the reply is complete if only the end of its stream was missing
            Silence: frozenset({READING}),
            LongWait: frozenset({READING}),
            **_INTERRUPTIONS,
        },
        SAVING_CALLS: {
            StepSaved: frozenset({RUNNING_TOOLS}),
            StepFailed: _DONE_ALONE,
            **_INTERRUPTIONS,
        },
        RUNNING_TOOLS: {
            ToolFinished: _NEXT_ROUND_STATES | _ENDED_STATES | {RUNNING_TOOLS},
            ToolsLate: frozenset({RUNNING_TOOLS}),
            Silence: frozenset({RUNNING_TOOLS}),
            **_INTERRUPTIONS,
        },
        SAVING_RESULTS: {StepSaved: frozenset({WAITING}), StepFailed: _DONE_ALONE, **_INTERRUPTIONS},
        SAVING_TURN: {Saved: _DONE_ALONE, ClientLeft: _DONE_ALONE},
        DONE: {},
    }
)
