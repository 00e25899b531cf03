"""The system and developer messages of a request, for a client that continues by an id and sends them once.

Neither a user nor a model has written them, and they have no atoms. So the private field `directions` of the turn's
reply has them, each with the number of the request's other messages that followed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.core.conversation.private import read_private
from gateway.core.conversation.wire_message import WireMessage, is_system
from gateway.core.lenient import as_list

DIRECTIONS_FIELD: Final = "directions"


class Direction(NamedTuple):
    """A system or developer message of a request. It is stored as an array."""

    # The number of the request's other messages that follow it.
    following_count: int
    # The message.
    message: WireMessage


def list_directions(messages: Sequence[WireMessage]) -> list[Direction]:
    """Returns the system and developer messages of a list."""
    newest_first: list[Direction] = []
    following_count = 0
    for message in reversed(messages):
        if is_system(message):
            newest_first.append(Direction(following_count, message))
        else:
            following_count += 1
    return newest_first[::-1]


def read_stored_directions(reply: WireMessage) -> list[Direction]:
    """Returns the directions of the request that a stored reply answers."""
    pairs = as_list(read_private(reply).get(DIRECTIONS_FIELD))
    return [Direction(n, message) for n, message in pairs if isinstance(n, int) and isinstance(message, dict)]


class TurnMessages(NamedTuple):
    """The messages of a turn."""

    # The messages of the input, without system messages.
    inputs: Sequence[WireMessage]
    # The messages of the reply; empty if the turn has no reply.
    reply: Sequence[WireMessage]
    # The directions of the turn's request. If a direction comes before the inputs, the client has
    # sent its whole list.
    directions: Sequence[Direction]


def insert_directions(turns: Sequence[TurnMessages]) -> list[WireMessage]:
    """Returns the messages of a path, with the directions of its turns where their requests had them.

    If a client has sent its whole list, its directions replace the directions of earlier turns, from its first one on.

    turns: the turns of the path, oldest first.
    """
    messages = [message for turn in turns for message in (*turn.inputs, *turn.reply)]
    # The directions before messages, by the indices of the messages.
    directions_before: dict[int, list[WireMessage]] = {}
    # The index of the current turn's end.
    end = len(messages)
    # The first index with directions that newer turns have replaced.
    replaced_from = len(messages) + 1
    for inputs, reply, directions in reversed(turns):
        end -= len(reply)
        indexed_directions = [
            (max(end - following_count, 0), message) for following_count, message in directions
        ]
        for index, message in reversed(indexed_directions):
            if index < replaced_from:
                directions_before.setdefault(index, []).insert(0, message)
        if any(following_count > len(inputs) for following_count, _ in directions):
            replaced_from = min(replaced_from, indexed_directions[0][0])
        end -= len(inputs)
    path: list[WireMessage] = []
    for index in range(len(messages) + 1):
        path += directions_before.get(index, ())
        path += messages[index : index + 1]
    return path
