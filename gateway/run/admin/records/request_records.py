"""The records in which a request is shown to an operator, with the hits of its search. See `memory_records`."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from gateway.run.admin.records.memory_records import SourceKind, SourceRecord
from storage.recall_record import LeftOutReason, PromptPart, RecallOutcome

WindowPart = PromptPart


class HitRecord(Struct, frozen=True):
    """A hit of a search for memory that went into a note."""

    kind: SourceKind
    # The number of the hit in its memory.
    seq: int
    # The text; None: the text is forgotten.
    text: str | None
    # The time at which it was stated.
    at: float | None
    # True: the text was forgotten.
    forgotten: bool
    # The page that shows it, relative to /ui/; None: no page does.
    href: str | None
    # From 1 on.
    rank: int
    # The score in all; each score is a share of the best one, from 0 to 1, and None in a selection of the whole memory.
    score: float | None
    # The score by words.
    words: float | None
    # The score by meaning; without an embedder it is None, too.
    meaning: float | None
    # The estimated tokens of its line in the note.
    tokens: int
    # The time until which the fact was true; not set: the hit is no fact that has ended.
    until: float | UnsetType = UNSET
    # The value that `FactRecord` has.
    taken_back: bool | UnsetType = UNSET


class LeftOutRecord(HitRecord, frozen=True, kw_only=True):
    """A hit that stayed out of the note."""

    reason: LeftOutReason


class PartTokens(Struct, frozen=True):
    """The tokens of one part of a window, estimated."""

    part: WindowPart
    tokens: int


class WindowRecord(Struct, frozen=True):
    """The use of a model's window. context: its tokens. evicted: the tokens that no longer fitted."""

    # The docstring is in /openapi.json, where fields have no words of their own.
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
    # The time at which it came.
    at: float
    # The uid and name of its memory.
    memory: str | None
    name: str | None
    # The memory mode: on, read, off, strict, none or unavailable; "": it is not known yet.
    mode: str
    # The model that was asked last.
    model: str
    # The upstream that was asked last.
    upstream: str
    # None while it is in flight.
    status: int | None
    # True: the client asked for a stream.
    streamed: bool
    # The milliseconds that the request took so far.
    ms: float
    # The part of `ms` that the gateway added.
    added_ms: float
    # The tokens of the hits that went into the note.
    recalled_tokens: int


class RequestRecord(RequestSummary, frozen=True, kw_only=True):
    """A request as lists show it."""

    # The number of hits in the note.
    recalled: int
    # The first words of the question; not set: there is no question, or the list has no words.
    question: str | UnsetType = UNSET


class ExplainedRequest(RequestSummary, frozen=True, kw_only=True):
    """Why a reply was made as it was. The defaults are of a request that did not look for memory."""

    # The public id of its conversation, and the number of its exchange's first message.
    conversation: str | None
    exchange: int | None = None
    # The id of the request that looked for memory for the same question before; not set: for all other requests.
    repeats: str | UnsetType = UNSET
    # Each upstream that was asked, with its answer ("openai:429").
    tries: tuple[str, ...]
    # `nothing_found`: also of a repeat and of a failure, which had no search; `sentence` reports that.
    why: RecallOutcome
    # What happened, in words.
    sentence: str
    # The number of hits of the search.
    found: int = 0
    # True: the note is a selection of the whole memory.
    selection: bool = False
    # The hits in the note, best first.
    chosen: tuple[HitRecord, ...] = ()
    # The best hits that stayed out.
    left_out: tuple[LeftOutRecord, ...] = ()
    # The note that was placed before the message, byte for byte.
    note: str | None = None
    # The use of the model's window.
    window: WindowRecord = WindowRecord((), None, 0)
    # The time until the first byte was sent; None: no byte was sent yet.
    first_ms: float | None
    # The usage of the upstream's reply; None: not known.
    usage: UsageRecord | None = None
    # The time until which the sources are retained.
    kept_until: float | None = None
    # On the page, if the reply repeats nothing of its prompt: older texts with words of the reply that the prompt does
    # not have. Not set: they were not looked for.
    before_reply: tuple[SourceRecord, ...] | UnsetType = UNSET
