"""The records that operators see on the page and the command line: memories, their content, forgettings, the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from storage.listing import PageEnd
from storage.records import Block, Exchange, ImportStatus, Message, Scope


class RetainedContent(Struct, frozen=True):
    """The sizes of a memory's retained content. A turn is a request with its reply; superseded turns are counted."""

    # When the last turn ended; None: nothing is retained.
    last_at: float | None = None
    # A message that was forgotten without its question or reply is counted.
    messages: int = 0
    # The bytes of the messages' JSON.
    bytes: int = 0
    turns: int = 0
    # The turns that the client left before the end of the reply.
    cancelled: int = 0
    # The conversations with retained content; 0 for the content of one conversation.
    conversations: int = 0


class ListedMemory(Struct, frozen=True):
    """A memory as the command line lists it; the page lists `SizedMemory`."""

    id: int
    uid: str
    scope: Scope
    created: float
    blocks: int
    # The facts that are true.
    facts: int
    passages: int
    retained: RetainedContent


class ListedConversation(Struct, frozen=True):
    """A conversation as the command line lists it; the page lists `SizedConversation`."""

    uid: str
    # The client's own id.
    key: str | None
    scope: Scope
    retained: RetainedContent


class NamedScope(NamedTuple):
    """The scope of a memory, with the name that an agent was given."""

    scope: Scope
    # None: the memory belongs to no agent of the agents API.
    agent_name: str | None


class FoundMemory(Struct, frozen=True):
    """A memory that was found by its public id."""

    id: int
    uid: str
    scope: Scope
    # The number of the memory's conversations.
    conversations: int
    # When the memory was paused; None: the memory is not paused.
    paused_at: float | None
    # The name of the agent, if it is one of the agents API.
    agent_name: str | None


class UnindexedTexts(Struct, frozen=True):
    """Texts of a memory that no index has."""

    # Earlier versions of its blocks: label, version, value.
    versions: Sequence[tuple[str, int, str]]
    # The present values of its blocks, by their labels.
    block_values: Mapping[str, str]
    # The public id of the conversation of each summary, and its text.
    summaries: Sequence[tuple[str, str]]
    # Exchanges with messages that no index has: replaced, cancelled and long ones, and exchanges with calls of tools.
    exchanges: Sequence[SourceExchange]
    # True if the memory has no other texts that no index has.
    is_complete: bool


class SizedMemory(Struct, frozen=True):
    """A memory as the page lists it, with its sizes."""

    id: int
    uid: str
    scope: Scope
    created: float
    # When the last turn ended; None: the memory has no turn.
    last_turn: float | None
    # The numbers of the memory's conversations and messages, and the bytes of the messages' JSON.
    conversations: int
    messages: int
    bytes: int
    # The numbers of its blocks, and of its facts that are true.
    blocks: int
    facts: int
    # When the memory was paused; None: the memory is not paused.
    paused_at: float | None
    # The name of the agent, if it is one of the agents API.
    agent_name: str | None

    @property
    def end(self) -> PageEnd:
        """The end of a page that ends with this memory."""
        return (self.last_turn or 0.0, self.id)


class SizedConversation(Struct, frozen=True):
    """A conversation as the page lists it, with its sizes."""

    id: int
    uid: str
    # The client's own id.
    key: str | None
    # When the first turn began, and when the last one ended.
    begun: float
    last_turn: float
    # The number of the conversation's messages, and the bytes of their JSON.
    messages: int
    bytes: int

    @property
    def end(self) -> PageEnd:
        """The end of a page that ends with this conversation."""
        return (self.last_turn, self.id)


class Branch(Struct, frozen=True):
    """A path of a conversation, by the exchange with which it ends."""

    exchange_row: int
    seq: int
    # The number of messages that are left on the path.
    messages: int
    # When the last turn of the path ended.
    last_turn: float
    # True if the messages of the path's end are shown and recalled.
    is_active: bool


class ExchangeRef(Struct, frozen=True):
    """A reference to an exchange: its conversation and its numbers."""

    # The public id of the exchange's conversation.
    conversation_uid: str
    # The number of the exchange's first message.
    seq: int
    # The number of the exchange's reply.
    reply_seq: int


class SourceExchange(Struct, frozen=True):
    """An exchange from which a text came, with its content."""

    exchange: Exchange
    # The public id of the exchange's conversation.
    conversation_uid: str
    # True if another conversation opened with the same prefix.
    prefix_is_shared: bool


class ShownBlock(Struct, frozen=True):
    """A block with its last change."""

    block: Block
    changed_at: float
    # The writer of the last change, as `Revision.origin`.
    origin: str
    # True if other memories see the block, too.
    is_shared: bool


class ForgetCounts(Struct, frozen=True):
    """The numbers of records that a forgetting erases. None: counting would take longer than a person waits."""

    messages: int
    facts: int
    passages: int
    # Versions of blocks that came from the target. Later versions that build on these stay, without the target's words.
    versions: int
    summaries: int
    # Notes in the target, and later notes that may quote the target.
    notes: int | None


class ErasedFact(Struct, frozen=True):
    """A fact that is erased with messages."""

    seq: int
    text: str
    # The origin of the `Fact`.
    origin: str
    # True if no other fact has taken the fact's place.
    is_true: bool


class RebuiltBlock(Struct, frozen=True):
    """A block that would change: its present text, and its text after the forgetting."""

    label: str
    before: str
    after: str


class WordHits(Struct, frozen=True):
    """Messages, passages and facts that have all words of a query, the newest first."""

    # The hits, with muted facts among them.
    messages: Sequence[Message] = ()
    # The number before which further hits are searched for; None: there are no further hits.
    next: int | None = None
    # True if some of the newest messages are not in the index yet, and were not searched.
    is_incomplete: bool = False


class PersonWithWords(Struct, frozen=True):
    """A person with a text in memory that has all words of a query."""

    memory: SizedMemory
    # The newest message, passage or fact that has all of the words.
    message: Message


class PeopleWithWords(Struct, frozen=True):
    """People with texts in their memories that have all words of a query, the newest turns first."""

    people: Sequence[PersonWithWords] = ()
    # The end of the page; None: all memories were searched.
    next: PageEnd | None = None
    # The number of memories that were searched for the page.
    looked_through: int = 0
    # True if all texts of these memories were searched.
    is_complete: bool = True


# The actions that the audit log has.
AuditAction = Literal[
    "login", "login_failed", "logout", "read", "export", "remember", "edit", "undo", "restore", "correct", "mute",
    "always", "forget", "keep", "pause", "link_create", "key_create", "key_revoke", "job_retry", "job_cancel",
]  # fmt: skip


class AuditEntry(Struct, frozen=True):
    """An entry of the audit log: one action."""

    id: int
    # When the action was performed.
    at: float
    # The name of a key, `code`, `link` or `command line`.
    actor: str
    # An `AuditAction`, or the name that an older version gave to an action.
    action: str
    # The uid of a memory, which may be gone.
    memory: str | None
    # The object of the action: a kind and a number ("block human, version 8").
    what: str


class ImportOrigin(NamedTuple):
    """The import from which an entry came."""

    format: str
    # When the import began, in seconds since the epoch.
    begun: float


class StoredImport(Struct, frozen=True):
    """An import as it is stored."""

    id: int
    uid: str
    agent_row: int
    format: str
    status: ImportStatus
    created: float
    # When the import last wrote.
    touched: float
    # The progress of the import, which the store does not read.
    data: dict[str, Any]
    scope: Scope
