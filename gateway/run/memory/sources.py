"""Memory sources of a reply: why a turn recalled what it did, as it is noted with the turn (`RecallRecord`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from gateway.core.conversation.canonical import WireMessage, is_system
from gateway.core.prompt.note import CUT_CHARS, Recalled, estimate_tokens
from gateway.core.turn.commands import End, TurnOutcome
from gateway.run.memory.prompt import Prompt, Sought
from gateway.run.receipt import Receipt
from storage.recall_record import REASONS, WHYS, RecalledEntry, RecallRecord, SearchTrace
from storage.records import Message

# So many of the hits that stayed out are noted.
LEFT_OUT = 5
_REASONS = REASONS[1:]
_STATUSES = {End.FINISHED: 200, End.CANCELLED: 499, End.FAILED: 502}
_NO_SCORES = (None, None, None)
# Characters of a text for each token, and of JSON around a message. The figures of a window are estimates.
_CHARS, _FRAME = 4, 40


def sought_of(
    why: str,
    messages: Sequence[Message],
    chosen: Sequence[Recalled],
    reasons: Mapping[int, str],
    trace: SearchTrace,
    *,
    is_selection: bool,
) -> Sought:
    """Returns what is noted of a search for memory.

    why: "": what was found decides.
    messages: what was found, best first.
    reasons: why those that were not chosen stayed out, by number.
    """
    ranked = {seq: rank for rank, seq in enumerate(trace.scores, 1)}
    if is_selection:
        ranked = {m.seq: rank for rank, m in enumerate(messages, 1)}
    scores: dict[int, tuple[float | None, float | None, float | None]] = {**trace.scores}
    kinds = {m.seq: m for m in messages}
    entries = [_entry(hit.message.seq, hit.message, ranked, scores, hit.tokens, "") for hit in chosen]
    left = {**reasons, **dict.fromkeys(trace.muted, "muted")}
    others = sorted(left, key=lambda seq: ranked.get(seq, len(ranked) + 1))
    if len(others) < LEFT_OUT and not is_selection:
        weak = trace.weak(LEFT_OUT - len(others))
        for rank, seq in enumerate(weak, len(ranked) + 1):
            if seq not in left and seq not in ranked:
                ranked[seq], scores[seq], left[seq] = rank, weak[seq], "weak"
                others.append(seq)
    for seq in others[:LEFT_OUT]:
        message = kinds.get(seq)
        tokens = 0 if message is None else estimate_tokens(message.text[:CUT_CHARS])
        entries.append(_entry(seq, message, ranked, scores, tokens, left[seq], is_muted=seq in trace.muted))
    entries.sort(key=lambda e: e.rank)
    counts = [0] * len(_REASONS)
    for reason in left.values():
        counts[_REASONS.index(reason)] += 1
    if not why:
        why = _why(bool(chosen), counts)
    return Sought(why, len(chosen) + len(left), is_selection, tuple(counts), tuple(entries))


def _why(has_chosen: bool, counts: Sequence[int]) -> str:
    """Returns how a search ended that did not fail."""
    if has_chosen:
        return "recalled"
    by_reason = dict(zip(_REASONS, counts, strict=True))
    if by_reason["no_room"]:
        return "no_room"
    return "all_shown" if by_reason["shown"] or by_reason["repeats"] else "nothing_found"


def _entry(
    seq: int,
    message: Message | None,
    ranked: Mapping[int, int],
    scores: Mapping[int, tuple[float | None, float | None, float | None]],
    tokens: int,
    reason: str,
    *,
    is_muted: bool = False,
) -> RecalledEntry:
    kind = "fact" if is_muted else "any" if message is None else message.source
    return RecalledEntry(
        kind, seq, ranked.get(seq, len(ranked) + 1), *scores.get(seq, _NO_SCORES), tokens, reason
    )


def record_of(prompt: Prompt, sought: Sought, outcome: TurnOutcome, receipt: Receipt) -> RecallRecord:
    """Returns what is noted of a turn that looked for memory."""
    request = prompt.request
    return RecallRecord(
        sought.why if sought.why in WHYS else "failed",
        sought.found,
        prompt.recall.tokens,
        sought.is_selection,
        receipt.mode,
        _STATUSES[outcome.state],
        request.stream,
        window_parts(prompt),
        prompt.target.context_window,
        prompt.window.evicted_tokens,
        receipt.added_ms or receipt.added_so_far(),
        receipt.first_ms,
        (perf_counter() - receipt.begun) * 1000,
        usage_of(outcome.usage),
        sought.left,
        sought.entries,
    )


def window_parts(prompt: Prompt) -> tuple[int, ...]:
    """Returns the tokens of a prompt by `PARTS`, estimated from the lengths of its texts."""
    request, window, composition = prompt.request, prompt.window, prompt.composition
    system = history = last = 0
    dropped = window.dropped
    for index, message in enumerate(request.messages):
        chars = _chars(message)
        if is_system(message):
            system += chars
        elif index not in dropped:
            history += last
            last = chars
    for each in window.fill(composition):
        history += _chars(each.message)
    tools = 0
    if request.has_tools or prompt.tools:
        every = sum(map(_chars, request.messages)) + _FRAME * len(request.messages)
        tools = max(0, len(request.raw) - every) if request.has_tools else 0
        tools += sum(len(str(tool)) for tool in prompt.tools)
    recalled = prompt.recall.tokens
    earlier = max(0, composition.note_tokens - recalled)
    return (
        system // _CHARS,
        tools // _CHARS,
        len(prompt.system) // _CHARS,
        len(window.summary) // _CHARS,
        history // _CHARS + earlier,
        recalled,
        last // _CHARS,
    )


def _chars(message: WireMessage) -> int:
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
