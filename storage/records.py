"""What a store keeps, as frozen values. Times are seconds since the epoch; JSON is bytes as it was written.

`Exchange` is the one record of the conversation: what the client sent since our last reply, and our reply.
Exchanges form trees; a conversation owns its trees. Atoms are keyed hashes
(see gateway/core/conversation/canonical.py):
a record without its content can still be recognised, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from storage.value import frozen

__all__ = [
    "Agent",
    "Ancestor",
    "Atom",
    "Block",
    "BlockMerge",
    "BlockOp",
    "Change",
    "Committed",
    "Conversation",
    "Erased",
    "Exchange",
    "Extent",
    "Fact",
    "ForgetRules",
    "ForgetTarget",
    "Job",
    "JobState",
    "Key",
    "Learned",
    "LearnedFact",
    "Look",
    "Message",
    "Passage",
    "Pool",
    "Probes",
    "Revised",
    "Revision",
    "Scope",
    "Snapshot",
    "State",
    "Step",
    "Summary",
    "TransferRecord",
    "TurnWrite",
    "Unembedded",
    "Unlearned",
    "Vector",
]

Atom = bytes  # one kind byte (u, t, a, c) and a keyed digest


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose memory: nothing is ever read or written outside of it.

    subject: `user:<id>` for a person, `conversation:<id>` for an anonymous named conversation.
    """

    project: str
    profile: str
    subject: str

    @property
    def is_person(self) -> bool:
        return self.subject.startswith("user:")


@frozen
class Agent:
    """One memory. secret keys its hashes; epoch rises when something is forgotten."""

    id: int
    uid: str
    scope: Scope
    secret: bytes
    epoch: int
    indexed_seq: int = 0
    next_seq: int = 1
    created: float = 0.0


@frozen
class Conversation:
    """key: the client's own id, unique within the agent; None for one found from its messages."""

    id: int
    uid: str
    key: str | None
    rev: int = 0
    last_at: float = 0.0


class State(StrEnum):
    OPEN = "open"  # append mode and agents: the user's message is written before the model is asked
    FINISHED = "finished"
    CANCELLED = "cancelled"
    OFF = "off"  # off the record, or read only: hashes alone
    FORGOTTEN = "forgotten"  # a tombstone like OFF, and never standing


class Evicted(NamedTuple):
    """What no longer fits a window: the first `offset` atoms of a path, all of it above `depth`, some `tokens`.

    context: tokens of the window for which that is so; a larger one may have room for more.
    """

    depth: int
    offset: int
    tokens: int
    context: int


@frozen
class Exchange:
    """One turn's request and reply.

    inputs: atoms, message by message, of what the client sent since the parent's reply (system messages excluded).
    media: for each of these messages the digest of its images and sounds, b"" where it has none.
    reply: atoms of our reply as the client has it; None while it was never had (cancelled).
    run: the path's messages from this number up to the reply's are all the agent's numbers there are in between.
    offset: how many atoms the path has in front of the inputs. length: messages of the whole path, its reply included.
    path: hash of all atoms up to and including the reply, going on from the parent's.
    reply_key: hash under which a reply of ours is looked up (its text without white space, else its calls).
    head: of a first exchange, how many of its messages were made elsewhere.
    hush: indices of input messages that were off the record when they were said, or were forgotten; -1: the reply was.
    touched: when a finished request last began here, repeated this or (lazily, see core) carried it.
    stopped: when a cancelled request was cut; ended: when a finished one ended.
    input, said: JSON array of messages, JSON message; None in a tombstone.
    full: {"messages": [...], "ours": [call ids]}, only where it differs from `said` (hidden rounds).
    notes: input message index -> note text ("" means: looked, found nothing).
    prior: the nearest strict ancestor that has notes or hidden rounds, so that a path's additions are walked directly.
    edits: whether block operations hang on this exchange; merged: why they entered the blocks ("carried", "idle").
    """

    id: int
    conversation: int
    parent: int | None
    depth: int
    offset: int
    inputs: tuple[tuple[Atom, ...], ...]
    media: tuple[bytes, ...]
    reply: tuple[Atom, ...] | None
    path: bytes
    reply_key: bytes | None
    begun: float
    touched: float
    ended: float | None = None
    stopped: float | None = None
    size: int = 0
    length: int = 0
    head: int = 0
    hush: frozenset[int] = frozenset()
    state: State = State.FINISHED
    superseded: bool = False
    carried: bool = False
    standing: bool = False
    seq: int = 0
    run: int = 0
    input: bytes | None = None
    said: bytes | None = None
    full: bytes | None = None
    hidden: bool = False  # whether `full` is there, for a record loaded without its content
    opaque: bool = False  # whether the reply has fields that only its provider reads
    model: str = ""  # upstream and model that made the reply
    notes: dict[int, str] = field(default_factory=dict)
    prior: int | None = None
    snapshot: int | None = None
    edits: bool = False
    merged: str = ""
    evicted: Evicted | None = None  # what this request left out in front of its path


@frozen
class Block:
    """A labelled piece of memory that stands in the system prompt. limit: characters, enforced."""

    id: int
    label: str
    description: str
    value: str
    limit: int
    read_only: bool = False
    version: int = 1


@frozen
class Revision:
    """One value a block had.

    restores: the version that an undo brought back. origin: who wrote it (`default`, `tool:<call>`, `undo`, `forget`,
    or as its writer calls itself; `-`: it was forgotten). sources: exchanges it came from.
    """

    version: int
    restores: int | None
    at: float
    origin: str
    exchange: int | None
    sources: tuple[int, ...]
    value: str


@frozen
class BlockOp:
    """One memory edit of a turn, as an operation (not a value): merged when the turn is confirmed.

    op: insert | replace | rethink, or archival_insert (which becomes a passage).
    arguments: the tool call's own JSON. state: pending | merged | dropped.
    """

    id: int
    exchange: int
    call_id: str
    op: str
    label: str
    arguments: bytes
    state: str = "pending"
    at: float = 0.0


@frozen
class Snapshot:
    """The memory section of a system prompt as it was sent, and what the path knows since.

    known: {"blocks": {label: digest of the value known here}, "tools": {offered name: tool}, "epoch": n}.
    id: 0 for one that is not stored yet.
    """

    id: int
    text: str
    known: dict[str, Any]


@frozen
class Summary:
    """What was said on the path up to an exchange, that one included, told in short. tokens: of the text.

    exchange: without its content. What is forgotten of the path takes it along.
    """

    id: int
    exchange: Exchange
    text: str
    tokens: int
    at: float
    model: str


@frozen
class Passage:
    """One archival memory. sources: exchanges it came from, where they were asked for."""

    id: int
    seq: int
    text: str
    at: float
    sources: tuple[int, ...] = ()


@frozen
class Message:
    """One standing message, as recall and `memory show` read it.

    seq: public order within the agent. previous: seq of the message before it in its conversation.
    """

    seq: int
    exchange: int
    role: str
    text: str
    at: float
    conversation: int
    speaker: str | None = None
    atoms: tuple[Atom, ...] = ()
    source: str = "message"  # message | passage | fact
    previous: int | None = None
    origins: tuple[int, ...] = ()  # of a fact: the exchanges it was learned from


@frozen
class Fact:
    """Something that was learned. at: when; valid_from: when it was said.

    exchange: where it was said; sources: all exchanges that it may quote. ended_at: since when it is no longer true;
    successor: number of the fact that says what is true instead.
    """

    id: int
    seq: int
    text: str
    about: str
    at: float
    valid_from: float
    exchange: int | None = None
    sources: tuple[int, ...] = ()
    ended_at: float | None = None
    successor: int | None = None


@frozen
class Key:
    """A gateway key. Only its SHA-256 is kept; `prefix` is what `keys list` shows."""

    id: int
    project: str
    name: str
    prefix: str
    created: float
    revoked: float | None = None


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"  # it failed and will be tried again; until then nobody else runs in its lane
    DEAD = "dead"  # it failed for good; a finished one is not there any more


@frozen
class Job:
    """Work beside the conversations that must not be lost.

    agent: whose memory it is about; 0: nobody's. One job of a kind runs at a time for each agent.
    key: two that wait under the same one are one. payload: ids and numbers, never text of messages.
    epoch: the agent's when it was made; on another it commits nothing.
    attempt: rises with every claim and fences what is committed; tries: those that count towards the dead letter.
    error: why the last attempt failed, without contents.
    """

    id: int
    kind: str
    agent: int
    key: str
    payload: bytes
    epoch: int
    state: JobState
    attempt: int
    tries: int
    due: float
    created: float
    error: str | None = None


@frozen
class Step:
    """That a step of a job was performed. size: bytes of its result."""

    job: int
    name: str
    at: float
    size: int


# -- what passes between a turn and the store


@dataclass(slots=True)
class Look:
    """What one round trip tells of a request's surroundings.

    exchange: the newest whose path is exactly the client's list up to its last assistant message.
    is_continued: something follows it already. has_rivals: it is a first turn, and not the only one.
    additions: exchanges on its path that added something of ours, with content, newest first.
    is_head: the list begins like one that was made elsewhere. has_tombs: something is off the record.
    ops: pending memory edits of the agent, all paths.
    """

    epoch: int = 0
    next_seq: int = 1
    indexed_seq: int = 0
    conversation: Conversation | None = None
    exchange: Exchange | None = None
    is_continued: bool = False
    has_rivals: bool = False
    additions: list[Exchange] = field(default_factory=list)
    is_head: bool = False
    has_tombs: bool = False
    snapshot: Snapshot | None = None
    blocks: list[Block] = field(default_factory=list)
    ops: list[BlockOp] = field(default_factory=list)


@frozen
class Probes:
    """Under what the exchanges that may matter to a list are looked up.

    key: the client's conversation id; with one only that conversation matters. replies: keys of replies that the list
    may hold; inputs: hashes of what it asked; marks: hashes of heads and of what may be off the record; since:
    openings touched later than that may be the same chat. told: hashes of messages that may have been forgotten.
    reach: how far up from the deepest exchange of a conversation it is loaded, or low: from which depth on; None: all.
    First exchanges are loaded always.
    """

    key: str | None
    replies: Sequence[bytes] = ()
    inputs: Sequence[bytes] = ()
    marks: Sequence[bytes] = ()
    since: float = 0.0
    told: Sequence[bytes] = ()
    reach: int | None = None
    low: int | None = None


@frozen
class Pool:
    """Exchanges as loaded, without content.

    conversation: the named one, where it exists. fetch: one with its content. tombs: which of `Probes.told` are off the
    record or forgotten in any conversation; looked up once something was forgotten.
    """

    exchanges: Sequence[Exchange]
    conversation: int | None
    fetch: Callable[[int], Exchange]
    tombs: frozenset[bytes] = frozenset()


@frozen
class Change:
    """What a turn does to the tree.

    exchange: its own; a new one has an id below 1, and so has a new conversation. others: stored ones that changed.
    heads, tombs: hashes under which it has to be recognised. stale: stored ones whose indexed words changed.
    merge: exchanges whose memory edits enter the blocks now, in this order.
    """

    exchange: Exchange | None
    others: Sequence[Exchange] = ()
    heads: Sequence[bytes] = ()
    tombs: Sequence[bytes] = ()
    stale: Sequence[int] = ()
    merge: Sequence[int] = ()


@frozen
class BlockMerge:
    """What pending operations come to.

    writes: (block, its new value, operation), in order. passages: (text, operation).
    dropped: operations that cannot be done any more.
    """

    writes: Sequence[tuple[int, str, BlockOp]] = ()
    passages: Sequence[tuple[str, BlockOp]] = ()
    dropped: Sequence[BlockOp] = ()


@frozen
class TurnWrite:
    """One turn to be written, in one transaction.

    plain: the new exchange where nothing but its parent is concerned, with the rev of the conversation it was planned
    on; if that has moved, or without it, `decide` says from the exchanges as they are then what changes.
    carries: the plain one brings a new user message, so that its parent's turn is carried on.
    uid: of the conversation, if it is a new one. snapshot: the memory section the path has now; id 0 to store it.
    defaults, shared: blocks for an agent's first use. ops: memory edits of this turn; their `exchange` is filled in.
    """

    agent: Agent
    key: str | None
    uid: str
    now: float
    plain: tuple[Exchange, int] | None
    probes: Probes
    decide: Callable[[Pool], Change]
    merge: Callable[[Sequence[Block], Sequence[BlockOp]], BlockMerge]
    carries: bool = False
    ops: Sequence[BlockOp] = ()
    snapshot: Snapshot | None = None
    defaults: Sequence[Block] = ()
    shared: Sequence[Block] = ()


@frozen
class Committed:
    """agent: as it is stored. exchange, conversation: row ids. is_plain: nothing had to be resolved again."""

    agent: Agent
    exchange: int
    conversation: int
    is_plain: bool


# -- what passes between forgetting and the store


@frozen
class ForgetTarget:
    """What of one memory is to be forgotten.

    messages: by their numbers. exchanges, conversation: row ids. before: what is older than that. is_all: the memory
    with its secret, after which nothing tells that it was there.
    """

    messages: Sequence[int] = ()
    exchanges: Sequence[int] = ()
    conversation: int | None = None
    before: float | None = None
    is_all: bool = False


@frozen
class Extent:
    """What a target is, before it is forgotten. messages: how many will go; of a whole memory they are not counted.

    kept: how many of the same exchange stay. conversation: the public name of theirs, None where it is not asked.
    """

    messages: int = 0
    kept: int = 0
    conversation: str | None = None


@frozen
class Erased:
    """What is gone, as far as what may quote it can be told. days: since the epoch, UTC, on which it was said or saved.

    blocks: whether a block, or an edit of one, is gone too.
    """

    days: frozenset[int]
    blocks: bool = False


@frozen
class Revised:
    """A later value of a block that was built on something that is gone.

    is_erased: it came from that itself. op: the edit that made it, of a turn that stays. is_whole: value is an older,
    untouched one, brought back by an undo.
    """

    value: str
    is_erased: bool = False
    op: BlockOp | None = None
    is_whole: bool = False


@frozen
class ForgetRules:
    """quotes: may this note or hidden round quote what is gone?

    rebuild: the value of a block without what is gone. Its arguments: the block with its last untouched value, and
    the values it had since, oldest first.
    """

    quotes: Callable[[str, Erased], bool]
    rebuild: Callable[[Block, Sequence[Revised]], str]


# -- what passes between export, import and the store


@frozen
class TransferRecord:
    """A record on its way: values without database ids, exchanges by their numbers. exchange: with its content."""

    values: dict[str, Any]
    exchange: Exchange | None = None


@frozen
class Ancestor:
    """An exchange on a path, as far as those after it need it."""

    seq: int
    depth: int
    offset: int
    length: int
    inputs: tuple[tuple[Atom, ...], ...]
    reply: tuple[Atom, ...] | None


# -- what passes between learning and the store


@frozen
class Unlearned:
    """What was confirmed and not yet learned from. agent: with its present numbers.

    cursor: up to where learning has come; upto: up to where `messages`, oldest first, go. is_more: there is more that
    is confirmed; is_waiting: what follows has to stand its time first.
    """

    agent: Agent
    cursor: int
    upto: int
    messages: Sequence[Message]
    is_more: bool = False
    is_waiting: bool = False


@frozen
class LearnedFact:
    """A fact to be kept. key: facts that have the same one say the same. replaces: ids of those it makes untrue."""

    text: str
    about: str
    key: str
    valid_from: float
    exchange: int | None
    sources: Sequence[int]
    replaces: Sequence[int] = ()


@frozen
class Learned:
    """writes: (block, its new value, exchanges it came from); a block with id 0 is to be made. dropped: how many edits
    made no sense."""

    writes: Sequence[tuple[Block, str, Sequence[int]]] = ()
    facts: Sequence[LearnedFact] = ()
    dropped: int = 0


# -- vectors


@frozen
class Vector:
    """Of one text. model: who made it; vectors of different models say nothing about one another.

    data: float32, little endian, of length 1. usual, spread: how alike the text is to texts that have nothing to do
    with it, as a mean and a standard deviation; a spread of 0: that is not known.
    """

    model: str
    data: bytes
    usual: float = 0.0
    spread: float = 0.0


@frozen
class Unembedded:
    """The next of a memory to be embedded. agent: with its present numbers.

    cursor: up to where all has been; upto: up to where `messages`, those without a vector, go. stamp: changes when
    anything of this does. is_new: nothing of this memory is embedded by this model, and that has to be written first.
    """

    agent: Agent
    model: str
    cursor: int
    upto: int
    stamp: int
    messages: Sequence[Message] = ()
    is_new: bool = False
