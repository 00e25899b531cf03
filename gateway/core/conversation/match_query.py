"""The input and the result of matching: the facts of a request by which the rules decide, and the match."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.kind import ConversationKind
from storage.records import Exchange


class MemoryUse(StrEnum):
    """The use that a request makes of memory."""

    # The request recalls and is stored.
    ON = "on"
    # The request neither recalls nor is stored.
    OFF = "off"
    # The request recalls, and is not stored.
    READ = "read"
    # The request recalls, and is stored for its id alone.
    APART = "apart"


class Query(Struct, frozen=True):
    """The facts of a request by which the rules decide."""

    # The client's messages.
    listing: HashedList
    # True: the client gave a conversation id.
    is_named: bool
    # The request's use of memory.
    mode: MemoryUse
    # The time of the request, in seconds since the epoch.
    now: float
    # The number of seconds in which an opening without a conversation id counts as the same when it is sent again.
    idle_s: float
    # Decides whether the list is matched, or continues the head of the stored conversation.
    kind: ConversationKind = ConversationKind.CLIENT
    # True: the client sends its new message once more; read in append mode alone.
    is_retry: bool = False
    # The row of the named conversation; None: the conversation has not begun, or has no name.
    conversation_row: int | None = None
    # The upstream and the model that will answer.
    model: str = ""
    # True: the reply becomes a response with an id, so the request repeats no forgotten one.
    makes_response: bool = False
    # The number of the first messages that are the path of the response which the client continues by its id; all later
    # messages are new. None: the client continues no response by its id.
    path_length: int | None = None

    @property
    def ignores_forgotten(self) -> bool:
        """True if the request is for a stored response and sends new messages alone, or no reply.

        None of its messages repeats a forgotten one then.
        """
        sends_new_only = self.path_length is not None or self.kind is ConversationKind.APPENDED
        return self.makes_response and (sends_new_only or not self.listing.answered_count)


class AlteredReply(Struct, frozen=True):
    """The messages of a list with a reply that the client has altered."""

    # The messages between the last reply that was found word for word and this one.
    inputs: MessageSpan
    # The messages of the reply itself.
    reply: MessageSpan


class Match(Struct, frozen=True):
    """The stored reply from which the list goes on, and its messages in the list."""

    # The exchange of the reply that was found last; None: a new tree begins.
    match_point: Exchange | None = None
    # The index of the first message of that reply in the list; -1: no stored reply was found.
    first: int = -1
    # The index of the last message of that reply in the list; -1: no stored reply was found.
    last: int = -1
    # The altered reply; None: the reply came back word for word.
    altered: AlteredReply | None = None
