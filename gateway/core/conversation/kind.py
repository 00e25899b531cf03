"""The kinds of conversation, and the name of the queue in which the requests for one wait.

Each request belongs to one kind, which is decided once, before memory is read.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class QueueName(NamedTuple):
    """The name of the queue in which the requests for a conversation wait."""

    # The uid of the memory that has the conversation; "": the conversation has no memory.
    agent_uid: str
    # The key of the conversation; its uid if it has no key.
    conversation_name: str

    @classmethod
    def for_chat_arrival(cls, scope: object, key: str | None) -> QueueName:
        """Returns the name of the queue for chat requests before their memory is read.

        Such a request may become a send of an agent, which waits in another queue, and must not wait for itself.

        scope: the scope of the memory.
        """
        return cls("arriving chat", f"{scope} {key}")

    @classmethod
    def for_send_arrival(cls, scope: object, conversation_name: str) -> QueueName:
        """Returns the name of the queue for sends to an agent before its memory is read. scope: as above."""
        return cls("arriving send", f"{scope} {conversation_name}")


class ConversationKind(Enum):
    """The history that a request continues."""

    # The client sends the whole history with each request, and the list is matched with the stored messages.
    CLIENT = auto()
    # The gateway has the history, and the client sends its new messages alone: append mode. A request that is off the
    # record, cancelled or sent again has a branch of its own in the tree, as in a client conversation.
    APPENDED = auto()
    # The gateway has the history of an agent. Its exchanges are one path, and each step is added at the end.
    AGENT = auto()
