"""The system and developer messages of turns, at their places in a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gateway.core.conversation.directions import TurnMessages, insert_directions, list_directions


def listed(*texts: str) -> list[dict[str, Any]]:
    """Returns messages: of a developer those in upper case."""
    return [{"role": "developer" if text.isupper() else "user", "content": text} for text in texts]


def turn(*request: str, inputs: int, reply: str = "") -> TurnMessages:
    """Returns the turn of a request, of which so many messages are its inputs."""
    messages = listed(*request)
    own = [m for m in messages if m["role"] == "user"]
    return TurnMessages(own[len(own) - inputs :], listed(reply) if reply else [], list_directions(messages))


@pytest.mark.parametrize(
    ("turns", "path"),
    [
        ([], ""),
        ([turn("a", inputs=1, reply="b")], "a b"),
        ([turn("X", "a", "Y", "b", "Z", inputs=2, reply="c")], "X a Y b Z c"),
        # Each turn has its own.
        ([turn("X", "a", inputs=1, reply="b"), turn("Y", "c", inputs=1, reply="d")], "X a b Y c d"),
        # A whole list replaces those of earlier turns.
        ([turn("X", "a", inputs=1, reply="b"), turn("Y", "a", "b", "c", inputs=1, reply="d")], "Y a b c d"),
        # As far up as it reaches.
        ([turn("X", "a", inputs=1, reply="b"), turn("b", "Y", "c", inputs=1)], "X a b Y c"),
        ([turn("X", "a", inputs=1, reply="b"), turn("Y", "b", "c", inputs=1)], "X a Y b c"),
        # A list may have more messages than the path.
        ([turn("X", "p", "q", "a", inputs=1, reply="b"), turn("c", inputs=1)], "X a b c"),
        # A turn without a reply, and one without inputs.
        ([turn("a", inputs=1), turn("X", inputs=0, reply="b")], "a X b"),
    ],
)
def test_directions_stand_at_their_places(turns: list[TurnMessages], path: str) -> None:
    assert [m["content"] for m in insert_directions(turns)] == path.split()


def test_each_turn_is_read_once() -> None:
    """A long conversation would take seconds if all of its path were read for each turn."""
    reads = 0

    class Counted(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            nonlocal reads
            reads += 1
            return super().__iter__()

    def counted(of: TurnMessages) -> TurnMessages:
        return of._replace(inputs=Counted(of.inputs))

    turns: Sequence[TurnMessages] = [counted(turn("X", "a", inputs=1, reply="b")) for _ in range(100)]
    assert len(insert_directions(turns)) == 300
    assert reads == 100
