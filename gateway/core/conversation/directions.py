"""The system and developer messages of a request, for a client that continues by an id and sends them once.

They are no words of anybody and have no atoms, so they lie in the private field `directions` of the turn's reply, each
with the number of the request's other messages that followed it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.core.conversation.canonical import SYSTEM_ROLES, WireMessage
from gateway.core.conversation.private import private_of

DIRECTIONS_FIELD: Final = "directions"
Direction = tuple[int, WireMessage]


def directions_in(messages: Sequence[WireMessage]) -> list[Direction]:
    """Returns the system and developer messages of a list, each with the number of other messages that follow it."""
    found, following = list[Direction](), 0
    for message in reversed(messages):
        if message.get("role") in SYSTEM_ROLES:
            found.append((following, message))
        else:
            following += 1
    return found[::-1]


def stored_directions(reply: WireMessage) -> list[Direction]:
    """Returns those of the request that a stored reply answers."""
    stored = private_of(reply).get(DIRECTIONS_FIELD)
    pairs = stored if isinstance(stored, list) else ()
    return [(n, message) for n, message in pairs if isinstance(n, int) and isinstance(message, dict)]


class TurnMessages(NamedTuple):
    """The messages of a turn."""

    inputs: Sequence[WireMessage]
    # Empty, if it has none.
    reply: Sequence[WireMessage]
    # Those of its request. If some come before its inputs, the client has sent its whole list.
    directions: Sequence[Direction]


def path_with_directions(turns: Sequence[TurnMessages]) -> list[WireMessage]:
    """Returns the messages of a path, with the directions of its turns at their places.

    The directions of a whole list replace those of earlier turns, as far up as they reach.

    turns: oldest first.
    """
    found = list[WireMessage]()  # newest first
    total = sum(len(turn.inputs) + len(turn.reply) for turn in turns)
    # The directions to be placed, each with the number of messages that follow it in the path, the last one first.
    waiting = deque[Direction]()
    # The number of messages found; and of those after the first direction that replaces the ones of older turns.
    following, replaced = 0, -1

    def add(messages: Sequence[WireMessage]) -> None:
        nonlocal following
        for message in reversed(messages):
            found.append(message)
            following += 1
            place()

    def place() -> None:
        while waiting and waiting[0][0] <= following:
            found.append(waiting.popleft()[1])

    for inputs, reply, directions in reversed(turns):
        add(reply)
        own = [(min(following + n, total), message) for n, message in reversed(directions)]
        waiting.extend(each for each in own if each[0] > replaced)
        if any(n > len(inputs) for n, _ in directions):
            replaced = max(replaced, own[-1][0])
        place()
        add(inputs)
    return found[::-1]
