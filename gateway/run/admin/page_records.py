"""The records of what an operator, and a person, is shown of a memory.

An operation of this room returns them. The command line prints them, a template of the page renders them, and the
`.json` twin of its URL has their fields by these names. Times are seconds since the epoch; None is not known.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import UNSET, Struct, UnsetType

MemoryKind = Literal["user", "conversation", "agent"]
SourceKind = Literal["message", "fact", "passage"]
# Why a hit stayed out of the note: below the line of what is worth a line; the note was full; it stands in the
# conversation or in an earlier note; a chosen one says it; an operator has muted it; another took its place.
Reason = Literal["weak", "no_room", "shown", "repeats", "muted", "superseded"]
# How looking for memory ended. `off`, `nobody`: it was not looked for.
Why = Literal["recalled", "nothing_found", "all_shown", "no_room", "late", "failed", "off", "nobody"]
WindowPart = Literal["system", "tools", "section", "summary", "history", "note", "message"]
BlockOrigin = Literal[
    "default", "tool", "learning", "undo", "forget", "api", "operator", "person", "sleeptime", "mcp"
]
BLOCK_ORIGINS: tuple[BlockOrigin, ...] = get_args(BlockOrigin)
FactOrigin = Literal["learned", "model", "operator", "person", "mcp", "import"]


class MemoryRecord(Struct, frozen=True):
    """A memory, as lists and the head of its page show it."""

    uid: str
    kind: MemoryKind
    # The user, the client's conversation id, or the agent's id.
    name: str
    project: str
    profile: str
    created: float
    last_turn: float | None
    # How many it has. `facts`: those that are true.
    conversations: int
    messages: int
    bytes: int
    blocks: int
    facts: int
    # Nothing is remembered or recalled for now.
    paused: bool
    # The name that an agent was given; not set: of others.
    agent_name: str | UnsetType = UNSET


class SourceRecord(Struct, frozen=True):
    """A place where something was said."""

    kind: SourceKind
    seq: int
    # None where it is forgotten.
    text: str | None
    at: float | None
    forgotten: bool = False
    # Its page, relative to /ui/; None: it has none.
    href: str | None = None
    # Its speaker, by name, or "assistant"; not set: the person whose memory it is, and of other kinds.
    speaker: str | UnsetType = UNSET


class FactRecord(Struct, frozen=True):
    """A learned fact."""

    seq: int
    text: str
    about: str
    # Since when it is true, and when it was learned.
    since: float
    learned_at: float
    # Until when it was true, and the number of the fact that is true instead.
    until: float | None
    successor: int | None
    # It stays in lists, and no note, search tool or summary has it.
    muted: bool
    origin: FactOrigin
    sources: tuple[SourceRecord, ...] = ()
    # It always holds, so that replies are told it whatever is asked; not set: of all others.
    always: bool | UnsetType = UNSET


class BlockRecord(Struct, frozen=True):
    """A memory block as it is now."""

    label: str
    description: str
    value: str
    version: int
    # Characters: of the value, and the most that it may have.
    chars: int
    limit: int
    read_only: bool
    shared: bool
    changed_at: float | None
    origin: str
    # Edits of turns that are not confirmed yet.
    waiting: int


class VersionRecord(Struct, frozen=True):
    """A value that a block had."""

    version: int
    at: float
    origin: BlockOrigin
    # The version that it brought back.
    restores: int | None
    chars: int
    value: str
    sources: tuple[SourceRecord, ...] = ()


class ToolRound(Struct, frozen=True):
    """A call of a tool that the client has not seen."""

    tool: str
    arguments: str
    result: str


class MessageRecord(Struct, frozen=True):
    """A message of a conversation."""

    seq: int
    exchange: int
    role: str
    speaker: str | None
    at: float
    text: str | None
    state: Literal["standing", "superseded", "cancelled", "off", "forgotten"]
    # How many it has.
    images: int = 0
    rounds: tuple[ToolRound, ...] = ()
    # What memory put before it.
    note: str | None = None
    # The id of the request that it answers.
    request: str | None = None


class HitRecord(Struct, frozen=True):
    """A hit of a search for memory that went into a note."""

    kind: SourceKind
    seq: int
    text: str | None
    at: float | None
    forgotten: bool
    href: str | None
    # From 1 on.
    rank: int
    # From 0 to 1, of the best of the search: in all, by words, by meaning. None in a selection of the whole memory;
    # `meaning` also without an embedder.
    score: float | None
    words: float | None
    meaning: float | None
    tokens: int
    # Until when a fact was true; not set: of all other hits.
    until: float | UnsetType = UNSET


class LeftOutRecord(HitRecord, frozen=True, kw_only=True):
    """A hit that stayed out of the note."""

    reason: Reason


class PartTokens(Struct, frozen=True):
    """The tokens of one part of a window, estimated."""

    part: WindowPart
    tokens: int


class WindowRecord(Struct, frozen=True):
    """The use of a model's window. context: its tokens. evicted: the tokens that no longer fitted."""

    parts: tuple[PartTokens, ...]
    context: int | None
    evicted: int


class UsageRecord(Struct, frozen=True):
    """The tokens of a request as the upstream counts them; `cached` is of the input."""

    input: int
    output: int
    cached: int


class RequestSummary(Struct, frozen=True, kw_only=True):
    """The part of a request that lists and its own page have."""

    id: str
    at: float
    # The uid and name of its memory.
    memory: str | None
    name: str | None
    # on, read, off, strict, none or unavailable.
    mode: str
    model: str
    upstream: str
    # None while it is in flight.
    status: int | None
    streamed: bool
    ms: float
    added_ms: float
    # Of the hits that went into the note.
    recalled_tokens: int


class RequestRecord(RequestSummary, frozen=True, kw_only=True):
    """A request as lists show it: no words."""

    # How many hits went into the note.
    recalled: int


class ExplainedRequest(RequestSummary, frozen=True, kw_only=True):
    """Why a reply was made as it was. The defaults are of a request that did not look for memory."""

    # The public id of its conversation, and the number of its exchange's first message.
    conversation: str | None
    exchange: int | None = None
    # Each upstream that was asked, with its answer ("openai:429").
    tries: tuple[str, ...]
    why: Why
    # What happened, in words.
    sentence: str
    found: int = 0
    # The note is a selection of the whole memory.
    selection: bool = False
    chosen: tuple[HitRecord, ...] = ()
    # The best of those that stayed out.
    left_out: tuple[LeftOutRecord, ...] = ()
    # What went before the message, byte for byte.
    note: str | None = None
    window: WindowRecord = WindowRecord((), None, 0)
    first_ms: float | None
    usage: UsageRecord | None = None
    # Until when the sources are kept.
    kept_until: float | None = None


class AuditRecord(Struct, frozen=True):
    """Something that an operator did, or a person by a link."""

    at: float
    # The name of a key, `code`, `link` or `command`.
    who: str
    action: str
    # The uid of a memory, which may be gone.
    memory: str | None
    # A kind and a number ("block human, version 8"), never words.
    what: str


class Problem(Struct, frozen=True):
    """Something that is not well. href: the page that shows more of it, relative to /ui/."""

    text: str
    href: str


class RequestCounts(Struct, frozen=True):
    """Requests of this process: in flight, of the last hour, and those of them that failed."""

    in_flight: int
    last_hour: int
    failed: int


class MemoryCounts(Struct, frozen=True):
    """The requests of the last hour by what became of memory."""

    on: int
    read: int
    off: int
    # No user was named.
    none: int
    unavailable: int


class AddedTime(Struct, frozen=True):
    """The time that the gateway added to the requests of the last hour, in milliseconds; None: there was none."""

    p50: float | None
    p99: float | None


class UpstreamRecord(Struct, frozen=True):
    """An upstream with one of its keys. rests: it is passed over for a while, because it failed."""

    name: str
    state: Literal["well", "rests"]


class JobCounts(Struct, frozen=True):
    """Jobs: those that wait or run, and those that failed for good. None: the database cannot be asked."""

    waiting: int | None
    failed: int | None


class OverviewRecord(Struct, frozen=True):
    """How the gateway is."""

    state: Literal["well", "degraded", "down"]
    # "All is well.", or what is wrong, worst first.
    sentence: str
    problems: tuple[Problem, ...]
    version: str
    requests: RequestCounts
    memory: MemoryCounts
    added_ms: AddedTime
    upstreams: tuple[UpstreamRecord, ...]
    jobs: JobCounts
    # The last requests, and the memories with the newest turns.
    replies: tuple[RequestRecord, ...]
    # None: they could not be read.
    people: tuple[MemoryRecord, ...] | None


KeyKind = Literal["app", "metrics", "operator", "operator-read"]


class KeyRecord(Struct, frozen=True):
    """A gateway key, without its secret."""

    id: int
    name: str
    # None: all, of an operator's key.
    project: str | None
    # The first characters of the key.
    prefix: str
    kind: KeyKind
    # The mode of requests that ask for none; None: as the settings say.
    memory: str | None
    created: float
    revoked: float | None


class NewKey(KeyRecord, frozen=True, kw_only=True):
    """A key that was just made. secret: the key itself, which cannot be shown again."""

    secret: str


class KeyPage(Struct, frozen=True):
    """A page of keys, the newest first. next: `after` of the next page."""

    items: tuple[KeyRecord, ...]
    next: str | None


class JobRecord(Struct, frozen=True):
    """A job of the background."""

    id: int
    kind: str
    # pending, running, retrying or dead: it has failed for good.
    state: str
    due: float
    # The attempts that have failed or run.
    tries: int
    # Why the last attempt failed, without content.
    error: str | None
    # Of the memory that it works on.
    name: str | None


class JobPage(Struct, frozen=True):
    """A page of jobs, those that failed for good first, then the newest first. next: `after` of the next page."""

    items: tuple[JobRecord, ...]
    next: str | None


class BatchRecord(Struct, frozen=True):
    """A batch of sends to agents."""

    id: str
    state: str
    created: float
    # Its items by what became of them.
    counts: dict[str, int]


class BatchPage(Struct, frozen=True):
    """A page of batches, the newest first. next: `after_batch` of the next page."""

    items: tuple[BatchRecord, ...]
    next: str | None


class WorkRecord(Struct, frozen=True):
    """The work of the background."""

    jobs: JobPage
    batches: BatchPage
    # Tokens of background calls today, and how many a project may use in a day; None: any number.
    spent_today: int
    bound: int | None


class RunSummary(Struct, frozen=True):
    """A run of an agent."""

    id: str
    # The public id of its agent.
    agent: str
    # created, running, completed, failed or cancelled.
    state: str
    # Why it ended; None: it has not.
    stop: str | None
    created: float
    begun: float | None
    ended: float | None
    steps: int
    # Of all its steps, in and out.
    tokens: int


class StepCall(Struct, frozen=True):
    """A call of a tool in a step."""

    tool: str
    arguments: str
    # None: there is none yet, or it is forgotten.
    result: str | None
    state: Literal["answered", "waiting", "open"]
    # What it waits for: approval, client or held.
    waiting: str | None


class StepRecord(Struct, frozen=True):
    """A step of a run: a call of the model."""

    # From 1 on, in the order of the run.
    number: int
    # In seconds since the epoch.
    begun: float
    # None: it has not ended.
    ended: float | None
    model: str
    # Tokens of the prompt.
    input: int
    # Tokens of the reply.
    output: int
    # Why the run ended with it; None: it went on.
    stop: str | None
    # The class of what went wrong.
    error: str | None
    calls: tuple[StepCall, ...]


class RunPage(Struct, frozen=True):
    """A run with a page of its steps, in order. next: `after` of the next page."""

    run: RunSummary
    steps: tuple[StepRecord, ...]
    next: str | None
