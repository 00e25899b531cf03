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
from gateway.core.prompt.window import Window, reserve_for_reply
from gateway.errors import ContextExceeded
from gateway.run.memory.fitted_window import NO_NOTE, WHOLE_WINDOW, FittedWindow, NoteRoom
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import with_counter
from gateway.run.memory.window_room import UsableSummary, WindowRoom
from gateway.tokens import count_message_tokens, count_upper_bound
from storage.records import EvictedPart


class _ListCut(NamedTuple):
    """The cut of a client's list to the entries that stay in the window. The fields are as in `FittedWindow`."""

    # Indices of the client's messages that stay out.
    dropped_indices: frozenset[int]
    # Indices of the inserted messages that go in.
    included_indices: tuple[int, ...]
    # The hidden rounds that go in, by the index of the message that they replace.
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
    prompt, evicted = room.prompt, room.prompt.eviction.evicted
    summaries = room.list_usable_summaries()
    summary = _choose_summary(room, summaries) if evicted is not None or room.is_over() else None
    start, cut = (0, None) if summary is None else summary
    summary_plan = room.plan_summary(summaries, is_due=evicted is not None and not summaries)
    # If the messages after the summary are still too many, the oldest of them leave, too.
    start += room.count_surplus(start)
    window = room.fit_entries(start, cut)
    note_tokens = room.count_note_tokens(window.ranges, cut)
    tokens, max_tokens = room.measure_prompt(window.ranges, cut)
    fitted = FittedWindow(
        tokens=tokens, max_tokens=max_tokens, summary_plan=summary_plan, note_tokens=note_tokens
    )
    if not start and window.is_whole and cut is None and evicted is None:
        return fitted
    context_window = prompt.target.context_window
    if context_window is not None and not prompt.request.may_evict:
        raise ContextExceeded(context_window)
    list_cut = _cut_list(room, window)
    return replace(
        fitted,
        dropped_indices=list_cut.dropped_indices,
        included_indices=list_cut.included_indices,
        replacements=list_cut.replacements,
        summary="" if cut is None else cut.text,
        summary_id=0 if cut is None else cut.id,
        evicted=_find_evicted(room, window),
        evicted_tokens=(0 if evicted is None else evicted.tokens)
        + room.entry_tokens.count(range(start))
        + window.evicted_tokens,
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


def _choose_summary(room: WindowRoom, summaries: Sequence[UsableSummary]) -> UsableSummary | None:
    """Returns the summary that replaces the beginning of the conversation, or None if there is none.

    The summary in use stays, so that the prompt begins as before, if the rest fits and no message after its end is
    missing. Otherwise it is the oldest summary that leaves enough room, or the newest one that fits.

    summaries: the usable summaries, the one that covers least first.
    """
    evicted, used_id = room.prompt.eviction.evicted, room.prompt.eviction.used_summary_id
    fitting_summaries = [each for each in summaries if not room.is_over(each.first_index, each.cut)]
    gapless_summaries = [
        each for each in fitting_summaries if evicted is None or each.cut.covered_atoms >= evicted.offset
    ] or fitting_summaries
    summaries_in_use = [each for each in gapless_summaries if each.cut.id == used_id]
    roomy_summaries = [
        each for each in gapless_summaries if not room.is_over(each.first_index, each.cut, ROOMY_SHARE)
    ]
    by_preference = (*summaries_in_use, *roomy_summaries, *reversed(gapless_summaries), *reversed(summaries))
    return by_preference[0] if by_preference else None


def _cut_list(room: WindowRoom, window: Window) -> _ListCut:
    """Returns the cut of the client's list to the entries in a window.

    A message that is replaced by hidden rounds is dropped if none of the rounds stays.
    """
    request, composition = room.prompt.request, room.prompt.composition
    included_indices = []
    # The messages that stay in place of each of the request's messages: one, or the last of its hidden rounds.
    staying: dict[int, list[WireMessage]] = {}
    for n in chain.from_iterable(window.ranges):
        entry = room.entries[n]
        if entry.client_index is None:
            included_indices.append(n)
        else:
            staying.setdefault(entry.client_index, []).append(entry.message)
    client_indices = range(count_leading_system(request.messages), len(request.messages))
    return _ListCut(
        frozenset(client_indices).difference(staying),
        tuple(included_indices),
        {index: staying[index] for index in composition.replacements if index in staying},
    )


def _find_evicted(room: WindowRoom, window: Window) -> EvictedPart | None:
    """Returns the part of the path that has left the window, for the next requests.

    The next request leaves out all entries before the first entry that stays.
    """
    prompt = room.prompt
    evicted = prompt.eviction.evicted
    first_index = min(chain.from_iterable(window.ranges), default=len(room.entries))
    tokens = room.entry_tokens.count(range(first_index))
    position: PathPosition | None = None
    if first_index < len(room.entries):
        client_index = room.entries[first_index].client_index
        if client_index is None:
            position = prompt.composition.inserted[first_index].position
        else:
            position = prompt.eviction.find_position(client_index, prompt.composition)
    if position is None or not tokens:
        return evicted
    window_tokens = room.choose_evicting_window(window)
    # Messages that left a smaller window may come back in a larger one, so the size of the smallest is stored too.
    if evicted is not None:
        tokens, window_tokens = tokens + evicted.tokens, min(window_tokens, evicted.context)
    return EvictedPart(*position, tokens, window_tokens)
