"""The kinds of conversation. Each request belongs to one of them, which is decided once, before memory is read."""

from __future__ import annotations

from enum import Enum, auto


class ConversationKind(Enum):
    """How a request says which conversation it goes on from."""

    # The client sends the whole history with each request, and the list is matched with what is stored.
    CLIENT = auto()
    # The gateway has the history, and the client sends its new messages alone: append mode. Requests off the record,
    # cancelled ones and those that are sent again lie beside the path, as in a conversation of the client's.
    APPENDED = auto()
    # The gateway has the history of an agent. Its exchanges are one path, and each step is added at the end.
    AGENT = auto()
