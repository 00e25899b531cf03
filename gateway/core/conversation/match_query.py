"""The input and the result of matching: the facts of a request that the rules decide by, and the match they find."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.kind import ConversationKind
from storage.records import Exchange


class MemoryUse(StrEnum):
    """The use that a request makes of memory."""

    # It recalls and is stored.
    ON = "on"
    OFF = "off"
    # It recalls, and is not stored.
    READ = "read"
    # It recalls, and is stored for its id alone.
    APART = "apart"


class Query(Struct, frozen=True):
    """The facts of a request that the rules decide by."""

    listing: HashedList
    # The client gave a conversation id.
    is_named: bool
    mode: MemoryUse
    # Seconds since the epoch.
    now: float
    # For how many seconds an opening without a conversation id counts as the same when it is sent again.
    idle_s: float
    # Decides whether the list is matched, or continues the head of the stored conversation.
    kind: ConversationKind = ConversationKind.CLIENT
    # The client sends its new message once more; read in append mode alone.
    is_retry: bool = False
    # The row of the named conversation, if it exists already.
    conversation_row: int | None = None
    # The upstream and the model that will answer.
    model: str = ""


class AlteredReply(Struct, frozen=True):
    """Where the list has a reply that the client has altered."""

    # The messages between the last reply that was found word for word and this one.
    inputs: MessageSpan
    # The messages of the reply itself.
    reply: MessageSpan


class Match(Struct, frozen=True):
    """The stored reply from which the list goes on, and where the list has it."""

    # The exchange of the reply that was found last; None: a new tree begins.
    match_point: Exchange | None = None
    # The index of the first message of its reply; -1 if no reply of the list was found.
    first: int = -1
    # The index of the last message of that reply; -1 likewise.
    last: int = -1
    # Where an altered reply is in the list; None: the reply came back word for word.
    altered: AlteredReply | None = None
