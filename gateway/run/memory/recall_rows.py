"""The rows of a search's hits, and the recall record (`RecallRecord`) with them, which is stored with a turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

from gateway.core.conversation.wire_message import WireMessage, is_system, read_text
from gateway.core.prompt.note_choice import CUT_CHARS
from gateway.core.turn.commands import End, TurnOutcome
from gateway.core.usage.estimate import CHARS_PER_TOKEN
from gateway.core.usage.reported import find_reported_counts
from gateway.run.memory.find_messages import MAX_LEFT_OUT
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.recall_result import SearchRecord
from gateway.run.receipt import Receipt
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
# The characters of the JSON around a message, estimated.
_MESSAGE_JSON_CHARS = 40
# `pack_code` for each kind with each reason.
_CODES: Mapping[tuple[str, str], int] = {
    (kind, reason): pack_code(kind, reason) for kind in KINDS for reason in REASONS
}


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
    rows, left_out = make_entry_rows(search)
    reported = find_reported_counts(turn_outcome.usage)
    record = RecallRecord(
        outcome=_choose_outcome(search, left_out),
        found=len(search.choice.hits) + sum(left_out),
        recalled_tokens=prompt.recall.note_tokens,
        is_selection=search.is_selection,
        mode=receipt.mode,
        status=_STATUSES[turn_outcome.state],
        is_streamed=prompt.request.stream,
        part_tokens=_estimate_prompt_parts(prompt),
        context_window=prompt.target.context_window,
        evicted_tokens=prompt.window.evicted_tokens,
        added_ms=added_ms,
        first_ms=receipt.clock.first_ms,
        ms=ms,
        usage=None if reported is None else reported[:3],
        left_out=left_out,
    )
    return pack_rows(record, rows, has_meaning=search.trace.has_meaning)


def make_entry_rows(
    search: SearchRecord, max_left_out: int = MAX_LEFT_OUT
) -> tuple[list[EntryRow], tuple[int, ...]]:
    """Returns a search's hits as rows by rank, and the counts of `RecallRecord.left_out`.

    max_left_out: the most left-out hits that have rows. Of the hits too weak for the ranking, only these are counted.
    """
    messages = {message.seq: message for message in search.messages}
    # Without a ranking, all that was found takes its place.
    ranked = search.trace.hit_seqs or tuple(messages)
    reasons = _list_reasons(search, messages)
    left_out = _choose_best_left_out(ranked, reasons, max_left_out)
    rows = _rank_rows(search, messages, ranked, [(seq, reasons[seq]) for seq in left_out])
    counts = Counter(reasons.values())
    if search.weak_hits:
        ranked_or_chosen = reasons.keys() | {hit.message.seq for hit in search.choice.hits}
        weak_rows = [(seq, scores) for seq, scores in search.weak_hits if seq not in ranked_or_chosen]
        del weak_rows[max_left_out - len(left_out) :]
        rows += _list_weak_rows(weak_rows, len(ranked) + 1)
        counts["weak"] += len(weak_rows)
    return rows, tuple([counts.get(reason, 0) for reason in LEFT_OUT_REASONS])


def _choose_best_left_out(ranked: Sequence[int], reasons: Mapping[int, str], max_left_out: int) -> list[int]:
    """Returns at most `max_left_out` numbers of hits that stayed out: by rank, then the hits without a rank."""
    in_ranking = set(ranked)
    with_rank = (seq for seq in ranked if seq in reasons)
    without_rank = (seq for seq in reasons if seq not in in_ranking)
    return [*islice(chain(with_rank, without_rank), max_left_out)]


def _rank_rows(
    search: SearchRecord,
    messages: Mapping[int, Message],
    ranked: Sequence[int],
    left_out: Iterable[tuple[int, str]],
) -> list[EntryRow]:
    """Returns the rows of the hits in the note and of the left-out hits, by rank.

    messages: the found messages by their numbers.
    ranked: the numbers of all hits, best first.
    left_out: the numbers of the left-out hits, each with the reason.

    A hit's position is its index in `ranked`. A hit that is not there has the position `end`, at which the scores are
    0. The rank is the position plus 1, at most `end`.
    """
    trace, hits = search.trace, search.choice.hits
    end = len(ranked)
    positions = dict(zip(ranked, range(end), strict=True))
    # The rows are built as columns: `zip` and `map` join them in C, which is faster than a loop here.
    seqs = [hit.message.seq for hit in hits]
    codes = [_CODES[hit.message.kind, ""] for hit in hits]
    tokens = [hit.tokens for hit in hits]
    for seq, reason in left_out:
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


def _list_weak_rows(weak: Sequence[tuple[int, HitScores]], first_rank: int) -> list[EntryRow]:
    """Returns the rows of hits that were too weak, by number with their scores."""
    code = _CODES["any", "weak"]
    return [(rank, code, *scores, 0, seq) for rank, (seq, scores) in enumerate(weak, first_rank)]


def _list_reasons(search: SearchRecord, messages: Iterable[int]) -> dict[int, str]:
    """Returns the reason for which each hit stayed out, by number. messages: the numbers of the found messages."""
    choice = search.choice
    # The default: a hit that the note did not try to hold is in the prompt already.
    reasons = dict.fromkeys(messages, "shown")
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


def _choose_outcome(search: SearchRecord, left_out: Sequence[int]) -> RecallOutcome:
    """Returns the outcome of a search. left_out: the value of `RecallRecord.left_out`."""
    if search.outcome:
        return search.outcome
    if search.choice.hits:
        return "recalled"
    counts = dict(zip(LEFT_OUT_REASONS, left_out, strict=True))
    if counts["no_room"]:
        return "no_room"
    return "all_shown" if counts["shown"] or counts["repeats"] else "nothing_found"


def _estimate_prompt_parts(prompt: Prompt) -> tuple[int, ...]:
    """Returns the tokens of a prompt by `PROMPT_PARTS`, estimated from the lengths of its texts."""
    request = prompt.request
    window = prompt.window
    composition = prompt.composition
    lengths = [*map(_count_chars, request.messages)]
    system = 0
    history = 0
    newest = 0
    for index, (message, chars) in enumerate(zip(request.messages, lengths, strict=True)):
        if is_system(message):
            system += chars
        elif index not in window.dropped_indices:
            # The newest message is a part of its own.
            history += newest
            newest = chars
    history += sum(_count_chars(each.message) for each in window.list_inserted(composition))
    tools = sum(len(str(tool)) for tool in prompt.tools)
    if request.has_tools:
        # The rest of the body counts as the client's tools, with the pictures and calls of its messages.
        messages = sum(lengths) + _MESSAGE_JSON_CHARS * len(lengths)
        tools += max(0, len(request.raw) - messages)
    note = prompt.recall.note_tokens
    earlier_notes = max(0, composition.note_tokens - note)
    tokens = {
        "system": _estimate_tokens(system),
        "tools": _estimate_tokens(tools),
        "section": _estimate_tokens(len(prompt.system)),
        "summary": _estimate_tokens(len(window.summary)),
        "history": _estimate_tokens(history) + earlier_notes,
        "note": note,
        "message": _estimate_tokens(newest),
    }
    return tuple([tokens[part] for part in PROMPT_PARTS])


def _estimate_tokens(chars: int) -> int:
    """Returns the estimated tokens of a number of characters, rounded up."""
    return -(-chars // CHARS_PER_TOKEN)


def _count_chars(message: WireMessage) -> int:
    """Returns how many characters the texts of a message have."""
    return len(read_text(message))
