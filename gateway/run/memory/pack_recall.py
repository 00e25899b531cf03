"""The recall record of a turn (`RecallRecord`): why it recalled what it did. It is stored with the turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from gateway.core.conversation.canonical import SYSTEM, WireMessage
from gateway.core.prompt.note import CUT_CHARS
from gateway.core.turn.commands import End, TurnOutcome
from gateway.run.memory.prompt import Prompt, SearchRecord
from gateway.run.memory.recall import MOST_LEFT_OUT
from gateway.run.receipt import Receipt
from storage.recall_record import KINDS, REASONS, EntryRow, RecallRecord, code_of, pack_rows

_STATUSES = {End.FINISHED: 200, End.CANCELLED: 499, End.FAILED: 502}
_NO_SCORES = (0, 0, 0)
# Estimates: characters of a text for each token, and of the JSON around a message.
_CHARS_PER_TOKEN, _MESSAGE_JSON_CHARS = 4, 40
# The bytes of an entry's kind and reason (`code_of`).
_CODES = {(kind, reason): code_of(kind, reason) for kind in KINDS for reason in REASONS}
_REASONS = REASONS[1:]


def pack_search(
    prompt: Prompt, search: SearchRecord, outcome: TurnOutcome, receipt: Receipt, ms: float, added_ms: float
) -> bytes:
    """Returns the recall record of a turn, as bytes.

    ms: how long the turn took.
    added_ms: how much of that the gateway added.

    Over SQLite it runs in the writer's thread, and it changes nothing.
    """
    rows, counts = entry_rows(search)
    chosen = len(search.chosen)
    request = prompt.request
    record = RecallRecord(
        search.why or _why(bool(chosen), counts),
        chosen + sum(counts),
        prompt.recall.tokens,
        search.is_selection,
        receipt.mode,
        _STATUSES[outcome.state],
        request.stream,
        window_parts(prompt),
        prompt.target.context_window,
        prompt.window.evicted_tokens,
        added_ms,
        receipt.first_ms,
        ms,
        usage_of(outcome.usage),
        counts,
    )
    return pack_rows(record, rows, has_meaning=search.trace.has_meaning)


def entry_rows(
    search: SearchRecord, most_left: int = MOST_LEFT_OUT
) -> tuple[list[EntryRow], tuple[int, ...]]:
    """Returns the entries by rank, and how many hits stayed out for each reason. most_left: entries of the latter."""
    by_seq, trace = {m.seq: m for m in search.messages}, search.trace
    ranks = {seq: rank for rank, seq in enumerate(trace.hits or by_seq, 1)}
    all_scores = dict(zip(trace.hits, trace.scores(), strict=True)) if trace.hits else {}
    chosen = {hit.message.seq for hit in search.chosen}
    rows = []
    for hit in search.chosen:
        seq = hit.message.seq
        scores = all_scores.get(seq, _NO_SCORES)
        code, rank = _CODES[hit.message.source, ""], ranks.get(seq, len(ranks))
        rows.append(EntryRow(code, seq, rank, *scores, hit.tokens))
    reasons = _reasons(search, by_seq.keys() - chosen)
    unranked = (seq for seq in reasons if seq not in ranks)
    others = [*islice(chain((seq for seq in ranks if seq in reasons), unranked), most_left)]
    for seq in others:
        message, scores = by_seq.get(seq), all_scores.get(seq, _NO_SCORES)
        tokens = 0 if message is None else min(len(message.text), CUT_CHARS) // _CHARS_PER_TOKEN
        kind = "fact" if seq in trace.muted else "any" if message is None else message.source
        code, rank = _CODES[kind, reasons[seq]], ranks.get(seq, len(ranks))
        rows.append(EntryRow(code, seq, rank, *scores, tokens))
    weak = [(seq, scores) for seq, scores in search.weak if seq not in reasons and seq not in chosen]
    for rank, (seq, scores) in enumerate(weak[: most_left - len(others)], len(ranks) + 1):
        reasons[seq] = "weak"
        rows.append(EntryRow(_CODES["any", "weak"], seq, rank, *scores, 0))
    rows.sort(key=attrgetter("rank"))
    stayed_out = [*reasons.values()]
    return rows, tuple([stayed_out.count(reason) for reason in _REASONS])


def _reasons(search: SearchRecord, others: Iterable[int]) -> dict[int, str]:
    """Returns by number the reason for which each hit stayed out. others: the messages that were not chosen."""
    tried = frozenset(search.left_out.tried)
    found = {seq: "no_room" if seq in tried else "shown" for seq in others}
    for seqs, reason in ((search.left_out.repeats, "repeats"), (search.left_out.shown, "shown")):
        for seq in seqs:
            if seq in found:
                found[seq] = reason
    return {**search.ruled_out, **found, **dict.fromkeys(search.trace.muted, "muted")}


def _why(has_chosen: bool, counts: Sequence[int]) -> str:
    """Returns one of WHYS for a search that did not fail. counts: as `entry_rows` returns them."""
    if has_chosen:
        return "recalled"
    by_reason = dict(zip(_REASONS, counts, strict=True))
    if by_reason["no_room"]:
        return "no_room"
    return "all_shown" if by_reason["shown"] or by_reason["repeats"] else "nothing_found"


def window_parts(prompt: Prompt) -> tuple[int, ...]:
    """Returns the tokens of a prompt by `PARTS`, estimated from the lengths of its texts."""
    request, window, composition = prompt.request, prompt.window, prompt.composition
    system = history = last = 0
    dropped = window.dropped
    for index, message in enumerate(request.messages):
        chars = _chars(message)
        if message.get("role") in SYSTEM:
            system += chars
        elif index not in dropped:
            history += last
            last = chars
    for each in window.inserted(composition):
        history += _chars(each.message)
    tools = 0
    if request.has_tools or prompt.tools:
        every = sum(map(_chars, request.messages)) + _MESSAGE_JSON_CHARS * len(request.messages)
        tools = max(0, len(request.raw) - every) if request.has_tools else 0
        tools += sum(len(str(tool)) for tool in prompt.tools)
    recalled = prompt.recall.tokens
    earlier = max(0, composition.note_tokens - recalled)
    return (
        _tokens(system),
        _tokens(tools),
        _tokens(len(prompt.system)),
        _tokens(len(window.summary)),
        _tokens(history) + earlier,
        recalled,
        _tokens(last),
    )


def _tokens(chars: int) -> int:
    """Returns about how many tokens so many characters have, rounded up."""
    return -(-chars // _CHARS_PER_TOKEN)


def _chars(message: WireMessage) -> int:
    """Returns how many characters the texts of a message have."""
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, list):
        return 0
    return sum(len(part.get("text") or "") for part in content if isinstance(part, dict))


def usage_of(usage: Mapping[str, Any] | None) -> tuple[int, int, int] | None:
    """Returns the input, output and cached tokens of an upstream's usage."""
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    found = (
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
        cached,
    )
    numbers = [n if isinstance(n, int) and n >= 0 else 0 for n in found]
    return numbers[0], numbers[1], numbers[2]
