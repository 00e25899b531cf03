"""The records of a memory, as frozen values. Times are seconds since the epoch; JSON is bytes as it was written.

`Exchange` is the one record of the conversation: what the client sent since the last reply, and the reply to it.
Exchanges form trees; a conversation owns its trees. Atoms are keyed hashes (gateway/core/conversation/canonical.py): a
record without its content can still be recognised, and holds no text.

Runs, jobs, definitions, files and keys have modules of their own (`*_records.py`, `key_record.py`).

In the whole store a name such as `agent` or `run` stands for a record where its type is the record's, and for the id of
the record's row where it is an `int`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The hash of a message or a part of it: one byte for its kind, and a keyed digest.
Atom = bytes
# The kinds of atoms: of a user's message, a tool's result, an assistant's text and an assistant's call.
USER_ATOM = b"u"
RESULT_ATOM = b"t"
TEXT_ATOM = b"a"
CALL_ATOM = b"c"
# PostgreSQL indexes no row above 2,704 bytes; an atom has 12.
_MAX_KEY_ATOMS = 128

# The index of the reply among the messages of an exchange, as in `Exchange.redactions`.
REPLY = -1
# The project of requests and keys that name no project.
DEFAULT_PROJECT = "default"
# The client's id of an agent's own conversation, its message list.
DEFAULT_CONVERSATION = "default"
# The profile of memories of the agents API. The settings can declare no profile of this name.
API_PROFILE = "@"
# The origin of block values that the agents API writes.
API_ORIGIN = "api"
# The prefix of a memory's subject while an import into the memory is under way, or after the import broke off.
IMPORTING_PREFIX = "importing:"
# The readers of a memory that have no row: the built-in learner, and the rule that learns where there is no background
# model. Any other reader is a sleeptime agent, by the row of its memory.
LEARNER = 0
RULE = -1
# The prefix of the client's ids of the conversations in which a sleeptime agent reads.
READING_PREFIX = "reading/"


class Scope(NamedTuple):
    """The owner of a memory. Nothing is ever read or written outside of a scope. A key of tables, hence a tuple."""

    # The project of the callers.
    project: str
    # The profile in the settings; `@`: the memory is one of the agents API.
    profile: str
    # `user:<id>` for a person, `conversation:<id>` for an anonymous named conversation, and with a uid `agent:`,
    # `archive:` or `folder:` for a memory of the agents API.
    subject: str

    @property
    def is_person(self) -> bool:
        """True for the memory of a person; facts are learned from its conversations."""
        return self.subject.startswith("user:")

    @property
    def spans_conversations(self) -> bool:
        """True for a memory that goes beyond one conversation."""
        return not self.subject.startswith("conversation:")

    def is_open_to(self, user: str | None) -> bool:
        """Returns whether a request that knows the id of an entry may read the entry in this memory.

        user: the user that the request names, or None: most clients cannot name one.
        """
        # An agent, an archive or a folder of the agents API has one memory, whoever speaks.
        is_persons = self.is_person or not self.spans_conversations
        return user is None or not is_persons or self.subject == f"user:{user}"


class Agent(Struct, frozen=True):
    """A memory."""

    # The memory's row; 0: the agent is a draft, which the memory's first write stores.
    id: int
    # The public id of the memory.
    uid: str
    # The project, the profile and the subject of the memory.
    scope: Scope
    # The key of the memory's hashes.
    secret: bytes
    # A number that rises when something is forgotten, and when the memory is paused or resumed. It begins with 0, or in
    # a shared database with a random number (`storage/sql/epochs.py`).
    epoch: int
    # The last number of a message that the search index knows.
    indexed_seq: int = 0
    # The next number that the memory gives out; messages, passages and facts are numbered in one order.
    next_seq: int = 1
    # The time at which the memory began, in seconds since the epoch.
    created: float = 0.0
    # The time at which the memory was paused, in seconds since the epoch: since then nothing is remembered or recalled.
    # None: the memory is not paused.
    paused_at: float | None = None

    @property
    def is_stored(self) -> bool:
        """False for a draft."""
        return self.id != 0


class MemoryVersion(NamedTuple):
    """The numbers of a memory of which each change of a snapshot raises at least one."""

    # The number that rises with each forgetting, as `Agent.epoch`.
    epoch: int
    # The number that rises with each other change, as `AgentNumbers.rev`.
    rev: int
    # The next number that the memory gives out.
    next_seq: int


class AgentNumbers(NamedTuple):
    """The numbers of an agent's row, by which a process checks its cache of the memory."""

    # The number that rises with each forgetting, as `Agent.epoch`.
    epoch: int
    # The next number that the memory gives out.
    next_seq: int
    # The last number of a message that the search index knows.
    indexed_seq: int
    # A number that rises with each change of a `MemorySnapshot` that does not raise the next number.
    rev: int
    # A number that rises with each change of searchable texts that does not raise the next number.
    stamp: int

    @property
    def version(self) -> MemoryVersion:
        """The version of the memory's snapshots."""
        return MemoryVersion(self.epoch, self.rev, self.next_seq)


class Conversation(Struct, frozen=True):
    """A conversation of a memory, without its exchanges."""

    # The row of the conversation.
    id: int
    # The public id of the conversation.
    uid: str
    # The client's own id, unique within the agent; None: the conversation is found by its messages.
    key: str | None
    # A number that rises with every write to the conversation. (`AgentNumbers.rev` is another number.)
    rev: int = 0
    # 0 for a client's conversation, which is a tree; otherwise the row of the last exchange of a stored conversation,
    # or -1 while the conversation is empty. (The column is still called `tip`, so that gateways of the version before
    # can serve the same database.)
    last_exchange: int = 0

    @property
    def is_empty(self) -> bool:
        """True if the conversation is stored and has no exchange yet."""
        return self.last_exchange == -1

    @property
    def has_stored_path(self) -> bool:
        """True if the conversation is stored and has an exchange: its path ends with `last_exchange`."""
        return self.last_exchange > 0

    @property
    def name(self) -> str:
        """The conversation's name for sends and look-ups: `default` for an agent's own conversation, else its uid."""
        return DEFAULT_CONVERSATION if self.key == DEFAULT_CONVERSATION else self.uid


def make_message_key(atoms: Sequence[Atom]) -> bytes:
    """Returns the key under which the index has a message: all atoms, or the first atom and a digest of too many."""
    joined = b"".join(atoms)
    return joined if len(atoms) <= _MAX_KEY_ATOMS else atoms[0] + blake2b(joined, digest_size=16).digest()


class ExchangeState(StrEnum):
    """The state of an exchange."""

    # The reply has not ended: in append mode the user's message is written before the model is asked.
    OPEN = "open"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    # The exchange was off the record, or the memory read only: hashes alone are stored.
    OFF = "off"
    # A tombstone like OFF, and never active.
    FORGOTTEN = "forgotten"


class MarkKind(StrEnum):
    """The purpose of a mark of an exchange. Statements that read marks name these kinds as text."""

    # A hash of the messages, made elsewhere, with which an opening begins.
    PREFIX = "head"
    # A hash by which a message of a tombstone is recognised.
    TOMBSTONE = "tomb"
    # The search index has an older form of the exchange.
    STALE = "stale"
    # The key of a fact that is not learned from the exchange again: it was forgotten alone, or stayed when a source of
    # it was forgotten.
    UNLEARNED = "unlearned"
    # A forgetting is under way: data that came from the exchange is erased as well (ERASED), or stays (RESET).
    ERASED = "erased"
    RESET = "reset"
    # A forgetting is under way: instead of an exchange the mark has the day of a passage or a fact that was erased.
    DAY = "day"
    # A forgetting is under way: an edit or a block was erased.
    BLOCKS = "blocks"
    # The digest of the state of a memory that was moved, and the database that it came from.
    MOVED = "moved"
    MOVED_FROM = "moved from"


# The tokens of a window without a bound. As `EvictedPart.context`: the part was not evicted because of its tokens.
ANY_WINDOW = 2**31 - 1


class EvictedPart(NamedTuple):
    """The beginning of a path that no longer fits a window."""

    # The depth of the exchange in which the window begins, or a lower depth if that exchange is not known.
    depth: int
    # The number of atoms that were evicted, from the beginning of the path on.
    offset: int
    # The tokens of the evicted part.
    tokens: int
    # The tokens of the window that the part no longer fits; a larger window may have room for more.
    context: int

    def is_out_of(self, context: int | None) -> bool:
        """Returns whether the part stays out of a window of so many tokens as well.

        context: the tokens of the window; None: unknown, so that only a part that was evicted for another reason stays
            out.
        """
        return (ANY_WINDOW if context is None else context) <= self.context


class Exchange(Struct, frozen=True):
    """One request of a client and the reply to it. A turn with calls of the client's tools has several exchanges."""

    # The row of the exchange; 0 or less: the exchange is not stored yet.
    id: int
    # The row of the exchange's conversation.
    conversation_row: int
    # The row of the previous exchange on the path; None: the exchange is an opening.
    parent: int | None
    # The number of earlier exchanges on the path.
    depth: int
    # The number of atoms on the path before `inputs`.
    offset: int
    # The atoms of each message that the client sent since the parent's reply (system messages excluded).
    inputs: tuple[tuple[Atom, ...], ...]
    # The digest of the images and sounds of each of `inputs`; b"": the message has none.
    media: tuple[bytes, ...]
    # The atoms of the reply as the client has it; None: the request was cancelled before the client had any.
    reply: tuple[Atom, ...] | None
    # The hash of all atoms of the path up to the reply, computed from the parent's hash.
    path_hash: bytes
    # The hash under which a stored reply is looked up: the hash of its text without white space, or of its calls if it
    # has no text.
    reply_key: bytes | None
    # The time at which the request came, in seconds since the epoch.
    begun: float
    # When a finished request last began with this exchange, repeated it or continued it. (The time is written late:
    # gateway/core/conversation/tree.py.)
    touched: float
    # The time at which a finished exchange ended, in seconds since the epoch; None: the exchange is not finished. (From
    # here on fields have defaults, which suit a plain turn: its record is made by passing the fields above by
    # position.)
    ended: float | None = None
    # The characters of the reply's text, without white space.
    size: int = 0
    # The number of messages on the whole path, the reply included.
    length: int = 0
    # True if the messages of the exchange are shown and recalled.
    active: bool = False
    # The number of the first of `inputs` among the numbers of the memory.
    seq: int = 0
    # Column `run`: the number from which on all of the agent's numbers, up to the reply's, belong to this path without
    # a gap.
    gapless_from: int = 0
    # The nearest strict ancestor that has notes or hidden rounds, so that a path's additions are walked directly.
    prior: int | None = None
    # The texts of the notes by the index of their input message; "": a search found nothing.
    notes: dict[int, str] = field(default_factory=dict)
    # The row of the memory section that was sent with the path.
    section: int | None = None
    # True if memory edits were made in this exchange.
    edits: bool = False
    # The part of the path that this request left out.
    evicted: EvictedPart | None = None
    # The client's messages, as a JSON array; None in a tombstone.
    input: bytes | None = None
    # The reply as the client has it, as a JSON message; None in a tombstone.
    shown_reply: bytes | None = None
    # Column `full`: all messages of the reply, {"messages": [...], "gateway_calls": [call ids], "step": true in an
    # agent's step}; None: the reply is `shown_reply` alone.
    full_reply: bytes | None = None
    # True if there is a `full_reply`, also in a record that is loaded without its content.
    has_full_reply: bool = False
    # True if the reply has fields that only its provider reads.
    opaque: bool = False
    # The upstream and the model that made the reply.
    model: str = ""
    # The time at which a cancelled request was cut, in seconds since the epoch; None: the request was not cancelled.
    stopped: float | None = None
    # The number of messages of a first exchange that were made elsewhere: column `head`, mark `head`.
    prefix_length: int = 0
    # The indices of messages that were off the record or are forgotten; REPLY stands for the reply. The functions that
    # decide on redactions are in docs/architecture.md ("Where is a redaction decided").
    redactions: frozenset[int] = frozenset()
    # The state of the exchange.
    state: ExchangeState = ExchangeState.FINISHED
    # True if another exchange has taken the place of this one.
    superseded: bool = False
    # True if a later request with a new user message continued the exchange.
    continued: bool = False
    # The reason for which the exchange's memory edits were merged into the blocks: "carried" (the exchange was
    # continued) or "idle" (no turn came for a time); "": the edits were not merged.
    merged: str = ""

    @property
    def is_stored(self) -> bool:
        """True if the id is the row of the exchange."""
        return self.id > 0

    @property
    def is_forgotten(self) -> bool:
        """True for the tombstone of a forgotten exchange."""
        return self.state is ExchangeState.FORGOTTEN

    @property
    def reply_seq(self) -> int:
        """The number of the reply, after the numbers of the input messages; an exchange without a reply has it, too."""
        return self.seq + len(self.inputs)

    @property
    def next_seq(self) -> int:
        """The number after the numbers of this exchange."""
        return self.seq + len(self.inputs) + 1

    @property
    def last_note(self) -> str | None:
        """The last note that is not empty; None: the exchange has no such note."""
        return next((note for _, note in sorted(self.notes.items(), reverse=True) if note), None)

    @property
    def content_bytes(self) -> int:
        """The size of the content that the record was loaded with."""
        return sum(len(part or b"") for part in (self.input, self.shown_reply, self.full_reply))

    @property
    def has_additions(self) -> bool:
        """True if the exchange has additions that are sent again: a note, hidden rounds, a provider's own fields."""
        return self.has_full_reply or self.opaque or any(self.notes.values())

    @property
    def ends_with_user(self) -> bool:
        """True for an exchange of depth 2 or more that ends with a user message.

        The row of such an exchange shows that its parent was continued, so the parent's row needs no mark. An opening
        is looked up by its mark, so its row is marked when an exchange of depth 1 continues it.
        """
        last = self.inputs[-1] if self.inputs else ()
        return self.depth > 1 and bool(last) and last[0][:1] == USER_ATOM

    @property
    def has_user_message(self) -> bool:
        """True if the exchange brings a message of the user, with which a turn begins."""
        return any(atoms[0][:1] == USER_ATOM for atoms in self.inputs if atoms)

    @property
    def continues_parent(self) -> bool:
        """True if the exchange has a new user message and its parent's row has to be marked as continued."""
        if self.parent is None or self.ends_with_user:
            return False
        return self.has_user_message


def place_exchange(exchange: Exchange, exchange_row: int, seq: int) -> Exchange:
    """Returns a new exchange with the row and the number under which it was stored.

    If the number is not the planned number, other exchanges have taken the numbers between the path and this exchange.
    """
    gapless_from = exchange.gapless_from if exchange.seq == seq else seq
    return replace(exchange, id=exchange_row, seq=seq, gapless_from=gapless_from)


def make_tombstone(exchange: Exchange) -> Exchange:
    """Returns the tombstone of an exchange: its position and its hashes, without content and without quotations."""
    return replace(
        exchange, state=ExchangeState.FORGOTTEN, active=False, edits=False, opaque=False, notes={}, section=None,
        size=0, evicted=None, input=None, shown_reply=None, full_reply=None, has_full_reply=False,
    )  # fmt: skip


class Block(Struct, frozen=True, eq=False):
    """A labelled piece of memory that stands in the system prompt."""

    # The row of the block; 0: the block is not stored yet.
    id: int
    # The label, which is unique among the blocks that an agent sees.
    label: str
    # The purpose of the block, as models read it.
    description: str
    # The text of the block.
    value: str
    # The most characters that the value may have: every write is checked.
    limit: int
    # True if models and agents cannot change the value.
    read_only: bool = False
    # The number of the present value; each write raises it by one.
    version: int = 1
    # The block's public id, which follows from the id; "": the block is not stored, or was read for a turn.
    uid: str = ""

    def __eq__(self, other: object) -> bool:
        """Compares all fields but the uid, which only some reads fill in."""
        return isinstance(other, Block) and _get_block_fields(self) == _get_block_fields(other)


class Revision(Struct, frozen=True):
    """A value that a block had."""

    # The number of the version.
    version: int
    # The version that an undo brought back; None: the value was written otherwise.
    restores: int | None
    # The time at which the value was written, in seconds since the epoch.
    at: float
    # The writer of the value: `default`, `tool:<call>`, `undo`, `forget`, or a name that the writer chose; `-`: the
    # value was forgotten.
    origin: str
    # The row of the exchange in which the value was written; None: it was written in no exchange.
    exchange_row: int | None
    # The rows of the exchanges that the value came from.
    sources: tuple[int, ...]
    # The text of the value.
    value: str


def list_lost_lines(earlier: str, value: str) -> list[str]:
    """Returns the lines of an earlier value of a block that its present value does not have."""
    lines = frozenset(value.split("\n"))
    return [line for line in earlier.split("\n") if line.strip() and line not in lines]


# The state of an import. A preview is not stored; an import that stopped goes on when its file is sent again.
ImportStatus = Literal["preview", "running", "done", "stopped", "failed", "undone"]


class EditState(StrEnum):
    """The state of a memory edit."""

    # The turn of the edit is not confirmed.
    PENDING = "pending"
    MERGED = "merged"
    # The edit was impossible when the turn was confirmed.
    DROPPED = "dropped"


class MemoryEdit(Struct, frozen=True):
    """A memory edit of a turn, as an operation (not a value), which is merged when the turn is confirmed."""

    # The row of the edit; 0: the edit is not stored yet.
    id: int
    # The row of the exchange with the call that made the edit.
    exchange_row: int
    # The id of the call.
    call_id: str
    # The kind of the edit: `insert`, `replace` and others that change a block; `archival_insert` and `remember_fact`,
    # which make a passage and a fact.
    op: str
    # The label of the block; "": the edit changes no block.
    label: str
    # The tool call's own JSON.
    arguments: bytes
    # The state of the edit.
    state: EditState = EditState.PENDING
    # The time of the edit, in seconds since the epoch.
    at: float = 0.0
    # The digest of the whole value that a pending edit overwrites, as the model saw that value; None for other edits.
    seen: int | None = None


class SectionRecord(TypedDict, total=False):
    """The parts of which a memory section was rendered. They are stored with its text, to notice later changes."""

    # The digests of the values of blocks that the path has been shown, by labels.
    blocks: Mapping[str, str]
    # The tools by the names under which they were offered; None: unknown.
    tools: dict[str, str] | None
    # The memory's epoch; -1: the section was emptied, so it is rendered again.
    epoch: int
    # The mark of the memory's notes.
    mark: str
    # The id of the summary that stands after the section.
    summary: int
    # The digest of the agent's definition.
    made: str
    # The numbers of the standing facts that a block showed.
    standing: list[int]
    # True if an earlier request of the path had another prefix.
    prefix_changed: bool


class SentSection(Struct, frozen=True):
    """The memory section of a system prompt as it was sent."""

    # The row of the section; 0: the section is not stored yet.
    id: int
    # The text of the section.
    text: str
    # The parts of which the section was rendered.
    known: SectionRecord

    @property
    def is_stored(self) -> bool:
        """True if the id is the row of the section."""
        return self.id != 0


class Summary(Struct, frozen=True):
    """A summary of the path up to an exchange, including the exchange."""

    # The row of the summary; 0: the summary is not stored yet.
    id: int
    # The last summarised exchange, without content. Forgetting any part of the path erases the summary.
    exchange: Exchange
    # The text of the summary.
    text: str
    # The tokens of the text.
    tokens: int
    # The time at which the summary was written, in seconds since the epoch.
    at: float
    # The model that wrote the summary.
    model: str


class Passage(Struct, frozen=True):
    """An archival memory."""

    # The row of the passage.
    id: int
    # The passage's number in the agent's one order.
    seq: int
    # The text of the passage.
    text: str
    # The time at which the passage was saved, in seconds since the epoch.
    at: float
    # The rows of the exchanges that the passage came from; empty as well if they were not read.
    sources: tuple[int, ...] = ()
    # The row of the file that the passage is a part of; None: the passage is part of no file.
    file: int | None = None
    # The tags of the passage.
    tags: tuple[str, ...] = ()
    # A program's metadata, which is not searched.
    metadata: dict[str, Any] = field(default_factory=dict)


# The `Message.kind` of a fact that is muted.
MUTED = "muted"


class Message(Struct, frozen=True, eq=False):
    """An active message, as recall and `memory show` read it."""

    # The message's number in the agent's one order.
    seq: int
    # The row of the message's exchange.
    exchange_row: int
    # The role of the author, such as user or assistant.
    role: str
    # The text of the message.
    text: str
    # The time of the message, in seconds since the epoch.
    at: float
    # The row of the message's conversation.
    conversation_row: int
    # The name of the speaker in the message; None: the message names no speaker.
    speaker: str | None = None
    # The atoms of the message; empty as well if they were not read.
    atoms: tuple[Atom, ...] = ()
    # The kind of text: message, passage, fact, or muted (a fact that is not shown).
    kind: str = "message"
    # The number of the previous message of the conversation; None: there is none, or it was not read.
    previous: int | None = None
    # The rows of the exchanges that a fact was learned from.
    sources: tuple[int, ...] = ()
    # The tags of a passage; empty as well if they were not read.
    tags: tuple[str, ...] = ()
    # The text and its `line`, once the line was read; a copy with another text ignores the pair.
    _line: tuple[str, str] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and _get_message_fields(self) == _get_message_fields(other)

    @property
    def line(self) -> str:
        """The text on one line, with single spaces."""
        if self._line is not None and self._line[0] is self.text:
            return self._line[1]
        line = " ".join(self.text.split())
        # Most texts are on one line already: then both share one string.
        line = self.text if line == self.text else line
        force_setattr(self, "_line", (self.text, line))
        return line


# The origin of facts that were imported from another application.
IMPORT = "import"


class Fact(Struct, frozen=True):
    """A learned fact."""

    # The row of the fact.
    id: int
    # The fact's number in the agent's one order.
    seq: int
    # The text of the fact.
    text: str
    # The person or thing that the fact is about.
    about: str
    # The time at which the fact was learned, in seconds since the epoch.
    at: float
    # The time of the message that states the fact, in seconds since the epoch.
    valid_from: float
    # The row of that message's exchange; None: no message states the fact.
    exchange_row: int | None = None
    # The rows of all exchanges that the fact may quote.
    sources: tuple[int, ...] = ()
    # The time at which the fact stopped being true, in seconds since the epoch; None: the fact is true.
    ended_at: float | None = None
    # The number of the fact that is true instead; None: no fact is true instead.
    successor: int | None = None
    # The source of the fact: learned, model, operator, person or import.
    origin: str = "learned"
    # True if the fact is left out of notes, search tools and summaries.
    muted: bool = False
    # True if the fact always holds for the user, so that the memory section shows it.
    standing: bool = False
    # True if the fact was a correction that was undone: the next fact repeats the text that the correction replaced.
    taken_back: bool = False


class RememberedFact(NamedTuple):
    """The fact that a memory has for a text."""

    # The fact, with its number.
    fact: Fact
    # True if the fact was added now; False if an equal fact was true before.
    is_new: bool


# The origins of facts and of values of blocks that were written by hand: by an operator, or by the person.
MANUAL_ORIGINS = ("operator", "person")


class StandingFact(Struct, frozen=True):
    """A standing fact that is true and not muted, as the memory section shows it."""

    # The fact's number in the agent's one order.
    seq: int
    # The text of the fact.
    text: str
    # The time at which the fact was stated, in seconds since the epoch.
    at: float
    # True if an operator or the person has written the fact. (A learned fact that is ticked does not count.)
    is_manual: bool = False


class Vector(Struct, frozen=True):
    """The vector of a text."""

    # The embedder that made the vector; vectors of different models cannot be compared.
    model: str
    # Float32, little endian, of length 1.
    data: bytes
    # The mean similarity of the text to texts that have nothing to do with it.
    baseline: float = 0.0
    # The standard deviation of that similarity; 0: not known.
    spread: float = 0.0


class VectorSimilarities(Struct, frozen=True):
    """The vectors of an agent's messages, compared with the query's (storage/search/vector_blobs.py)."""

    # The numbers of the messages.
    seqs: NDArray[np.int64]
    # The similarity of each message to the query, in the embedder's measure: the nearer, the greater.
    similarity: NDArray[np.float64]
    # The standard deviations by which each similarity is above a mean: that of texts which have nothing to do with the
    # query, or of all messages that have a vector. The higher mean counts, and the larger deviation. Zeros where such
    # texts are not known.
    beyond: NDArray[np.float64]

    def list_similarities(self, seqs: Collection[int]) -> dict[int, float]:
        """Returns the similarity of some messages by number; those without a vector are left out."""
        import numpy as np

        selected = np.isin(self.seqs, [*seqs])
        return dict(zip(self.seqs[selected].tolist(), self.similarity[selected].tolist(), strict=True))


# The fields by which blocks, and messages, are compared.
_get_block_fields = attrgetter(*(name for name in Block.__struct_fields__ if name != "uid"))
_get_message_fields = attrgetter(*(name for name in Message.__struct_fields__ if name != "_line"))
