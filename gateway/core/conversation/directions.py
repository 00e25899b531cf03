"""The system and developer messages of a request, for a client that continues by an id and sends them once.

No user and no model has written them, and they have no atoms. So they lie in the private field `directions` of the
turn's reply, each with the number of the request's other messages that followed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.core.conversation.canonical import SYSTEM_ROLES, WireMessage
from gateway.core.conversation.private import private_of

DIRECTIONS_FIELD: Final = "directions"
Direction = tuple[int, WireMessage]


def directions_in(messages: Sequence[WireMessage]) -> list[Direction]:
    """Returns the system and developer messages of a list, each with the number of other messages that follow it."""
    found = list[Direction]()
    following = 0
    for message in reversed(messages):
        if message.get("role") in SYSTEM_ROLES:
            found.append((following, message))
        else:
            following += 1
    return found[::-1]


def stored_directions(reply: WireMessage) -> list[Direction]:
    """Returns the directions of the request that a stored reply answers."""
    stored = private_of(reply).get(DIRECTIONS_FIELD)
    pairs = stored if isinstance(stored, list) else ()
    return [(n, message) for n, message in pairs if isinstance(n, int) and isinstance(message, dict)]


class TurnMessages(NamedTuple):
    """The messages of a turn."""

    inputs: Sequence[WireMessage]
    # Empty if the turn has no reply.
    reply: Sequence[WireMessage]
    # The directions of its request. If one comes before the inputs, the client has sent its whole list.
    directions: Sequence[Direction]


def path_with_directions(turns: Sequence[TurnMessages]) -> list[WireMessage]:
    """Returns the messages of a path, with the directions of its turns at their places.

    The directions of a whole list replace those of earlier turns, as far up as they reach.

    turns: oldest first.
    """
    messages = [message for turn in turns for message in (*turn.inputs, *turn.reply)]
    # The directions, by the index of the message that follows them.
    placed: dict[int, list[WireMessage]] = {}
    # The index of the present turn's end, and the first index whose directions newer turns have replaced.
    end = len(messages)
    replaced = len(messages) + 1
    for inputs, reply, directions in reversed(turns):
        end -= len(reply)
        own = [(max(end - following, 0), message) for following, message in directions]
        for index, message in reversed(own):
            if index < replaced:
                placed.setdefault(index, []).insert(0, message)
        if any(following > len(inputs) for following, _ in directions):
            replaced = min(replaced, own[0][0])
        end -= len(inputs)
    path: list[WireMessage] = []
    for index in range(len(messages) + 1):
        path += placed.get(index, ())
        path += messages[index : index + 1]
    return path
