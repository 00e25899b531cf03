"""Parameters and results of the transactions of turns, as values. The records themselves are in storage/records.py.

Other transactions have modules of their own: runs, forgetting, learning and embedding (reader_commands.py), the export
and import of a memory (transfer_commands.py), and the import of another application's export (import_commands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from storage.records import (
    Agent,
    AgentNumbers,
    Atom,
    Block,
    Conversation,
    Exchange,
    MemoryEdit,
    SentSection,
    StandingFact,
)


class MemoryReader(Struct, frozen=True):
    """A sleeptime agent that reads a memory."""

    # The row of the agent's own memory.
    agent_row: int
    # The number of turns after its cursor, counted up to a limit.
    turns: int
    # True if the reader reads now, or is about to.
    is_busy: bool


# Shared, so never written to.
NO_NOTES: dict[int, str] = {}


@dataclass(slots=True)
class PlacedNote:
    """A note on a path."""

    # The number of atoms on the path before the note's message.
    at: int
    # The note in UTF-8: as a str, a text with an emoji takes four bytes a character, and its UTF-8 as well once sent.
    utf8: bytes
    # The tokens of the text; 0: the tokens have not been counted yet.
    tokens: int = field(default=0, compare=False)
    # The digests of the block values that the text shows, by label; None: the text has not been read yet.
    shown: Mapping[str, str] | None = field(default=None, compare=False)


class Additions(Struct, frozen=True):
    """The additions of the gateway to a path, oldest first: notes, and rounds that the client has not seen."""

    # The notes of the path. Each note is sent before the text of its message.
    notes: tuple[PlacedNote, ...] = ()
    # The exchanges with more of a reply than the client has, with their content and without notes.
    rounds: tuple[Exchange, ...] = ()
    # The row of the newest exchange that has a note or a round; None: no exchange has.
    last: int | None = None

    def extended(self, *exchanges: Exchange) -> Additions:
        """Returns the additions of the path with its next exchanges. Exchanges with rounds must have their content."""
        notes = [*self.notes]
        rounds = [*self.rounds]
        last = self.last
        for exchange in exchanges:
            at = exchange.offset
            for index, atoms in enumerate(exchange.inputs):
                if text := exchange.notes.get(index):
                    notes.append(PlacedNote(at, text.encode("utf-8", "surrogatepass")))
                at += len(atoms)
            if exchange.has_full_reply or exchange.opaque:
                rounds.append(replace(exchange, notes=NO_NOTES))
            if exchange.has_additions:
                last = exchange.id
        return Additions(tuple(notes), tuple(rounds), last)


NO_ADDITIONS = Additions()


class MemorySnapshot(Struct):
    """Everything that a request needs of its memory, read in one round trip."""

    # The number that rises with each forgetting, as `AgentNumbers.epoch`.
    epoch: int = 0
    # The next number that the memory gives out, as `AgentNumbers.next_seq`.
    next_seq: int = 1
    # The last number that the search index knows, as `AgentNumbers.indexed_seq`.
    indexed_seq: int = 0
    # The number that rises with other changes of the snapshot, as `AgentNumbers.rev`.
    rev: int = 0
    # The number that rises with changes of searchable texts, as `AgentNumbers.stamp`.
    stamp: int = 0
    # The conversation with the client's id, or of a stored path; None: there is no such conversation.
    conversation: Conversation | None = None
    # The newest exchange with a path that equals the client's list up to its last assistant message; without notes.
    exchange: Exchange | None = None
    # True if `exchange` is a first turn, and other first turns match the client's list as well.
    has_rivals: bool = False
    # The additions of the gateway to the path of `exchange`.
    additions: Additions = msgspec.field(default_factory=lambda: NO_ADDITIONS)
    # True if the memory has messages that are off the record or were forgotten.
    has_tombstones: bool = False
    # The memory section of the path of `exchange`; None: the path has none.
    section: SentSection | None = None
    # The blocks that the agent sees.
    blocks: list[Block] = msgspec.field(default_factory=list)
    # The agent's pending memory edits, of all paths.
    edits: list[MemoryEdit] = msgspec.field(default_factory=list)
    # The newest of the standing facts, newest first.
    standing: list[StandingFact] = msgspec.field(default_factory=list)
    # True if `exchange` is continued already. Then only the fields that all snapshots of the memory share are cached.
    is_continued: bool = False
    # True if the client's list begins like a prefix that was made elsewhere. Then no more is cached than for
    # `is_continued`.
    matches_prefix: bool = False
    # True if the users of a profile share some of the blocks. No part of such a snapshot is cached.
    shares_blocks: bool = False
    # The sleeptime agents that read the memory; empty as well if they were not read.
    readers: list[MemoryReader] = msgspec.field(default_factory=list)

    @property
    def numbers(self) -> AgentNumbers:
        """The numbers that the agent had when the snapshot was read."""
        return AgentNumbers(self.epoch, self.next_seq, self.indexed_seq, self.rev, self.stamp)


class Opening(Struct, frozen=True):
    """The first exchange of a conversation without an id, by which a client's messages may be found to belong to it."""

    # The time at which the exchange was written, in seconds since the epoch.
    at: float
    # The time at which the exchange began, in seconds since the epoch.
    begun: float
    # The atoms of the exchange's messages.
    inputs: tuple[tuple[Atom, ...], ...]
    # The number of words in the last message; None: not known.
    word_count: int | None
    # The hash of all words of the last message except the last word, which may still grow; None: not known.
    stem: int | None


# The most questions of a list that are looked up: the last ones. Not measured; it bounds the look-ups for a list.
MAX_QUESTIONS = 16


class Probes(Struct, frozen=True):
    """The keys under which the exchanges that may matter to a list of messages are looked up."""

    # The client's id of the conversation, so that no other conversation matters; None: the client sent no id.
    key: str | None
    # The keys of replies that the list may hold.
    replies: Sequence[bytes] = ()
    # The hashes of the questions in the list.
    questions: Sequence[bytes] = ()
    # The hashes of prefixes, and of messages that may be off the record.
    marks: Sequence[bytes] = ()
    # Openings that ended after this time may belong to the same conversation.
    since: float = 0.0
    # The hashes of messages that may have been forgotten.
    maybe_forgotten: Sequence[bytes] = ()
    # The number of depths of exchanges that are loaded, from the deepest one up; None: all.
    max_exchanges: int | None = None
    # The least depth that is loaded; None: any. First exchanges are always loaded.
    min_depth: int | None = None
    # Exchanges from this depth on are loaded already; None: no exchange is loaded. For probes with a `key` alone.
    loaded_depth: int | None = None
    # True to load all exchanges with their contents. For probes with a `key` alone.
    loads_contents: bool = False


class StoredContent(NamedTuple):
    """The columns of an exchange that hold content, as JSON."""

    # The client's messages, as a JSON array; None: the exchange was forgotten.
    input: bytes | None = None
    # The reply as the client has it, as a JSON message; None: there is no reply.
    shown_reply: bytes | None = None
    # All messages of the reply, as `Exchange.full_reply`; None: the reply is `shown_reply` alone.
    full_reply: bytes | None = None


# The most calls of a rule, each with more contents than the call before. A rule raises `MissingContents` in five steps
# at most (compared openings or siblings, altered replies, questions asked again, an equal reply with other ids, equal
# turns of other responses), and in each step for all contents that the step compares.
MAX_RULE_CALLS = 6


class MissingContents(Exception):
    """A rule needs the contents of the exchanges `ids`: load all of them at once, and call the rule again."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(f"the contents of exchanges {list(ids)} are needed")
        self.ids = ids


class CandidateExchanges(Struct, frozen=True):
    """The stored exchanges that were found by `Probes`, without content except for the last of each conversation."""

    # The exchanges.
    exchanges: Sequence[Exchange]
    # The row of the conversation with the key of the probes; None: there is no such conversation.
    conversation_row: int | None
    # The time at which that conversation was last written to, in seconds since the epoch.
    last_at: float = 0.0
    # The contents of the exchanges that a rule needed (`MissingContents`).
    contents: Mapping[int, StoredContent] = msgspec.field(default_factory=dict)
    # The hashes of messages that were forgotten, in any conversation, among `Probes.maybe_forgotten`.
    forgotten_hashes: frozenset[bytes] = frozenset()


class TurnChange(Struct, frozen=True):
    """The changes that a turn makes to the stored exchanges."""

    # The turn's own exchange. A new exchange has an id below 1, and the row of a new conversation is below 1, too.
    exchange: Exchange | None
    # Other stored exchanges that changed.
    others: Sequence[Exchange] = ()
    # The rows of exchanges that are continued now and have not changed otherwise: a loop of tools may have hundreds.
    continued: Sequence[int] = ()
    # The hashes of prefixes by which the exchange will be recognised.
    prefixes: Sequence[bytes] = ()
    # The hashes of the turn's messages that are off the record. If there are any, later snapshots have
    # `has_tombstones`.
    tombstone_hashes: Sequence[bytes] = ()
    # The rows of stored exchanges with indexed words that changed.
    stale: Sequence[int] = ()
    # The rows of the exchanges with memory edits that are merged into the blocks now, in this order.
    merge: Sequence[int] = ()

    @property
    def is_alone(self) -> bool:
        """True if only the turn's own exchange changes."""
        return not (
            self.others
            or self.continued
            or self.prefixes
            or self.tombstone_hashes
            or self.stale
            or self.merge
        )


class SourcedLine(Struct, frozen=True):
    """A line of a memory block."""

    # The text of the line.
    text: str
    # The rows of the exchanges that the line came from.
    sources: tuple[int, ...]


class LearnedFact(Struct, frozen=True):
    """A fact to be stored."""

    # The text of the fact.
    text: str
    # The person or thing that the fact is about.
    about: str
    # The key of the text: facts with equal keys are the same fact.
    key: str
    # The time from which on the fact is true, in seconds since the epoch; 0.0: from the write on.
    valid_from: float
    # The row of the exchange that states the fact; None: no exchange states it.
    exchange_row: int | None
    # The rows of all exchanges that the fact may quote.
    sources: Sequence[int]
    # The rows of the facts that are no longer true because of this fact.
    replaces: Sequence[int] = ()
    # True if the fact always holds for the user, so that the memory section shows it.
    standing: bool = False
    # True if no model is shown the fact. An equal fact that is stored already stays as it is.
    muted: bool = False


class EditedValue(NamedTuple):
    """A new value of a block, and the edit that made the value."""

    # The row of the block.
    block_row: int
    # The new value.
    value: str
    # The edit.
    edit: MemoryEdit


class SavedPassage(NamedTuple):
    """A passage to be stored, and the edit that adds it."""

    # The text of the passage.
    text: str
    # The edit.
    edit: MemoryEdit


class BlockMerge(Struct, frozen=True):
    """The result of pending memory edits."""

    # The values to be written, in order.
    writes: Sequence[EditedValue] = ()
    # The passages to be added.
    passages: Sequence[SavedPassage] = ()
    # The facts to be added.
    facts: Sequence[LearnedFact] = ()
    # Edits that cannot be made any more.
    dropped: Sequence[MemoryEdit] = ()


class RecallRow(NamedTuple):
    """The record of the recall of a turn that searched the memory, as it is stored."""

    # The id of the turn's request, packed (storage/sql/recalls.py).
    request: bytes
    # Packed numbers, which the store does not read.
    data: bytes


class PlainTurn(NamedTuple):
    """The plan of a plain turn: a turn that adds its exchange, and changes no other."""

    # The turn's exchange, which is new.
    exchange: Exchange
    # The `rev` of the conversation when the turn was planned.
    conversation_rev: int


class TurnWrite(Struct, frozen=True):
    """A turn to be written, in one transaction."""

    # The agent of the turn, perhaps a draft.
    agent: Agent
    # The client's id of the conversation; None: the conversation has none.
    key: str | None
    # The public id of the conversation, if it is new.
    uid: str
    # The present time, in seconds since the epoch.
    now: float
    # The plan of the turn as a plain turn; None: the turn is not plain.
    plain: PlainTurn | None
    # Returns the keys of the exchanges that `decide` needs. Both functions run in the writer's thread, and have no side
    # effects.
    probes: Callable[[], Probes]
    # Returns the changes for the exchanges that are stored at the time of the write. It is called if the turn is not
    # plain, or if its conversation was written to since the plan. Raises: MissingContents.
    decide: Callable[[CandidateExchanges], TurnChange]
    # The result of `decide` for the memory as it was when the turn was planned; None: not known.
    change: TurnChange | None = None
    # The agent's next number when the turn was planned.
    planned_next_seq: int = 1
    # The agent's `rev` when the turn was planned.
    planned_agent_rev: int = 0
    # The memory edits of this turn; the store fills in their `exchange_row`.
    edits: Sequence[MemoryEdit] = ()
    # The memory section of the path; a section with the id 0 is stored with the turn.
    section: SentSection | None = None
    # The agent's own blocks, to be made with the agent's first use.
    defaults: Sequence[Block] = ()
    # The blocks that the agent's profile shares, to be made with the agent's first use.
    shared: Sequence[Block] = ()
    # The opening, if the list has no conversation id and continues no exchange.
    opening: Opening | None = None
    # True: the client has an id that contains `uid`, so an opening without a name joins no other one.
    has_given_uid: bool = False
    # The characters of the turn's messages.
    chars: int = 0
    # Makes the record of the turn's recall, without side effects; None: no record is made.
    recall: Callable[[], RecallRow] | None = None


class CommittedTurn(Struct, frozen=True):
    """A turn as it was written."""

    # The agent as it is stored now.
    agent: Agent
    # The row of the turn's exchange.
    exchange_row: int
    # The row of the turn's conversation.
    conversation_row: int
    # True if the turn was written as planned, without `decide`.
    is_plain: bool
    # The row of the path's memory section; None: the path has none.
    section: int | None = None
    # The number of the turn's first message; 0: the turn took no new numbers.
    seq: int = 0
    # The number after the turn's last message; 0: the turn took no new numbers.
    next_seq: int = 0
    # The exchange with its content, if it is new and differs from the planned exchange.
    added: Exchange | None = None
    # The conversation that began with the turn, if nothing else changed and its path begins with no prefix.
    begun: Conversation | None = None
    # True if the turn is plain, and its path begins with a prefix.
    matches_prefix: bool = False
