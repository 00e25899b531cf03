"""Why a reply recalled what it did, in words: by its recall, or by the log where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import UNSET

from gateway.core.conversation.canonical import is_result
from gateway.core.dates import minute_text
from gateway.run.admin.memory_names import name_of
from gateway.run.admin.request_records import ExplainedRequest, PartTokens, Why, WindowPart, WindowRecord
from gateway.run.request_log import LoggedRequest
from storage.recall_record import PROMPT_PARTS, REASONS, RecallRecord, unpack
from storage.records import REPLY, Exchange
from storage.sql.recalls import FirstRecall

# Why a hit was left out, in words.
_REASON_WORDS = {
    "no_room": "for want of room",
    "weak": "too weak",
    "shown": "in the conversation already",
    "repeats": "saying the same as another",
    "muted": "muted",
    "superseded": "out of date",
}
# Why nothing was recalled, in words.
_NOTHING_RECALLED = {
    "nothing_found": "Nothing was recalled: memory has nothing that answers this.",
    "all_shown": "Nothing was recalled: what memory has stands in the conversation already.",
    "no_room": "Nothing was recalled: there was no room in the window.",
    "late": "Nothing was recalled: the search took too long.",
    "failed": "Nothing was recalled: memory could not be searched.",
    "off": "Nothing was recalled: memory is off for this request.",
    "nobody": "Nothing was recalled: nobody was named.",
}


def sentence_of(record: RecallRecord) -> str:
    """Returns what was recalled and what was left out, in words."""
    chosen = record.found - sum(record.left_out)
    if not chosen:
        sentence = _NOTHING_RECALLED.get(record.outcome, _NOTHING_RECALLED["nothing_found"])
        if record.part_tokens[PROMPT_PARTS.index("section")]:
            # The reply may be from a memory block, or from a fact that always holds.
            sentence = sentence.replace("Nothing was", "Nothing more was", 1)
    elif record.is_selection:
        memories = "memory" if chosen == 1 else "memories"
        sentence = (
            f"The message names nothing to look for: {chosen} {memories} went in as a selection of all."
        )
    else:
        memories = "memory" if record.found == 1 else "memories"
        sentence = (
            f"{chosen} of {record.found} {memories} found went into this reply "
            f"({record.recalled_tokens} tokens)."
        )
    counts = zip(REASONS[1:], record.left_out, strict=True)
    left_out = {_REASON_WORDS[reason]: count for reason, count in counts if count}
    if not left_out:
        return sentence
    reasons = [f"{count} {words}" for words, count in left_out.items()] if len(left_out) > 1 else left_out
    return f"{sentence} {sum(record.left_out)} stayed out: {', '.join(reasons)}."


def window_of(record: RecallRecord) -> WindowRecord:
    """Returns how the window of a request was used."""
    parts = (
        PartTokens(cast(WindowPart, part), tokens)
        for part, tokens in zip(PROMPT_PARTS, record.part_tokens, strict=True)
    )
    return WindowRecord(tuple(parts), record.context_window, record.evicted_tokens)


def explain_logged(
    logged: LoggedRequest,
    conversation: str | None,
    paused: float | None,
    exchange: Exchange | None,
    first: FirstRecall | None,
) -> ExplainedRequest:
    """Explains a request that has no recall.

    conversation: the conversation in which the request can be read; None: it can be read in none.
    paused: since when the memory was paused at the time of the request; None: it was not paused.
    exchange: the exchange of the request's turn, with content; None: it is not known, or has no words.
    first: the recall of the request that searched memory for the same question; None: it is not known.
    """
    whys: Mapping[str, Why] = {"none": "nobody", "off": "off", "unavailable": "failed", "read": "off"}
    why = whys.get(logged.mode, "nothing_found")
    sentence = _NOTHING_RECALLED[why]
    note = None
    if paused is not None:
        sentence = f"Nothing was recalled: memory has been paused since {minute_text(paused)} (UTC)."
    elif logged.side_request:
        sentence = (
            f"A program asked this for itself ({logged.side_request}), not a person: nothing of it is remembered, "
            f"and memory was {'only read' if logged.mode == 'read' else 'off'}."
        )
    elif logged.mode == "read":
        sentence = "Sources are not noted of a request that only reads memory."
    elif why == "nothing_found" and logged.status is not None and logged.status >= 400:
        sentence = f"No sources are noted: the request ended with status {logged.status}."
    elif why == "nothing_found":
        note = None if exchange is None else exchange.last_note
        sentence = _sentence_without_search(exchange, None if first is None else unpack(first.data))
    return ExplainedRequest(
        **summarize_logged(logged),
        conversation=conversation,
        exchange=None if exchange is None else exchange.seq,
        repeats=UNSET if first is None or first.request is None else first.request,
        tries=logged.tries,
        why=why,
        sentence=sentence,
        note=note,
        first_ms=logged.first_ms,
    )


def _sentence_without_search(exchange: Exchange | None, first: RecallRecord | None) -> str:
    """Returns the sentence that says why memory was not searched for a request.

    exchange: the exchange of the request's turn, with content; None: it is not known, or has no words.
    first: the recall of the request that searched memory for the same question; None: it is not known.
    """
    if exchange is None:
        return (
            "Memory was not searched: the request brings no new words of a person. It asks once more what its "
            "conversation has already, and gets the same note, or it goes on with the result of a tool."
        )
    # A note is made once: a request that finds one, even an empty one, repeats an earlier request.
    if exchange.last_note:
        return (
            "This question was asked once more, so memory was not searched again: the model was told the same note "
            "as the first time."
        )
    if exchange.notes:
        repeated = "This question was asked once more, so memory was not searched again."
        if first is None and REPLY in exchange.redactions:
            return f"{repeated} The reply was forgotten since, and with it what is known of the first time."
        if first is None:
            return f"{repeated} It had nothing that answers this, or what it had was forgotten since."
        if any(not entry.reason for entry in first.entries):
            return f"{repeated} What it had was forgotten since."
        nothing = _NOTHING_RECALLED.get(first.outcome, _NOTHING_RECALLED["nothing_found"])
        return f"{repeated} The first time n{nothing[1:]}"
    if exchange.inputs and is_result(exchange.inputs[-1]):
        return "The conversation went on with what a tool returned: nobody asked anything, so memory was not searched."
    return "The request brings no new words of a person, so memory was not searched."


def summarize_logged(logged: LoggedRequest) -> dict[str, Any]:
    """Returns the fields of `RequestSummary` of a request of the log."""
    return {
        "id": logged.id,
        "at": logged.at,
        "memory": logged.memory_uid,
        "name": None if logged.scope is None else name_of(logged.scope),
        "mode": logged.mode,
        "model": logged.model,
        "upstream": logged.upstream,
        "status": logged.status,
        "streamed": logged.is_streamed,
        "ms": logged.ms,
        "added_ms": logged.added_ms,
        "recalled_tokens": logged.recalled_tokens,
    }
