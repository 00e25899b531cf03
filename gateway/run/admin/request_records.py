"""The records in which a request is shown to an operator, with the hits of its search. See `memory_records`."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from gateway.run.admin.memory_records import SourceKind, SourceRecord

# Why a hit stayed out of the note: its score was too low; the note was full; the conversation or an earlier note shows
# it; a chosen hit repeats it; an operator has muted it; another fact has replaced it.
Reason = Literal["weak", "no_room", "shown", "repeats", "muted", "superseded"]
# How the search for memory ended. `off`, `nobody`: there was no search.
Why = Literal["recalled", "nothing_found", "all_shown", "no_room", "late", "failed", "off", "nobody"]
WindowPart = Literal["system", "tools", "section", "summary", "history", "note", "message"]


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
    # The scores as shares of the best score, from 0 to 1: in all, by words, by meaning. None in a selection of the
    # whole memory; without an embedder `meaning` is None, too.
    score: float | None
    words: float | None
    meaning: float | None
    tokens: int
    # Until when the fact was true; not set: the hit is no fact that has ended.
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
    # The tokens of the hits that went into the note.
    recalled_tokens: int


class RequestRecord(RequestSummary, frozen=True, kw_only=True):
    """A request as lists show it."""

    # How many hits went into the note.
    recalled: int
    # The first words of what was asked; not set: there are none, or the list has no words.
    question: str | UnsetType = UNSET


class ExplainedRequest(RequestSummary, frozen=True, kw_only=True):
    """Why a reply was made as it was. The defaults are of a request that did not look for memory."""

    # The public id of its conversation, and the number of its exchange's first message.
    conversation: str | None
    exchange: int | None = None
    # The id of the request that looked for memory for the same question before; not set: of all others.
    repeats: str | UnsetType = UNSET
    # Each upstream that was asked, with its answer ("openai:429").
    tries: tuple[str, ...]
    why: Why
    # What happened, in words.
    sentence: str
    found: int = 0
    # The note is a selection of the whole memory.
    selection: bool = False
    chosen: tuple[HitRecord, ...] = ()
    # The best hits that stayed out.
    left_out: tuple[LeftOutRecord, ...] = ()
    # The note that was placed before the message, byte for byte.
    note: str | None = None
    window: WindowRecord = WindowRecord((), None, 0)
    first_ms: float | None
    usage: UsageRecord | None = None
    # Until when the sources are retained.
    kept_until: float | None = None
    # On the page, if the reply repeats nothing of its prompt: older texts with words of the reply that the prompt does
    # not have. Not set: they were not looked for.
    before_reply: tuple[SourceRecord, ...] | UnsetType = UNSET
