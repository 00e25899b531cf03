"""The kinds of conversation, and the name of the queue in which the requests for one wait.

Each request belongs to one kind, which is decided once, before memory is read.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class QueueName(NamedTuple):
    """The name of the queue in which the requests for a conversation wait."""

    # The uid of the memory that has the conversation; "": the conversation has no memory. A queue for requests whose
    # memory is not read yet begins with "arriving".
    agent_uid: str
    # The key of the conversation; its uid if it has no key. Of an arriving request of the chat API, the scope and the
    # key: it may become a send, which has a queue of arrival of its own, and it must not wait for itself.
    conversation_name: str


class ConversationKind(Enum):
    """The history that a request continues."""

    # The client sends the whole history with each request, and the list is matched with the stored messages.
    CLIENT = auto()
    # The gateway has the history, and the client sends its new messages alone: append mode. A request that is off the
    # record, cancelled or sent again has a branch of its own in the tree, as in a client conversation.
    APPENDED = auto()
    # The gateway has the history of an agent. Its exchanges are one path, and each step is added at the end.
    AGENT = auto()
