"""The rows of a search's hits, and the recall record (`RecallRecord`) with them, which is stored with a turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import orjson

from gateway.core.conversation.wire_message import is_system
from gateway.core.message_text import without_text_before
from gateway.core.prompt.note_choice import CUT_CHARS
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.usage.estimate import CHARS_PER_TOKEN
from gateway.core.usage.reported import find_reported_counts
from gateway.run.memory.find_messages import MAX_LEFT_OUT
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.recall_result import SearchRecord
from gateway.run.receipt import Receipt
from gateway.tokens import count_message_tokens
from storage.recall_record import (
    KINDS,
    LEFT_OUT_REASONS,
    PROMPT_PARTS,
    REASONS,
    EntryRow,
    RecallOutcome,
    RecallRecord,
    pack_code,
    pack_rows,
)
from storage.records import Message
from storage.search_trace import HitScores

# The status of a record by the end of its turn.
_STATUSES = {End.FINISHED: 200, End.CANCELLED: 499, End.FAILED: 502}
# `pack_code` for each kind with each reason.
_CODES: Mapping[tuple[str, str], int] = {
    (kind, reason): pack_code(kind, reason) for kind in KINDS for reason in REASONS
}


class HitRows(NamedTuple):
    """The rows of a search's hits."""

    # The rows, by rank: hits in the note, and the best of the left-out hits.
    rows: list[EntryRow]
    # How many hits stayed out of the note, by `LEFT_OUT_REASONS`.
    left_out_counts: tuple[int, ...]


def pack_recall(
    prompt: Prompt,
    search: SearchRecord,
    turn_outcome: TurnOutcome,
    receipt: Receipt,
    ms: float,
    added_ms: float,
) -> bytes:
    """Returns the recall record of a turn, as bytes.

    ms: the duration of the turn in milliseconds.
    added_ms: the part of `ms` that the gateway added.

    Over SQLite it runs in the writer's thread, over PostgreSQL in the loop's, and it changes nothing.
    """
    rows, left_out_counts = make_hit_rows(search)
    reported = find_reported_counts(turn_outcome.usage)
    record = RecallRecord(
        outcome=_choose_outcome(search, left_out_counts),
        found=len(search.choice.hits) + sum(left_out_counts),
        recalled_tokens=prompt.recall.note_tokens,
        is_selection=search.is_selection,
        mode=receipt.memory.mode,
        status=_STATUSES[turn_outcome.state],
        is_streamed=prompt.request.stream,
        part_tokens=_estimate_prompt_parts(prompt),
        context_window=prompt.target.context_window,
        evicted_tokens=prompt.window.evicted_tokens,
        added_ms=added_ms,
        first_ms=receipt.clock.first_ms,
        ms=ms,
        usage=None if reported is None else reported[:3],
        left_out=left_out_counts,
    )
    return pack_rows(record, rows, has_meaning=search.trace.has_meaning)


def make_hit_rows(search: SearchRecord, max_left_out: int = MAX_LEFT_OUT) -> HitRows:
    """Returns the rows of a search's hits.

    max_left_out: the most left-out hits that have rows. Of the hits that are too weak for the ranking, only those
        with rows are counted.
    """
    messages = {message.seq: message for message in search.messages}
    # Without a ranking, all that was found takes its place.
    ranked_seqs = search.trace.hit_seqs or tuple(messages)
    reasons = _list_reasons(search, messages)
    best_reasons = _choose_best_left_out(ranked_seqs, reasons, max_left_out)
    rows = _make_ranked_rows(search, messages, ranked_seqs, best_reasons)
    counts = Counter(reasons.values())
    if search.weak_hits:
        ranked_or_chosen = reasons.keys() | {hit.message.seq for hit in search.choice.hits}
        weak_hits = [(seq, scores) for seq, scores in search.weak_hits if seq not in ranked_or_chosen]
        del weak_hits[max_left_out - len(best_reasons) :]
        rows += _make_weak_rows(weak_hits, len(ranked_seqs) + 1)
        counts["weak"] += len(weak_hits)
    return HitRows(rows, tuple([counts.get(reason, 0) for reason in LEFT_OUT_REASONS]))


def _choose_best_left_out(
    ranked_seqs: Sequence[int], reasons: Mapping[int, str], max_left_out: int
) -> dict[int, str]:
    """Returns the first of `reasons` by rank, at most `max_left_out`. Hits without a rank come last."""
    in_ranking = set(ranked_seqs)
    with_rank = (seq for seq in ranked_seqs if seq in reasons)
    without_rank = (seq for seq in reasons if seq not in in_ranking)
    return {seq: reasons[seq] for seq in islice(chain(with_rank, without_rank), max_left_out)}


def _make_ranked_rows(
    search: SearchRecord,
    messages: Mapping[int, Message],
    ranked_seqs: Sequence[int],
    reasons: Mapping[int, str],
) -> list[EntryRow]:
    """Returns the rows of the hits in the note and of left-out hits, by rank.

    messages: the found messages by their numbers.
    ranked_seqs: the numbers of all hits, best first.
    reasons: the reason for which each of the left-out hits stayed out, by its number.

    A hit's position is its index in `ranked_seqs`. A hit that is not there has the position `end`, at which the scores
    are 0. The rank is the position plus 1, at most `end`.
    """
    trace, hits = search.trace, search.choice.hits
    end = len(ranked_seqs)
    positions = dict(zip(ranked_seqs, range(end), strict=True))
    # The rows are built as columns: `zip` and `map` join them in C, which is faster than a loop here.
    seqs = [hit.message.seq for hit in hits]
    codes = [_CODES[hit.message.kind, ""] for hit in hits]
    tokens = [hit.tokens for hit in hits]
    for seq, reason in reasons.items():
        message = messages.get(seq)
        kind = "any" if message is None else message.kind
        if seq in trace.muted_seqs:
            kind = "fact"
        seqs.append(seq)
        codes.append(_CODES[kind, reason])
        tokens.append(0 if message is None else min(len(message.text), CUT_CHARS) // CHARS_PER_TOKEN)
    row_positions = [positions.get(seq, end) for seq in seqs]
    ranks = [min(position + 1, end) for position in row_positions]
    # A column of scores that are all 0 is empty.
    score_columns = [(column or bytes(end)) + b"\0" for column in trace.scores()]
    row_scores = [map(column.__getitem__, row_positions) for column in score_columns]
    return sorted(zip(ranks, codes, *row_scores, tokens, seqs, strict=True))


def _make_weak_rows(weak_hits: Sequence[tuple[int, HitScores]], first_rank: int) -> list[EntryRow]:
    """Returns the rows of hits that were too weak for the ranking.

    weak_hits: the number of each hit, with its scores, best first.
    """
    code = _CODES["any", "weak"]
    return [(rank, code, *scores, 0, seq) for rank, (seq, scores) in enumerate(weak_hits, first_rank)]


def _list_reasons(search: SearchRecord, found_seqs: Iterable[int]) -> dict[int, str]:
    """Returns the reason for which each left-out hit stayed out, by its number.

    found_seqs: the numbers of the found messages.
    """
    choice = search.choice
    # The default: a hit that the note did not try to hold is in the prompt already.
    reasons = dict.fromkeys(found_seqs, "shown")
    for seqs, reason in (
        (choice.tried_seqs, "no_room"),
        (choice.repeated_seqs, "repeats"),
        (choice.shown_seqs, "shown"),
    ):
        if seqs:
            reasons.update(dict.fromkeys(seqs, reason))
    if search.ruled_out:
        reasons = {**search.ruled_out, **reasons}
    for hit in choice.hits:
        del reasons[hit.message.seq]
    if search.trace.muted_seqs:
        reasons.update(dict.fromkeys(search.trace.muted_seqs, "muted"))
    return reasons


def _choose_outcome(search: SearchRecord, left_out_counts: Sequence[int]) -> RecallOutcome:
    """Returns the outcome of a search. left_out_counts: as `HitRows.left_out_counts`."""
    if search.outcome:
        return search.outcome
    if search.choice.hits:
        return "recalled"
    counts = dict(zip(LEFT_OUT_REASONS, left_out_counts, strict=True))
    if counts["no_room"]:
        return "no_room"
    return "all_shown" if counts["shown"] or counts["repeats"] else "nothing_found"


def _estimate_prompt_parts(prompt: Prompt) -> tuple[int, ...]:
    """Returns the tokens of a prompt by `PROMPT_PARTS`, estimated from the lengths of its texts."""
    request = prompt.request
    window = prompt.window
    composition = prompt.composition
    recall = prompt.recall
    replacements = prompt.replacements
    inserted = window.list_inserted(composition)
    system_chars = 0
    # The messages as they go upstream. The texts of inserted messages begin with their notes.
    message_chars = [_count_chars(each.message) for each in inserted]
    earlier_notes = composition.note_tokens
    if inserted and recall.note_tokens and inserted[-1].note == recall.note:
        message_chars[-1] = _count_chars(without_text_before(inserted[-1].message, recall.note))
    else:
        earlier_notes -= recall.note_tokens
    for index, message in enumerate(request.messages):
        if index in replacements:
            message_chars += map(_count_chars, replacements[index])
        elif is_system(message):
            system_chars += _count_chars(message)
        elif index not in window.dropped_indices:
            message_chars.append(_count_chars(message))
    # The newest message is a part of its own.
    newest_chars = message_chars.pop() if message_chars else 0
    tokens = {
        "system": _estimate_tokens(system_chars),
        "tools": _estimate_tokens(_count_tool_chars(prompt)),
        "section": _estimate_tokens(len(prompt.system)),
        "summary": _estimate_tokens(len(window.summary)),
        "history": _estimate_tokens(sum(message_chars)) + max(0, earlier_notes),
        "note": recall.note_tokens,
        "message": _estimate_tokens(newest_chars),
    }
    return tuple([tokens[part] for part in PROMPT_PARTS])


def _count_tool_chars(prompt: Prompt) -> int:
    """Returns the characters of the tools as JSON: those of the gateway and of the client."""
    tools = prompt.list_all_tools()
    return len(orjson.dumps(tools).decode()) if tools else 0


def _count_chars(message: Mapping[str, Any]) -> int:
    """Returns the characters of a message's text. Media and calls count as the characters of as many tokens."""
    content = message.get("content")
    # Most messages are a text. The others take ten times as long.
    if isinstance(content, str) and "tool_calls" not in message:
        return len(content)
    return count_message_tokens(message, lambda text: _estimate_tokens(len(text))) * CHARS_PER_TOKEN


def _estimate_tokens(chars: int) -> int:
    """Returns the estimated tokens of a number of characters, rounded up."""
    return -(-chars // CHARS_PER_TOKEN)
