"""Fits a prompt into the model's window: decides which messages stay, and which summary replaces the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.tree import PathPosition
from gateway.core.conversation.wire_message import WireMessage, count_leading_system
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.summary import ROOMY_SHARE
from gateway.core.prompt.window import Window, fit_window, reserve_for_reply
from gateway.errors import ContextExceeded
from gateway.run.memory.fitted_window import NO_NOTE, WHOLE_WINDOW, FittedWindow, NoteRoom
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import with_counter
from gateway.run.memory.window_room import PromptEntry, UsableSummary, WindowRoom
from gateway.tokens import count_message_tokens, count_upper_bound
from storage.records import EvictedPart


class _ListCut(NamedTuple):
    """The cut of a client's list to the entries that stay in the window."""

    # The indices of the messages that are dropped.
    dropped_indices: frozenset[int]
    # The messages of hidden rounds that stay, by the index of the message that they replace.
    replacements: dict[int, list[WireMessage]]


async def fit_prompt(
    prompt: Prompt,
    *,
    newer_system: str | None = None,
    note: NoteRoom = NO_NOTE,
    rounds: Sequence[WireMessage] = (),
) -> FittedWindow:
    """Returns the part of the prompt that fits its target's window.

    newer_system: the system text that goes with a summary that was not in use before; None: the prompt's own.
    note: the room for the note, which is made after the window is known.
    rounds: messages of hidden rounds, which follow the prompt and always stay.

    Raises: ContextExceeded: the prompt does not fit, and the request may not be cut.
    """
    context_window = prompt.target.context_window
    # Bytes are an upper bound of tokens: most requests are never counted.
    added_tokens = note.max_tokens + sum(count_message_tokens(m, count_upper_bound) for m in rounds)
    may_fill = is_crowded(prompt) or (
        bool(context_window) and may_exceed(prompt, context_window or 0, added_tokens)
    )
    if prompt.eviction.evicted is None and not may_fill:
        return WHOLE_WINDOW
    make_room = partial(WindowRoom, prompt, newer_system=newer_system, note=note, rounds=rounds)
    if context_window is None:
        return _fit(make_room(estimate_tokens))
    return await with_counter(prompt.target.model, lambda count: _fit(make_room(count)))


def _fit(room: WindowRoom) -> FittedWindow:
    """Returns the part of the prompt that fits, as `fit_prompt` documents it."""
    prompt = room.prompt
    context_window, evicted = prompt.target.context_window, prompt.eviction.evicted
    summaries = room.list_usable_summaries()
    cut = None
    start = 0
    if evicted is not None or room.is_over():
        summary = _choose_summary(room, summaries, evicted, prompt.eviction.used_summary_id)
        if summary is not None:
            cut, start = summary.cut, summary.first_index
    summary_plan = None
    if prompt.eviction.summarises:
        summary_plan = room.plan_summary(summaries, is_due=evicted is not None and not summaries)
    # If the messages after the summary are still too many, the oldest of them leave, too.
    start += room.count_surplus(start)
    window = Window((range(len(room.entries) - start),))
    if room.is_over(start, cut):
        window = fit_window(
            room.list_items()[start:], room.make_budget(cut), lambda: room.count_entry_tokens()[start:]
        )
    ranges = [range(start + part.start, start + part.stop) for part in window.ranges]
    note_tokens = room.count_note_tokens(ranges, cut)
    tokens, max_tokens = room.measure_prompt(ranges, cut)
    fitted = FittedWindow(
        tokens=tokens, max_tokens=max_tokens, summary_plan=summary_plan, note_tokens=note_tokens
    )
    if not start and window.is_whole and cut is None and evicted is None:
        return fitted
    if context_window is not None and not prompt.request.may_evict:
        raise ContextExceeded(context_window)
    evicted_before = 0 if evicted is None else evicted.tokens
    evicted_tokens = evicted_before + room.count_tokens(0, start) + window.evicted_tokens
    staying = [*chain.from_iterable(ranges)]
    list_cut = _cut_list(prompt, room.entries, frozenset(staying))
    # The next request leaves out all entries before the first entry that stays here.
    first_index = min(staying, default=len(room.entries))
    return replace(
        fitted,
        dropped_indices=list_cut.dropped_indices,
        included_indices=tuple(i for i in staying if i < len(prompt.composition.inserted)),
        replacements=list_cut.replacements,
        summary="" if cut is None else cut.text,
        summary_id=0 if cut is None else cut.id,
        evicted=_find_evicted(room, first_index, room.choose_evicting_window(window)),
        evicted_tokens=evicted_tokens,
    )


async def fit_rounds(prompt: Prompt, rounds: Sequence[WireMessage]) -> Prompt:
    """Returns the prompt for a call after hidden rounds of its own turn.

    If there is no room for all hidden rounds, more of the conversation is left out of this call.
    """
    window, target = prompt.window, prompt.target
    if target.context_window is None:
        return prompt
    if window.tokens:
        tokens = await with_counter(
            target.model, lambda count: sum(count_message_tokens(message, count) for message in rounds)
        )
        if window.tokens + tokens <= window.max_tokens:
            return prompt
    prefix_before = prompt.system, *window.left_out
    window = await fit_prompt(prompt, rounds=rounds)
    parts = prompt.section.parts
    if parts is not None and prompt.hides_shown_blocks(window):
        prompt = replace(prompt, system=parts.render())
        window = await fit_prompt(prompt, rounds=rounds)
    if (prompt.system, *window.left_out) != prefix_before:
        prompt = replace(prompt, changes_prefix=True, moves_hidden_rounds=True)
    return replace(prompt, window=window)


def may_exceed(prompt: Prompt, context_tokens: int, more_tokens: int = 0) -> bool:
    """Returns whether a request may be too long with the gateway's additions, so that its tokens have to be counted.

    Bytes are an upper bound of a text's tokens. A link to an image has few bytes, and stands for many tokens.
    """
    request, composition = prompt.request, prompt.composition
    added_messages = [each.message for each in composition.inserted]
    added_messages += chain.from_iterable(composition.replacements.values())
    texts = (prompt.system, *composition.notes.values())
    added_bytes = len(orjson.dumps([*added_messages, *prompt.tools])) + sum(map(len, map(str.encode, texts)))
    added_bytes += sum(
        count_message_tokens(message, lambda _: 0)
        for message in (*request.messages, *added_messages)
        if isinstance(message.get("content"), list)
    )
    reserve = reserve_for_reply(context_tokens, request.max_tokens)
    return len(request.raw) + added_bytes + more_tokens + reserve > context_tokens


def is_crowded(prompt: Prompt) -> bool:
    """Returns whether the window has about as many messages as its agent allows, or more."""
    bounds = prompt.eviction.bounds
    if bounds is None:
        return False
    messages, composition = prompt.request.messages, prompt.composition
    client_count = len(messages) - max(prompt.eviction.start_index, count_leading_system(messages))
    rounds_count = sum(len(rounds) - 1 for rounds in composition.replacements.values())
    return len(composition.inserted) + client_count + rounds_count > bounds.summarise_above


def _choose_summary(
    room: WindowRoom, summaries: Sequence[UsableSummary], evicted: EvictedPart | None, used_id: int
) -> UsableSummary | None:
    """Returns the summary that replaces the beginning of the conversation, or None if there is none.

    The summary in use stays, so that the prompt begins as before, if the rest fits and no message after its end is
    missing. Otherwise it is the oldest summary that leaves enough room, or the newest one that fits.

    used_id: the id of the summary in use; 0: no summary is in use.
    """
    fitting = [each for each in summaries if not room.is_over(each.first_index, each.cut)]
    without_gap = [
        each for each in fitting if evicted is None or each.cut.covered_atoms >= evicted.offset
    ] or fitting
    in_use = [each for each in without_gap if each.cut.id == used_id]
    roomy = [each for each in without_gap if not room.is_over(each.first_index, each.cut, ROOMY_SHARE)]
    by_preference = (*in_use, *roomy, *reversed(without_gap), *reversed(summaries))
    return next(iter(by_preference), None)


def _cut_list(prompt: Prompt, entries: Sequence[PromptEntry], staying: frozenset[int]) -> _ListCut:
    """Returns the cut of the client's list if some entries stay.

    A message that is replaced by hidden rounds is dropped if none of the rounds stays.

    staying: the indices of the entries that stay.
    """
    dropped = set(range(count_leading_system(prompt.request.messages), prompt.eviction.start_index))
    replacements: dict[int, list[WireMessage]] = {index: [] for index in prompt.composition.replacements}
    for n, (index, message) in enumerate(entries):
        if index is None:
            continue
        # The window may have room for the last hidden rounds only.
        if index in replacements:
            if n in staying:
                replacements[index].append(message)
        elif n not in staying:
            dropped.add(index)
    dropped.update(index for index, rounds in replacements.items() if not rounds)
    remaining = {index: rounds for index, rounds in replacements.items() if rounds}
    return _ListCut(frozenset(dropped), remaining)


def _find_evicted(room: WindowRoom, first_index: int, window_tokens: int) -> EvictedPart | None:
    """Returns the part of the path that has left the window, for the next requests.

    first_index: the index of the first entry that stays.
    window_tokens: the size of the window that the part has left.
    """
    prompt = room.prompt
    evicted = prompt.eviction.evicted
    tokens = room.count_tokens(0, first_index)
    position: PathPosition | None = None
    if first_index < len(room.entries):
        client_index = room.entries[first_index].client_index
        if client_index is None:
            position = prompt.composition.inserted[first_index].position
        else:
            position = prompt.eviction.find_position(client_index, prompt.composition)
    if position is None or not tokens:
        return evicted
    # Messages that left a smaller window may come back in a larger one, so the size of the smallest is stored too.
    if evicted is not None:
        tokens, window_tokens = tokens + evicted.tokens, min(window_tokens, evicted.context)
    return EvictedPart(*position, tokens, window_tokens)
