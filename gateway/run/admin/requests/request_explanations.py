"""Why a reply recalled what it did, in words.

A request that searched memory is explained by the stored record of its recall, any other one by the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from msgspec import UNSET

from gateway.core.conversation.canonical import is_result
from gateway.core.dates import render_minute
from gateway.run.admin.records.request_records import ExplainedRequest, PartTokens, WindowRecord
from gateway.run.admin.requests.request_summaries import summarize_logged
from gateway.run.receipt import CLIENT_GONE
from gateway.run.request_log import LoggedRequest
from gateway.run.upstream.provider_errors import FAILURE_WORDS
from storage.recall_record import LEFT_OUT_REASONS, PROMPT_PARTS, RecallOutcome, RecallRecord, unpack
from storage.records import REPLY, Exchange
from storage.sql.recalls import FirstRecall

# The reasons why a hit was left out, in words.
_REASON_WORDS = {
    "no_room": "for want of room",
    "weak": "too weak",
    "shown": "in the conversation already",
    "repeats": "saying the same as another",
    "muted": "not to be mentioned",
    "superseded": "out of date",
}
# The reasons why nothing was recalled, as clauses.
_OUTCOME_WORDS = {
    "nothing_found": "the search found nothing that answers this",
    "all_shown": "what memory has stands in the conversation already",
    "no_room": "there was no room in the window",
    "late": "the search took too long",
    "failed": "memory could not be searched",
    "off": "memory is off for this request",
    "nobody": "nobody was named",
}
# The outcome of a request without a search, by its memory mode. In the other modes it is `nothing_found`, also of a
# repeat and of a failure, which have no outcomes of their own: only their sentences differ.
_OUTCOME_BY_MODE: Mapping[str, RecallOutcome] = {
    "none": "nobody",
    "off": "off",
    "unavailable": "failed",
    "read": "off",
}


def render_sentence(record: RecallRecord) -> str:
    """Returns the sentence about the recalled texts and those that were left out."""
    chosen = record.found - sum(record.left_out)
    if not chosen:
        # The reply may be from the memory section: from a memory block, or from a fact that always holds.
        has_section = record.part_tokens[PROMPT_PARTS.index("section")] > 0
        subject = "Nothing more" if has_section else "Nothing"
        sentence = f"{subject} was recalled: {_render_outcome(record.outcome)}."
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
    counts = zip(LEFT_OUT_REASONS, record.left_out, strict=True)
    left_out = [(_REASON_WORDS[reason], count) for reason, count in counts if count]
    if not left_out:
        return sentence
    if len(left_out) == 1:
        [(reasons, _)] = left_out
    else:
        reasons = ", ".join(f"{count} {words}" for words, count in left_out)
    return f"{sentence} {sum(record.left_out)} stayed out: {reasons}."


def _render_outcome(outcome: RecallOutcome) -> str:
    return _OUTCOME_WORDS.get(outcome, _OUTCOME_WORDS["nothing_found"])


def make_window_record(record: RecallRecord) -> WindowRecord:
    """Returns how the window of a request was used."""
    parts = (PartTokens(part, tokens) for part, tokens in zip(PROMPT_PARTS, record.part_tokens, strict=True))
    return WindowRecord(tuple(parts), record.context_window, record.evicted_tokens)


def explain_logged(
    logged: LoggedRequest,
    conversation: str | None,
    paused_since: float | None,
    exchange: Exchange | None,
    first: FirstRecall | None,
) -> ExplainedRequest:
    """Explains a request of which no recall is stored.

    conversation: the conversation in which the request can be read; None: no conversation has it.
    paused_since: the time since which the memory was paused when the request came; None: the memory was not paused.
    exchange: the exchange of the request's turn, with content; None: an unknown exchange, or one without words.
    first: the recall of the request that searched memory for the same question; None: not known.
    """
    note = None
    sentence = _render_logged_sentence(logged, paused_since)
    if sentence is None:
        sentence = _render_sentence_without_search(exchange, None if first is None else unpack(first.data))
        note = None if exchange is None else exchange.last_note
    return ExplainedRequest(
        **summarize_logged(logged),
        conversation=conversation,
        exchange=None if exchange is None else exchange.seq,
        repeats=UNSET if first is None or first.request is None else first.request,
        tries=logged.tries,
        why=_OUTCOME_BY_MODE.get(logged.mode, "nothing_found"),
        sentence=sentence,
        note=note,
        first_ms=logged.first_ms,
    )


def _render_logged_sentence(logged: LoggedRequest, paused_since: float | None) -> str | None:
    """Returns the sentence of a request for which the log alone shows why nothing is noted, or None if it does not."""
    if paused_since is not None:
        return f"Nothing was recalled: memory has been paused since {render_minute(paused_since)} (UTC)."
    if logged.side_request:
        return (
            f"A program asked this for itself ({logged.side_request}), not a person: nothing of it is remembered, "
            f"and memory was {'only read' if logged.mode == 'read' else 'off'}."
        )
    if logged.mode == "read":
        return "Sources are not noted of a request that only reads memory."
    if logged.mode in _OUTCOME_BY_MODE:
        return f"Nothing was recalled: {_render_outcome(_OUTCOME_BY_MODE[logged.mode])}."
    if logged.status is not None and logged.status >= 400:
        return (
            f"The request ended with status {logged.status}: {_render_failure(logged)}. No sources are noted."
        )
    return None


def _render_failure(logged: LoggedRequest) -> str:
    """Returns as a clause why a request failed: what became of it at each provider."""
    if logged.status == CLIENT_GONE:
        return "the client left before the reply was complete"
    if not logged.tries:
        return "no provider was asked"
    clauses: list[str] = []
    for attempt, same_attempts in groupby(logged.tries):
        provider, _, outcome = attempt.rpartition(":")
        words = FAILURE_WORDS.get(outcome, f"answered with status {outcome}")
        count = len([*same_attempts])
        clauses.append(f"{provider} {words}{f' ({count} tries)' if count > 1 else ''}")
    return f"the provider {', then '.join(clauses)}"


def _render_sentence_without_search(exchange: Exchange | None, first: RecallRecord | None) -> str:
    """Returns the sentence about why memory was not searched for a request.

    exchange: the exchange of the request's turn, with content; None: an unknown exchange, or one without words.
    first: the recall of the request that searched memory for the same question; None: not known.
    """
    if exchange is None:
        return (
            "Memory was not searched: the request brings no new words of a person. It asks once more what its "
            "conversation has already, and gets the same note, or it goes on with the result of a tool."
        )
    # A note is made once: a request that finds one, even an empty one, repeats an earlier request.
    if exchange.notes:
        return _render_repeat_sentence(exchange, first)
    if exchange.inputs and is_result(exchange.inputs[-1]):
        return "The conversation went on with what a tool returned: nobody asked anything, so memory was not searched."
    return "The request brings no new words of a person, so memory was not searched."


def _render_repeat_sentence(exchange: Exchange, first: RecallRecord | None) -> str:
    """Returns the sentence of a request that repeats an earlier one. See `_render_sentence_without_search`."""
    beginning = "This question was asked once more, so memory was not searched again"
    if exchange.last_note:
        return f"{beginning}: the model was told the same note as the first time."
    if first is None and REPLY in exchange.redactions:
        return f"{beginning}. The reply was forgotten since, and with it what is known of the first time."
    if first is None:
        return f"{beginning}. It had nothing that answers this, or what it had was forgotten since."
    if any(not entry.reason for entry in first.entries):
        return f"{beginning}. What it had was forgotten since."
    return f"{beginning}. The first time nothing was recalled: {_render_outcome(first.outcome)}."
