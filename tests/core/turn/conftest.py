"""Checks each transition of the turn machine in the tests of this folder against its table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.core.turn.commands import Command
from gateway.core.turn.events import TurnEvent
from gateway.core.turn.machine import Turn
from gateway.core.turn.states import TRANSITIONS


@pytest.fixture(autouse=True, scope="package")
def transitions() -> Iterator[None]:
    feed = Turn.feed

    def checked_feed(turn: Turn, event: TurnEvent) -> list[Command]:
        before = turn.state
        commands = feed(turn, event)
        after = turn.state
        if type(event) in TRANSITIONS[before]:
            assert after in TRANSITIONS[before][type(event)], f"{before} -{event}-> {after}"
        else:
            assert (after, commands) == (before, []), f"{event} came too late, in {before}"
        return commands

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turn, "feed", checked_feed)
        yield
