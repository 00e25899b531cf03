"""The table of a turn's transitions. Each test of this folder checks the machine against it (conftest.py)."""

from __future__ import annotations

from gateway.core.turn import events
from gateway.core.turn.states import TRANSITIONS, TurnState


def test_every_state_has_its_row() -> None:
    assert {*TRANSITIONS} == {*TurnState}
    assert TRANSITIONS[TurnState.DONE] == {}


def test_every_event_is_listed_somewhere() -> None:
    listed = {event for row in TRANSITIONS.values() for event in row}
    assert listed == set(events.TurnEvent.__args__)  # type: ignore[attr-defined]


def test_every_turn_can_end() -> None:
    """From each state the client's leaving leads to the end, and so does a path of other events."""
    for state, row in TRANSITIONS.items():
        assert state is TurnState.DONE or row[events.ClientLeft] == {TurnState.DONE}
    reached, before = {TurnState.WAITING}, set[TurnState]()
    while reached != before:
        before = set(reached)
        reached |= {after for state in before for afters in TRANSITIONS[state].values() for after in afters}
    assert reached == {*TurnState}
