"""The records that operators see on the page and the command line: memories, their content, forgettings, the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from storage.listing import PageEnd
from storage.records import Block, Exchange, ImportStatus, Message, Scope


class RetainedContent(Struct, frozen=True):
    """The sizes of a memory's retained content. A turn is a request with its reply; superseded turns are counted."""

    # The time at which the last turn ended, in seconds since the epoch; None: nothing is retained.
    last_at: float | None = None
    # The number of messages. A message that was forgotten without its question or reply is counted.
    messages: int = 0
    # The bytes of the messages' JSON.
    bytes: int = 0
    # The number of turns.
    turns: int = 0
    # The number of turns that the client left before the end of the reply.
    cancelled: int = 0
    # The number of conversations with retained content; 0 for the content of one conversation.
    conversations: int = 0


class ListedMemory(Struct, frozen=True):
    """A memory as the command line lists it; the page lists `SizedMemory`."""

    # The row of the memory.
    id: int
    # The public id of the memory.
    uid: str
    # The project, the profile and the subject of the memory.
    scope: Scope
    # The time at which the memory began, in seconds since the epoch.
    created: float
    # The number of blocks.
    blocks: int
    # The number of facts that are true.
    facts: int
    # The number of passages.
    passages: int
    # The sizes of the retained content.
    retained: RetainedContent


class ListedConversation(Struct, frozen=True):
    """A conversation as the command line lists it; the page lists `SizedConversation`."""

    # The public id of the conversation.
    uid: str
    # The client's own id; None: the client has given no id.
    key: str | None
    # The scope of the memory.
    scope: Scope
    # The sizes of the retained content.
    retained: RetainedContent


class NamedScope(NamedTuple):
    """The scope of a memory, with the name that an agent was given."""

    # The scope of the memory.
    scope: Scope
    # The name of the agent; None: the memory belongs to no agent of the agents API.
    agent_name: str | None


class FoundMemory(Struct, frozen=True):
    """A memory that was found by its public id."""

    # The row of the memory.
    id: int
    # The public id of the memory.
    uid: str
    # The project, the profile and the subject of the memory.
    scope: Scope
    # The number of the memory's conversations.
    conversations: int
    # The time at which the memory was paused, in seconds since the epoch; None: the memory is not paused.
    paused_at: float | None
    # The name of the agent; None: the memory belongs to no agent of the agents API.
    agent_name: str | None


class UnindexedVersion(NamedTuple):
    """A value that a block had before its present one."""

    # The label of the block.
    label: str
    # The number of the version.
    version: int
    # The value.
    value: str


class SummaryText(NamedTuple):
    """The text of a summary."""

    # The public id of the conversation.
    conversation_uid: str
    # The text.
    text: str


class UnindexedTexts(Struct, frozen=True):
    """Texts of a memory that no index has."""

    # Earlier versions of its blocks.
    versions: Sequence[UnindexedVersion]
    # The present values of its blocks, by their labels.
    block_values: Mapping[str, str]
    # Its summaries.
    summaries: Sequence[SummaryText]
    # Exchanges with messages that no index has: replaced, cancelled and long ones, and exchanges with calls of tools.
    exchanges: Sequence[SourceExchange]
    # True if the memory has no other texts that no index has.
    is_complete: bool


class SizedMemory(Struct, frozen=True):
    """A memory as the page lists it, with its sizes."""

    # The row of the memory.
    id: int
    # The public id of the memory.
    uid: str
    # The project, the profile and the subject of the memory.
    scope: Scope
    # The time at which the memory began, in seconds since the epoch.
    created: float
    # The time at which the last turn ended, in seconds since the epoch; None: the memory has no turn.
    last_turn: float | None
    # The number of conversations.
    conversations: int
    # The number of messages.
    messages: int
    # The bytes of the messages' JSON.
    bytes: int
    # The number of blocks that the memory sees.
    blocks: int
    # The number of facts that are true.
    facts: int
    # The time at which the memory was paused, in seconds since the epoch; None: the memory is not paused.
    paused_at: float | None
    # The name of the agent; None: the memory belongs to no agent of the agents API.
    agent_name: str | None

    @property
    def end(self) -> PageEnd:
        """The end of a page that ends with this memory."""
        return (self.last_turn or 0.0, self.id)


class SizedConversation(Struct, frozen=True):
    """A conversation as the page lists it, with its sizes."""

    # The row of the conversation.
    id: int
    # The public id of the conversation.
    uid: str
    # The client's own id; None: the client has given no id.
    key: str | None
    # The time at which the first turn began, in seconds since the epoch.
    begun: float
    # The time at which the last turn ended, in seconds since the epoch.
    last_turn: float
    # The number of messages.
    messages: int
    # The bytes of the messages' JSON.
    bytes: int

    @property
    def end(self) -> PageEnd:
        """The end of a page that ends with this conversation."""
        return (self.last_turn, self.id)


class Branch(Struct, frozen=True):
    """A path of a conversation, by the exchange with which it ends."""

    # The row of the exchange with which the path ends.
    exchange_row: int
    # The number of that exchange's first message.
    seq: int
    # The number of messages that are left on the path.
    messages: int
    # The time at which the last turn of the path ended, in seconds since the epoch.
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

    # The exchange, with its content.
    exchange: Exchange
    # The public id of the exchange's conversation.
    conversation_uid: str
    # True if another conversation opened with the same prefix.
    prefix_is_shared: bool


class ShownBlock(Struct, frozen=True):
    """A block with its last change."""

    # The block as it is now.
    block: Block
    # The time of the last change, in seconds since the epoch.
    changed_at: float
    # The writer of the last change, as `Revision.origin`.
    origin: str
    # True if other memories see the block, too.
    is_shared: bool


class ForgetCounts(Struct, frozen=True):
    """The numbers of records that a forgetting erases."""

    # The messages of the target.
    messages: int
    # Facts that came from the target.
    facts: int
    # Passages that came from the target.
    passages: int
    # Versions of blocks that came from the target. Later versions that build on these stay, without the target's words.
    versions: int
    # Summaries of paths with a part of the target.
    summaries: int
    # Notes in the target, and later notes that may quote the target; None: they are too many to be counted.
    notes: int | None


class ErasedFact(Struct, frozen=True):
    """A fact that is erased with messages."""

    # The number of the fact.
    seq: int
    # The text of the fact.
    text: str
    # The origin of the `Fact`.
    origin: str
    # True if no other fact has taken the fact's place.
    is_true: bool


class RebuiltBlock(Struct, frozen=True):
    """A block that would change: its present text, and its text after the forgetting."""

    # The label of the block.
    label: str
    # The present value of the block.
    before: str
    # The value of the block after the forgetting.
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

    # The person's memory.
    memory: SizedMemory
    # The newest message, passage or fact that has all of the words.
    message: Message


class PeopleWithWords(Struct, frozen=True):
    """People with texts in their memories that have all words of a query, the newest turns first."""

    # The people on the page.
    people: Sequence[PersonWithWords] = ()
    # The position at which the next page begins; None: all memories were searched.
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

    # The row of the entry.
    id: int
    # The time at which the action was performed, in seconds since the epoch.
    at: float
    # The actor: the name of a key, `code`, `link` or `command line`.
    actor: str
    # An `AuditAction`, or the name that an older version gave to an action.
    action: str
    # The uid of a memory, which may be gone.
    memory: str | None
    # The object of the action: a kind and a number ("block human, version 8").
    what: str


class ImportOrigin(NamedTuple):
    """The import from which an entry came."""

    # The name of the export's format.
    format: str
    # The time at which the import began, in seconds since the epoch.
    begun: float


class StoredImport(Struct, frozen=True):
    """An import as it is stored."""

    # The import's row.
    id: int
    # The public id of the import.
    uid: str
    # The row of the memory into which the import writes.
    agent_row: int
    # The name of the export's format.
    format: str
    # The state of the import.
    status: ImportStatus
    # The time at which the import began, in seconds since the epoch.
    created: float
    # The time at which the import last wrote, in seconds since the epoch.
    touched: float
    # The progress of the import, which the store does not read.
    data: dict[str, Any]
    # The scope of the memory.
    scope: Scope
