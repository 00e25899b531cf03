"""Parameters and results of the transactions that import another application's export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from storage.records import Agent, Exchange, ImportStatus, MemoryVersion


class MatchedExchange(Struct, frozen=True):
    """A stored exchange with a path that an imported conversation has as well."""

    # The exchange without its content.
    exchange: Exchange
    # True if an import gave the exchange's conversation an id.
    is_import: bool
    # True if no finished exchange follows the exchange.
    is_last: bool
    # True if an import that was undone has left the exchange, without its content.
    is_stub: bool


class ImportCandidates(Struct, frozen=True):
    """The stored exchanges that may matter to an imported conversation."""

    # The row of the conversation that was imported under the same id; None: there is no such conversation.
    conversation_row: int | None = None
    # The stored exchanges with a path of the imported conversation.
    matches: Sequence[MatchedExchange] = ()
    # Stored exchanges without a reply that ask a question of the imported conversation.
    unanswered: Sequence[Exchange] = ()
    # The hashes of messages of the imported conversation that were forgotten.
    forgotten_hashes: frozenset[bytes] = frozenset()


class MessageCounts(NamedTuple):
    """The numbers of an import's messages."""

    # The messages that are new to the memory.
    new: int
    # The messages that the memory has already.
    known: int
    # The messages that are left out.
    skipped: int


class ImportChange(Struct, frozen=True):
    """The changes by an imported conversation."""

    # The counts of messages for each exchange of the imported conversation.
    message_counts: Sequence[MessageCounts]
    # The number of imported exchanges that are stored already, from the first on.
    stored_count: int = 0
    # The imported exchanges that are not stored, oldest first.
    new_exchanges: Sequence[Exchange] = ()
    # The exchange that the first of `new_exchanges` follows; None: `new_exchanges` begins a path.
    previous: Exchange | None = None
    # The row of the conversation to which exchanges are added; None: a new conversation is added.
    conversation_row: int | None = None
    # Exchanges of an undone import that get their content again, by their index in the conversation.
    refilled_stubs: Mapping[int, Exchange] = {}
    # Exchanges that the first of `new_exchanges` replaces.
    superseded: Sequence[Exchange] = ()


class ImportWrite(Struct, frozen=True):
    """An imported conversation, to be written."""

    # The agent of the memory, as the import has read it.
    agent: Agent
    # The import's row.
    row: int
    # True if facts and blocks are learned from the conversation's messages.
    learns: bool
    # The conversation's id in its source, which becomes the client's id; None: the conversation has none.
    key: str | None
    # The public id of the conversation, if it is new.
    uid: str
    # The time at which the conversation began, in seconds since the epoch.
    at: float
    # The hashes of the conversation's paths, one for each exchange.
    path_hashes: Sequence[bytes]
    # The hashes of the conversation's questions.
    questions: Sequence[bytes]
    # The hashes of the conversation's messages.
    atoms: Sequence[bytes]
    # The hashes by which the conversation's prefix is recognised.
    prefixes: Sequence[bytes]
    # Returns the changes by the conversation, without side effects.
    decide: Callable[[ImportCandidates], ImportChange]


class ImportWriting(Struct, frozen=True):
    """An imported conversation that is being written, part by part."""

    # The whole conversation.
    write: ImportWrite
    # The changes by the conversation, as they were decided for `version`.
    change: ImportChange
    # The version of the memory for which `change` was decided, as in `AgentNumbers`; None: there is no memory yet.
    version: MemoryVersion | None
    # The number of the conversation's exchanges, from the first on, that are written or need not be written.
    written_count: int = 0

    @property
    def is_written(self) -> bool:
        """True if the whole conversation is written."""
        return self.written_count == len(self.change.message_counts)


class ImportNote(Struct, frozen=True):
    """The progress of an import."""

    # The import's row.
    row: int
    # The state of the import.
    status: ImportStatus
    # The time of the note, in seconds since the epoch.
    at: float
    # The outcome so far, as JSON that the store does not read.
    data: bytes
