"""Parameters and results of the store's transactions, as values. The records themselves are in storage/records.py."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from storage.records import (
    Agent,
    Atom,
    Block,
    BlockOp,
    Conversation,
    Exchange,
    Message,
    Numbers,
    Run,
    RunState,
    RunStep,
    SentSection,
    Summary,
)

# -- what passes between a turn and the store


class MemoryReader(Struct, frozen=True):
    """A sleeptime agent that reads a memory. turns: after its cursor, as many as were asked for at most.

    is_busy: it reads now, or is about to.
    """

    reader: int
    turns: int
    is_busy: bool


# It does not change.
NO_NOTES: dict[int, str] = {}


@dataclass(slots=True)
class PlacedNote:
    """A note on a path."""

    at: int  # how many atoms the path has before the note's message
    # Its text. As a text, one with an emoji takes four bytes a character, and its UTF-8 as well once it was sent.
    utf8: bytes
    # What whoever reads the text first has found out: its tokens, 0 before, and what it shows of memory blocks, if
    # anything.
    tokens: int = field(default=0, compare=False)
    shown: Mapping[str, str] | None = field(default=None, compare=False)


class Additions(Struct, frozen=True):
    """The gateway's texts and rounds on a path, oldest first.

    notes: each stands before its message's text. rounds: the exchanges with more of a reply than the client has,
    with their content and without notes. last: the newest exchange that has either.
    """

    notes: tuple[PlacedNote, ...] = ()
    rounds: tuple[Exchange, ...] = ()
    last: int | None = None

    def and_of(self, *exchanges: Exchange) -> Additions:
        """Returns these and those of the next exchanges of the path, with the content of those with rounds."""
        notes, rounds, last = [*self.notes], [*self.rounds], self.last
        for e in exchanges:
            at = e.offset
            for place, atoms in enumerate(e.inputs):
                if text := e.notes.get(place):
                    notes.append(PlacedNote(at, text.encode("utf-8", "surrogatepass")))
                at += len(atoms)
            if e.hidden or e.opaque:
                rounds.append(replace(e, notes=NO_NOTES))
            if e.adds:
                last = e.id
        return Additions(tuple(notes), tuple(rounds), last)


NO_ADDITIONS = Additions()


class MemorySnapshot(Struct):
    """The surroundings of a request, as one round trip reads them."""

    # epoch, next_seq, indexed_seq, rev, stamp: the agent's numbers.
    epoch: int = 0
    next_seq: int = 1
    indexed_seq: int = 0
    # Rises with whatever changes of all this without a new number.
    rev: int = 0
    stamp: int = 0
    conversation: Conversation | None = None
    # The newest with a path that is exactly the client's list up to its last assistant message, without its notes.
    exchange: Exchange | None = None
    # It is a first turn, and not the only one.
    has_rivals: bool = False
    # To its path.
    additions: Additions = msgspec.field(default_factory=lambda: NO_ADDITIONS)
    # Something is off the record.
    has_tombs: bool = False
    section: SentSection | None = None
    blocks: list[Block] = msgspec.field(default_factory=list)
    # Pending memory edits of the agent, all paths.
    ops: list[BlockOp] = msgspec.field(default_factory=list)
    # A snapshot with one of these true is not cached.
    # Something follows it already.
    is_continued: bool = False
    # The list begins like one that was made elsewhere.
    is_head: bool = False
    # Some are of a whole profile.
    shares_blocks: bool = False
    # Who reads it after the fact, where that was asked for.
    readers: list[MemoryReader] = msgspec.field(default_factory=list)

    @property
    def numbers(self) -> Numbers:
        return Numbers(self.epoch, self.next_seq, self.indexed_seq, self.stamp)


class Opening(Struct, frozen=True):
    """A first exchange of a conversation without an id, as far as it shows which lists may belong to it."""

    # When it was written.
    at: float
    begun: float
    # Its atoms.
    inputs: tuple[tuple[Atom, ...], ...]
    # How many its last message has.
    words: int | None
    # Hash of the first of them, all but the last; None: not known.
    stem: int | None


# As many of a list's questions are looked up, the last ones.
MOST_QUESTIONS = 16


class Probes(Struct, frozen=True):
    """The keys under which the exchanges that may matter to a list of messages are looked up."""

    # The client's conversation id; with one, only that conversation matters.
    key: str | None
    # Keys of replies that the list may hold.
    replies: Sequence[bytes] = ()
    # Hashes of the questions in it.
    inputs: Sequence[bytes] = ()
    # Hashes of heads and of what may be off the record.
    marks: Sequence[bytes] = ()
    # Openings that ended after this time may be the same conversation.
    since: float = 0.0
    # Hashes of messages that may have been forgotten.
    maybe_tombs: Sequence[bytes] = ()
    # How many exchanges up from the deepest one are loaded.
    recent: int | None = None
    # From which depth on they are loaded; None: all. First exchanges are always loaded.
    low: int | None = None


class StoredContent(NamedTuple):
    """The columns of an exchange that hold content, as JSON."""

    input: bytes | None = None
    shown_reply: bytes | None = None
    full: bytes | None = None


# How often rules are called with more contents than before. They ask for contents at three places at most (compared
# openings or siblings, altered replies, questions asked again), at each of them for all that they will compare there.
MAX_RULE_CALLS = 4


class Missing(Exception):
    """A rule needs the contents of these exchanges.

    The caller loads them all at once, and calls the rule again.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(f"the contents of exchanges {list(ids)} are needed")
        self.ids = ids


class Pool(Struct, frozen=True):
    """Exchanges as loaded: without content, but for the last of each conversation."""

    exchanges: Sequence[Exchange]
    # The named one, where it exists.
    conversation: int | None
    # When it last moved.
    last_at: float = 0.0
    # Of those exchanges of which rules asked for it (`Missing`).
    contents: Mapping[int, StoredContent] = msgspec.field(default_factory=dict)
    # Which of `Probes.maybe_tombs` are off the record or forgotten in any conversation; looked up once
    # something was forgotten.
    tombs: frozenset[bytes] = frozenset()


class Change(Struct, frozen=True):
    """The changes that a turn makes to the tree."""

    # Its own; a new one has an id below 1, and so has a new conversation.
    exchange: Exchange | None
    # Stored ones that changed.
    others: Sequence[Exchange] = ()
    # Those that are carried now, and have not changed otherwise: a loop of tools may have hundreds.
    continued: Sequence[int] = ()
    # heads, tombs: hashes under which it has to be recognised.
    heads: Sequence[bytes] = ()
    tombs: Sequence[bytes] = ()
    # Stored ones with changed words in the index.
    stale: Sequence[int] = ()
    # Exchanges with memory edits that enter the blocks now, in this order.
    merge: Sequence[int] = ()

    @property
    def is_alone(self) -> bool:
        """True where nothing else than the exchange changes."""
        return not (self.others or self.continued or self.heads or self.tombs or self.stale or self.merge)


class LearnedFact(Struct, frozen=True):
    """A fact to be stored."""

    text: str
    about: str
    # Facts that have the same one say the same.
    key: str
    valid_from: float
    exchange: int | None
    sources: Sequence[int]
    # Ids of those it makes untrue.
    replaces: Sequence[int] = ()


class BlockMerge(Struct, frozen=True):
    """The result of pending memory edits."""

    # (block, its new value, operation), in order.
    writes: Sequence[tuple[int, str, BlockOp]] = ()
    # (text, operation).
    passages: Sequence[tuple[str, BlockOp]] = ()
    # (fact, operation).
    facts: Sequence[tuple[LearnedFact, BlockOp]] = ()
    # Operations that cannot be done any more.
    dropped: Sequence[BlockOp] = ()


class TurnWrite(Struct, frozen=True):
    """A turn to be written, in one transaction."""

    agent: Agent
    key: str | None
    # The public name of a new conversation.
    uid: str
    now: float
    # For a plain turn, the new exchange and the `rev` of the conversation that it was planned on. If the
    # conversation has moved since, or the turn is not plain, `decide` is called with the exchanges as they
    # are by then, and returns what changes; `probes` say which exchanges. Both run in the writer's thread,
    # have no side effects, and `decide` may raise `Missing`.
    plain: tuple[Exchange, int] | None
    probes: Callable[[], Probes]
    decide: Callable[[Pool], Change]
    # What it returns if the memory is as it was seen; None: that is not known.
    change: Change | None = None
    # Its next number and `rev`.
    seen: tuple[int, int] = (1, 0)
    # Memory edits of this turn; their `exchange` is filled in.
    ops: Sequence[BlockOp] = ()
    # The memory section that the path has now; id 0: to be stored.
    section: SentSection | None = None
    # defaults, shared: blocks for an agent's first use.
    defaults: Sequence[Block] = ()
    shared: Sequence[Block] = ()
    # Of a list without an id that goes on from nothing.
    opening: Opening | None = None
    # Its characters.
    chars: int = 0


class Committed(Struct, frozen=True):
    """A turn as it was written."""

    # As it is stored.
    agent: Agent
    # exchange, conversation: row ids.
    exchange: int
    conversation: int
    # It was written as planned, without `decide`.
    is_plain: bool
    # The row of its path's memory section.
    section: int | None = None
    # seq, next_seq: the numbers of its messages go from the one up to the other; 0: it took no new ones.
    seq: int = 0
    next_seq: int = 0
    # The exchange, with its content, where it is new and not as it was planned.
    added: Exchange | None = None
    # The conversation that began with it, if nothing else has changed and no head is like its path.
    begun: Conversation | None = None
    # The path of one that is plain is like a head.
    is_head: bool = False


# -- what passes between a run and the store


class ConversationPath(Struct, frozen=True):
    """The path of a stored conversation, empty where it has not begun.

    path: what it goes on from, oldest first, with words; it begins where the window does, and ends with the tip.
    summaries: newest first.
    """

    snapshot: MemorySnapshot
    path: Sequence[Exchange] = ()
    summaries: Sequence[Summary] = ()


class StepOpen(Struct, frozen=True):
    """The beginning of a step, in one transaction."""

    agent: Agent
    key: str
    uid: str
    # Its row; None: it begins, under the public name `uid` and the client's name `key`.
    conversation: int | None
    # Of the conversation when it was read.
    rev: int
    now: float
    # What came in; its id is below 0.
    exchange: Exchange
    # The run that begins with this step; None: it goes on.
    run: Run | None = None
    # The run of the same send that ended before, which gives its otid to this one.
    replaces: int | None = None
    # The memory section of the path; id 0: to be stored.
    section: SentSection | None = None
    # defaults, shared: blocks for an agent's first use.
    defaults: Sequence[Block] = ()
    shared: Sequence[Block] = ()
    # Those of the step before; an operation's `exchange` is that step's.
    edits: BlockMerge = msgspec.field(default_factory=lambda: BlockMerge())
    # Of the blocks on which they were made, by block.
    versions: Mapping[int, int] = msgspec.field(default_factory=dict)
    # The conversation was a tree.
    adopts: bool = False
    # Exchanges of its path that the step carries.
    continues_parent: Sequence[int] = ()
    # An exchange of a process that is gone, or one that the step replaces, in its new state.
    ends: Exchange | None = None
    # What stays of what an accepted run was asked, now that its messages are in the exchange; None: it had
    # none.
    request: bytes | None = None
    # The run ends with this, and the exchange has no reply.
    end: RunEnd | None = None
    # What the run reads, from which its edits come.
    reading: ReadSpan | None = None


class StepOpened(Struct, frozen=True):
    """A step as it was begun: with its numbers."""

    agent: Agent
    exchange: Exchange
    # The conversation's now.
    rev: int
    section: SentSection | None
    # The one that began with it.
    run: Run | None


class StepEnd(Struct, frozen=True):
    """The end of a step, in one transaction."""

    agent: Agent
    # All of it.
    exchange: Exchange
    step: RunStep
    # As in `RunEnd`.
    results: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    # What has been read where the run ends well.
    reading: ReadSpan | None = None
    # Runs that its end makes due; an agent that reads already is left out.
    accepts: Sequence[RunAccept] = ()
    # Of the error that ended the run, or "".
    words: str = ""


class RunAccept(Struct, frozen=True):
    """A run that goes on without its client, to be accepted in one transaction with its request and its job."""

    # As it will be, its id 0; its agent is there. Where its conversation is 0, that is the one with the key
    # `key`, or one that begins under it with the public name `uid`.
    run: Run
    # What it is asked, JSON.
    request: bytes
    key: str = "default"
    uid: str = ""
    # Of the job with the run's uid as key and {"run": its row} as payload. "": the accepting process
    # performs it.
    kind: str = "run"
    # As in `StepOpen`.
    replaces: int | None = None
    # The memory that it reads, to which the job belongs, one of a kind at a time.
    reads: int | None = None
    # How its messages are listed, JSON, which stays as long as the run; None: nothing is asked of that.
    listing: bytes | None = None


class ReadSpan(Struct, frozen=True):
    """The part of a memory that a sleeptime agent's run reads, from `cursor` up to `upto`.

    exchanges: those that it comes from, and with them what the run writes into blocks.
    """

    memory: int
    reader: int
    cursor: int
    upto: int
    exchanges: Sequence[int] = ()


class RunEnd(Struct, frozen=True):
    """The end of a run after a step that is written already."""

    # agent, run: row ids; run 0: it begins with this, or has no row and never will.
    agent: int
    run: int
    state: RunState
    stop: str
    at: float
    # The step that it ended with; None: the step stays as it is.
    exchange: int | None = None
    # As in `RunStep`.
    waiting: Mapping[str, str] = msgspec.field(default_factory=dict)
    # Of that step's calls, messages that no step has taken in, as JSON, by their numbers among the texts of
    # its run.
    results: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    # edits, versions: as in `StepOpen`, after these results.
    edits: BlockMerge = msgspec.field(default_factory=lambda: BlockMerge())
    versions: Mapping[int, int] = msgspec.field(default_factory=dict)
    # As in `StepEnd`, and as in `StepOpen`.
    reading: ReadSpan | None = None
    # Of the error that ended the run, which quote no content.
    words: str = ""


# -- what passes between forgetting and the store


class ForgetTarget(Struct, frozen=True):
    """The part of one memory that is to be forgotten."""

    # messages, passages: by their numbers.
    messages: Sequence[int] = ()
    passages: Sequence[int] = ()
    # files, exchanges, conversation: row ids.
    files: Sequence[int] = ()
    exchanges: Sequence[int] = ()
    conversation: int | None = None
    # What is older than that.
    before: float | None = None
    # The memory with its secret, after which no trace of it is left.
    is_all: bool = False
    # What was learned and saved from it stays.
    keeps_memory: bool = False


class Extent(Struct, frozen=True):
    """The size of a target before it is forgotten. messages: how many will go; those of a whole memory are not counted.

    kept: how many of the same exchange stay. conversation: its public name, None where it is not asked for.
    """

    messages: int = 0
    kept: int = 0
    conversation: str | None = None


class Erased(Struct, frozen=True):
    """Marks of what was erased, by which notes that may quote it are found. blocks: a block or an edit is among it.

    days: the days of its messages, counted since the epoch, UTC.
    """

    days: frozenset[int]
    blocks: bool = False


class Revised(Struct, frozen=True):
    """A later value of a block that was built on something that was erased."""

    value: str
    # The value itself came from what was erased.
    is_erased: bool = False
    # The edit that made the value, if its turn stays.
    op: BlockOp | None = None
    # An undo brought back an older value that has nothing of what was erased.
    is_whole: bool = False


class Rules(Struct, frozen=True):
    """The pure functions that decide for the store what it does not know itself. It gets them when it is opened."""

    # (an exchange with its content, did another conversation open with its head, seq of the message before
    # it, seqs that are wanted or None) -> its messages that may be found.
    messages_of: Callable[[Exchange, bool, int | None, Container[int] | None], Sequence[Message]]
    # What pending operations come to on the blocks as they are now.
    merge: Callable[[Sequence[Block], Sequence[BlockOp]], BlockMerge]
    # May this note or hidden round quote what is gone?
    quotes: Callable[[str, Erased], bool]
    # The value of a block without what is gone. Its arguments: the block with its last untouched value, and
    # the values it had since, oldest first.
    rebuild: Callable[[Block, Sequence[Revised]], str]
    # The tools that an exchange with all its content has called, by name, those of hidden rounds too.
    tools_used: Callable[[Exchange], Sequence[str]]
    # (a step with results, the step with their calls) without what they may quote.
    without_found: Callable[[Exchange, Exchange, Erased], Exchange]
    # Returns whether an exchange, with its content, has calls without results.
    leaves_calls: Callable[[Exchange], bool]


# -- what passes between export, import and the store


class TransferRecord(Struct, frozen=True):
    """A record of an export: values without database ids, exchanges by their numbers. exchange: with its content."""

    values: dict[str, Any]
    exchange: Exchange | None = None


# -- what passes between who reads a memory after the fact and the store


class Unread(Struct, frozen=True):
    """The next messages that are settled and that a reader has not read."""

    # With its present numbers.
    agent: Agent
    # Up to where it has come.
    cursor: int
    # Up to where `messages`, oldest first, go.
    upto: int
    messages: Sequence[Message]
    # The tools that were called in an exchange.
    used: Mapping[int, Sequence[str]] = msgspec.field(default_factory=dict)
    # There is more that is settled.
    is_more: bool = False
    # What follows has to stand its time first.
    is_waiting: bool = False


class Learned(Struct, frozen=True):
    """The result of learning. writes: (block, its new value, exchanges it came from); a block with id 0 is to be made.

    dropped: how many edits made no sense.
    """

    writes: Sequence[tuple[Block, str, Sequence[int]]] = ()
    facts: Sequence[LearnedFact] = ()
    dropped: int = 0


# -- what passes between embedding and the store


class Unembedded(Struct, frozen=True):
    """The next messages of a memory to be embedded."""

    # With its present numbers.
    agent: Agent
    model: str
    # Up to where all are embedded.
    cursor: int
    # Up to where `messages`, those without a vector, go.
    upto: int
    # Changes when anything of this does.
    stamp: int
    messages: Sequence[Message] = ()
    # Nothing of this memory is embedded by this model, and that has to be written first.
    is_new: bool = False
