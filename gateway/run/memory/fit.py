"""Fits a prompt into the model's window: decides which messages stay, and which summary replaces the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.tree import PathPosition
from gateway.core.conversation.wire_message import (
    WireMessage,
    count_leading_system,
    flag_results,
    list_media,
)
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.summary import (
    EARLY_SHARE,
    ROOMY_SHARE,
    WORTHWHILE_SHARE,
    WantedSummary,
    limit_summary,
)
from gateway.core.prompt.summary_cut import SummaryCut
from gateway.core.prompt.window import (
    Budget,
    Window,
    WindowItem,
    choose_window_start,
    fit_window,
    make_window_item,
    may_begin,
    plan_budget,
    reserve_for_reply,
)
from gateway.errors import ContextExceeded
from gateway.run.memory.fitted_window import NO_NOTE, FittedWindow, NoteRoom
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import with_counter
from gateway.tokens import count_message_tokens, count_upper_bound
from storage.records import ANY_WINDOW, Evicted


class _Entry(NamedTuple):
    """A message of the prompt before it is fitted."""

    # The index of the message in the client's list; None: it is stored, and goes before the list.
    client_index: int | None
    message: WireMessage


class _PromptSize(NamedTuple):
    """The size of a prompt; both are 0 if nothing was counted, or if not all entries are text."""

    tokens: int
    # The most tokens that the prompt may have.
    max_tokens: int


class _LeftOut(NamedTuple):
    """The part of a client's list that does not go into the window."""

    # The indices of the messages that are dropped.
    dropped: frozenset[int]
    # Index of another message that hidden rounds replace -> the messages of the rounds that stay.
    replacements: dict[int, list[WireMessage]]


class _UsableSummary(NamedTuple):
    """A summary that may replace the beginning of the conversation."""

    # The index of the first entry after it.
    first_index: int
    cut: SummaryCut


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
        return FittedWindow()
    make_room = partial(_WindowRoom, prompt, newer_system=newer_system, note=note, rounds=rounds)
    if context_window is None:
        return _fit(make_room(estimate_tokens))
    return await with_counter(prompt.target.model, lambda count: _fit(make_room(count)))


def _fit(room: _WindowRoom) -> FittedWindow:
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
    wanted_summary = None
    if prompt.eviction.summarises:
        wanted_summary = room.wanted_summary(summaries, is_due=evicted is not None and not summaries)
    # If the messages after the summary are still too many, the oldest of them leave, too.
    start += room.surplus(start)
    window = Window((range(len(room.entries) - start),))
    if room.is_over(start, cut):
        window = fit_window(room.items()[start:], room.budget(cut), lambda: room.entry_tokens()[start:])
    ranges = [range(start + part.start, start + part.stop) for part in window.ranges]
    note_tokens = room.note_tokens(ranges, cut)
    tokens, max_tokens = room.size_of_prompt(ranges, cut)
    fitted = FittedWindow(
        tokens=tokens, max_tokens=max_tokens, wanted_summary=wanted_summary, note_tokens=note_tokens
    )
    if not start and window.is_whole and cut is None and evicted is None:
        return fitted
    if context_window is not None and not prompt.request.may_evict:
        raise ContextExceeded(context_window)
    evicted_before = 0 if evicted is None else evicted.tokens
    evicted_tokens = evicted_before + room.tokens(0, start) + window.evicted_tokens
    staying = [*chain.from_iterable(ranges)]
    dropped, replacements = _collect_left_out(prompt, room.entries, frozenset(staying))
    # The next request leaves out all entries before the first entry that stays here.
    first_index = min(staying, default=len(room.entries))
    return replace(
        fitted,
        dropped=dropped,
        included=tuple(i for i in staying if i < len(prompt.composition.inserted)),
        replacements=replacements,
        summary="" if cut is None else cut.text,
        summary_id=0 if cut is None else cut.id,
        evicted=_find_evicted(room, first_index, room.evicting_window(window)),
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
    added = [each.message for each in composition.inserted]
    added += chain.from_iterable(composition.replacements.values())
    texts = (prompt.system, *composition.notes.values())
    extra = len(orjson.dumps([*added, *prompt.tools])) + sum(map(len, map(str.encode, texts)))
    extra += sum(
        count_message_tokens(message, _no_tokens)
        for message in (*request.messages, *added)
        if isinstance(message.get("content"), list)
    )
    reserve = reserve_for_reply(context_tokens, request.max_tokens)
    return len(request.raw) + extra + more_tokens + reserve > context_tokens


def _no_tokens(text: str) -> int:
    return 0


def is_crowded(prompt: Prompt) -> bool:
    """Returns whether the window has about as many messages as its agent allows, or more."""
    bounds = prompt.eviction.bounds
    if bounds is None:
        return False
    messages, composition = prompt.request.messages, prompt.composition
    listed = len(messages) - max(prompt.eviction.start_index, count_leading_system(messages))
    added_by_rounds = sum(len(rounds) - 1 for rounds in composition.replacements.values())
    return len(composition.inserted) + listed + added_by_rounds > bounds.summarise_above


def _choose_summary(
    room: _WindowRoom, summaries: Sequence[_UsableSummary], evicted: Evicted | None, in_use: int
) -> _UsableSummary | None:
    """Returns the summary that replaces the beginning of the conversation; None: there is none.

    The summary in use stays, so that the prompt begins as before, if the rest fits and no message after its end is
    missing. Otherwise it is the oldest summary that leaves enough room, or the newest one that fits.

    in_use: the id of the summary in use; 0: none.
    """
    fitting = [each for each in summaries if not room.is_over(each.first_index, each.cut)]
    without_gap = [
        each for each in fitting if evicted is None or each.cut.covered_atoms >= evicted.offset
    ] or fitting
    used = [each for each in without_gap if each.cut.id == in_use]
    roomy = [each for each in without_gap if not room.is_over(each.first_index, each.cut, ROOMY_SHARE)]
    by_preference = (*used, *roomy, *reversed(without_gap), *reversed(summaries))
    return next(iter(by_preference), None)


def _collect_left_out(prompt: Prompt, entries: Sequence[_Entry], staying: frozenset[int]) -> _LeftOut:
    """Returns what is left out of the client's list if these entries stay.

    A message that is replaced by hidden rounds is dropped if none of the rounds stays.
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
    return _LeftOut(frozenset(dropped), remaining)


def _find_evicted(room: _WindowRoom, first_index: int, window_tokens: int) -> Evicted | None:
    """Returns the part of the path that has left the window, for the next requests.

    first_index: the index of the first entry that stays.
    window_tokens: the size of the window that the part has left.
    """
    prompt = room.prompt
    evicted = prompt.eviction.evicted
    tokens = room.tokens(0, first_index)
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
    return Evicted(*position, tokens, window_tokens)


def _list_entries(prompt: Prompt) -> list[_Entry]:
    """Returns the messages after the leading system messages, as an endless window would have them."""
    messages, composition = prompt.request.messages, prompt.composition
    entries = [_Entry(None, each.message) for each in composition.inserted]
    for i in range(max(prompt.eviction.start_index, count_leading_system(messages)), len(messages)):
        if i in composition.replacements:
            entries += [_Entry(i, message) for message in composition.replacements[i]]
        else:
            entries.append(_Entry(i, prompt.render_client_message(i)))
    return entries


def _is_hidden_nudge(prompt: Prompt, index: int | None, message: WireMessage) -> bool:
    """Returns whether an entry is a nudge: it is the only message in the user's role that hidden rounds have."""
    return index in prompt.composition.replacements and message.get("role") == "user"


def _make_window_items(prompt: Prompt, entries: Sequence[_Entry], bounds: Sequence[int]) -> list[WindowItem]:
    """Returns the entries as the window sees them. bounds: the upper bound of each entry's tokens."""
    nudges = {n for n, each in enumerate(prompt.composition.inserted) if each.is_nudge}
    items = []
    results = flag_results(message for _, message in entries)
    for n, ((index, message), is_result) in enumerate(zip(entries, results, strict=True)):
        is_nudge = n in nudges or _is_hidden_nudge(prompt, index, message)
        item = make_window_item(message, bounds[n], is_nudge=is_nudge)
        # The media of a result stay with it.
        items.append(replace(item, role="tool") if is_result and item.role == "user" else item)
    return items


class _WindowRoom:
    """The room in a request's window, and the tokens that its messages take. Tokens are counted when they are needed.

    The parameters `start` and `end` of the methods are indices of entries.
    """

    def __init__(
        self,
        prompt: Prompt,
        count: Callable[[str], int],
        *,
        newer_system: str | None,
        note: NoteRoom,
        rounds: Sequence[WireMessage],
    ) -> None:
        """count: returns the tokens of a text. The other parameters are those of `fit_prompt`."""
        # The messages that would be sent.
        self.entries = _list_entries(prompt)
        self.prompt = prompt
        self._eviction = prompt.eviction
        self._context_tokens = prompt.target.context_window or ANY_WINDOW
        self._count = count
        self._note = note
        system = prompt.system
        self._system_tokens = count(system) if system else 0
        self._newer_system_tokens = self._system_tokens if newer_system is None else count(newer_system)
        self._fixed_tokens = self._count_fixed() + sum(count_message_tokens(m, count) for m in rounds)
        # An upper bound of each entry's tokens, and of all tokens before each entry.
        self._max_entry_tokens = [count_message_tokens(m, count_upper_bound) for _, m in self.entries]
        self._max_tokens_before = [0, *accumulate(self._max_entry_tokens)]
        # The tokens of each entry, and all tokens before each entry; None: not counted yet.
        self._entry_tokens: list[int] | None = None
        self._tokens_before: list[int] | None = None
        # The entries as the window sees them; None: not needed yet.
        self._items: list[WindowItem] | None = None

    def _count_fixed(self) -> int:
        """Counts the parts that are always sent: the client's leading system messages, its schemas, and all tools."""
        request, count = self.prompt.request, self._count
        lead = request.messages[: count_leading_system(request.messages)]
        fields = request.json
        # Upstreams put the schema of a structured reply into the prompt, too.
        schemas = [
            fields.get("tools"),
            fields.get("functions"),
            fields.get("response_format"),
            self.prompt.tools,
        ]
        schema_tokens = sum(count(orjson.dumps(each).decode()) for each in schemas if each)
        return sum(count_message_tokens(message, count) for message in lead) + schema_tokens

    def _fixed_tokens_with(self, cut: SummaryCut | None) -> int:
        if cut is None:
            return self._fixed_tokens + self._system_tokens
        # With another summary the prompt's beginning changes anyway, so the memory section is rendered again.
        system = (
            self._system_tokens if cut.id == self._eviction.used_summary_id else self._newer_system_tokens
        )
        return self._fixed_tokens + system + self._count(cut.text)

    def budget(self, cut: SummaryCut | None = None) -> Budget:
        """Returns the tokens that the messages may take after this summary."""
        return plan_budget(
            self._context_tokens,
            max_tokens=self.prompt.request.max_tokens,
            fixed_tokens=self._fixed_tokens_with(cut),
            note_tokens=self._note.reserved_tokens,
        )

    def list_usable_summaries(self) -> list[_UsableSummary]:
        """Returns the summaries that replace at least one message, and after which the list may begin."""
        summaries = []
        for cut in self._eviction.cuts:
            first_index = self._first_after(cut)
            replaces_messages = first_index > 0 or self._eviction.evicted is not None
            if replaces_messages and may_begin(self.items(), first_index):
                summaries.append(_UsableSummary(first_index, cut))
        return summaries

    def _first_after(self, cut: SummaryCut) -> int:
        """Returns the index of the first entry after a summary."""
        inserted = len(self.prompt.composition.inserted)
        if cut.covered_inserted < inserted:
            return cut.covered_inserted
        listed = range(inserted, len(self.entries))
        return next((n for n in listed if (self.entries[n].client_index or 0) >= cut.first_index), 0)

    def items(self) -> list[WindowItem]:
        """Returns the entries as the window sees them."""
        if self._items is None:
            self._items = _make_window_items(self.prompt, self.entries, self._max_entry_tokens)
        return self._items

    def entry_tokens(self) -> list[int]:
        """Returns the tokens of each entry."""
        if self._entry_tokens is None:
            self._entry_tokens = [count_message_tokens(message, self._count) for _, message in self.entries]
        return self._entry_tokens

    def tokens(self, start: int, end: int) -> int:
        if start == end:
            return 0
        if self._tokens_before is None:
            self._tokens_before = [0, *accumulate(self.entry_tokens())]
        return self._tokens_before[end] - self._tokens_before[start]

    def size_of_prompt(self, staying: Sequence[range], cut: SummaryCut | None) -> _PromptSize:
        """Returns the size of the prompt if these entries stay."""
        if (
            self._context_tokens == ANY_WINDOW
            or self._entry_tokens is None
            or any(list_media(m) for part in staying for _, m in self.entries[part.start : part.stop])
        ):
            return _PromptSize(0, 0)
        fixed = self._fixed_tokens_with(cut)
        tokens = sum(self.tokens(part.start, part.stop) for part in staying)
        return _PromptSize(fixed + tokens, fixed + self.budget(cut).max_tokens_with_note)

    def note_tokens(self, staying: Sequence[range], cut: SummaryCut | None) -> int:
        """Returns the tokens that a note may take: those that these entries leave free, up to the bound of a note."""
        budget, max_tokens = self.budget(cut).max_tokens_with_note, self._note.max_tokens
        bounds = self._max_tokens_before
        if budget - sum(bounds[part.stop] - bounds[part.start] for part in staying) >= max_tokens:
            return max_tokens
        free = budget - sum(self.tokens(part.start, part.stop) for part in staying)
        return max(0, min(max_tokens, free))

    def surplus(self, start: int) -> int:
        """Returns how many messages from `start` on leave because they are too many."""
        bounds = self._eviction.bounds
        return 0 if bounds is None else choose_window_start(self.items()[start:], bounds)

    def evicting_window(self, window: Window) -> int:
        """Returns the tokens of the largest window without room for the messages that left this one."""
        return ANY_WINDOW if window.is_whole and self._is_crowded() else self._context_tokens

    def _is_crowded(self, start: int = 0, share: float = 1.0) -> bool:
        bounds = self._eviction.bounds
        return bounds is not None and len(self.entries) - start > bounds.max_messages * share

    def is_over(self, start: int = 0, cut: SummaryCut | None = None, share: float = 1.0) -> bool:
        """Returns whether the entries from `start` on, after a summary, take more than a share of the window."""
        if self._is_crowded(start, share):
            return True
        max_tokens = self.budget(cut).max_list_tokens * share
        # Bytes are an upper bound of tokens: if they fit, nothing has to be counted.
        if self._max_tokens_before[-1] - self._max_tokens_before[start] <= max_tokens:
            return False
        return self.tokens(start, len(self.entries)) > max_tokens

    def wanted_summary(self, summaries: Sequence[_UsableSummary], *, is_due: bool) -> WantedSummary | None:
        """Returns the summary to make, if the window fills up and there is enough after the newest summary.

        is_due: messages have left the window, and no summary replaces them.
        """
        start, newest_cut = summaries[-1] if summaries else (0, None)
        max_tokens = self.budget(newest_cut).max_list_tokens
        # If the window has no limit of tokens, the bounds of messages decide what stays.
        eviction, bounds = self._eviction, self._eviction.bounds
        retained_tokens = (
            0 if self._context_tokens == ANY_WINDOW else int(max_tokens * eviction.retained_share)
        )
        min_messages = 0 if bounds is None else bounds.min_messages
        newest_id = max((cut.id for cut in eviction.cuts), default=0)
        summary = WantedSummary(retained_tokens, limit_summary(self._context_tokens), min_messages, newest_id)
        is_early = bounds is not None and len(self.entries) - start > bounds.summarise_above
        if is_due or is_early:
            return summary
        if not self.is_over(start, newest_cut, EARLY_SHARE):
            return None
        # A summary covers whole turns, and leaves the last turns as they are.
        items = self.items()
        count = len(self.entries)
        turn_starts = (i for i in range(count - 1, start, -1) if items[i].role == "user")
        end = next((i for i in turn_starts if self.tokens(i, count) >= retained_tokens), start)
        return summary if self.tokens(start, end) >= max_tokens * WORTHWHILE_SHARE else None
