"""The states of a turn, and which event leads from one to which others.

The machine (`gateway.core.turn.machine`) reads the table: an event that its state does not list comes too late, and
commands nothing. A turn begins in WAITING, or in TOOLS where it resumes calls of a stored step.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from gateway.core.turn import events


class TurnState(Enum):
    """The states, each with what its turn waits for."""

    WAITING = "waiting"  # for the begin of a model's reply
    READING = "reading"  # for the rest of it
    KEEPING = "keeping"  # for the commit of a step
    TOOLS = "tools"  # for results of gateway calls
    SAVING = "saving"  # for the commit of the turn; its end is held meanwhile
    DONE = "done"  # for nothing


_NEXT: Final = frozenset(
    (TurnState.WAITING, TurnState.KEEPING, TurnState.TOOLS, TurnState.SAVING, TurnState.DONE)
)
_READING: Final = _NEXT | {TurnState.READING}
_DONE: Final = frozenset((TurnState.DONE,))
_STOPPED: Final = frozenset((TurnState.SAVING, TurnState.DONE))

# By state and event the states that may follow. The end of a reply, or of its tools, leads to the next round (WAITING,
# or KEEPING where steps are stored), to tools, or to the end of the turn.
TRANSITIONS: Final[Mapping[TurnState, Mapping[type, frozenset[TurnState]]]] = {
    TurnState.WAITING: {
        events.ReplyStarted: frozenset((TurnState.READING,)),
        events.ReplyFailed: _DONE,
        events.Stopped: _STOPPED,
        events.ClientLeft: _DONE,
    },
    TurnState.READING: {
        events.Received: _READING,
        events.ReceivedWhole: _NEXT,
        events.ReplyEnded: _NEXT,
        events.ReplyFailed: _NEXT,
        events.Stopped: _STOPPED,
        events.ClientLeft: _DONE,
    },
    TurnState.KEEPING: {
        events.Kept: frozenset((TurnState.TOOLS, TurnState.WAITING)),
        events.Stopped: _STOPPED,
        events.ClientLeft: _DONE,
    },
    TurnState.TOOLS: {
        events.ToolFinished: _NEXT,
        events.ToolsLate: frozenset((TurnState.TOOLS,)),
        events.Stopped: _STOPPED,
        events.ClientLeft: _DONE,
    },
    TurnState.SAVING: {
        events.Saved: _DONE,
        events.ClientLeft: _DONE,
    },
    TurnState.DONE: {},
}
