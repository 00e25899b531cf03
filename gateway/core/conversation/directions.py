"""The system and developer messages of a request, for a client that continues by an id and sends them once.

They are no words of anybody and have no atoms, so they lie in the private field `directions` of the turn's reply, each
with the number of the request's other messages that followed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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


def insert_directions(
    path: Sequence[WireMessage], own: int, directions: Sequence[Direction]
) -> list[WireMessage]:
    """Returns a path that ends with a turn's inputs, with the turn's directions at their places.

    own: the number of its inputs. Directions that stand farther up came with the whole list of a client, which replace
    those of earlier turns.
    """
    if not directions:
        return [*path]
    farthest = max(following for following, _ in directions)
    found, left, following = list[WireMessage](), list(directions), 0

    def place() -> None:
        while left and left[-1][0] <= following:
            found.append(left.pop()[1])

    place()
    for message in reversed(path):
        if message.get("role") not in SYSTEM_ROLES:
            found.append(message)
            following += 1
            place()
        elif farthest <= own or following > farthest:
            found.append(message)
    found.extend(message for _, message in reversed(left))
    return found[::-1]
