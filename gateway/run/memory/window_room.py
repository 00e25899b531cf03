"""The room in a model's window for the messages of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson
from msgspec.structs import replace

from gateway.core.conversation.wire_message import (
    WireMessage,
    count_leading_system,
    flag_results,
    list_shown_media,
)
from gateway.core.prompt.summary import EARLY_SHARE, WORTHWHILE_SHARE, SummaryPlan, limit_summary
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
)
from gateway.run.memory.entry_tokens import EntryTokens
from gateway.run.memory.fitted_window import NoteRoom
from gateway.run.memory.prompt import Prompt
from gateway.tokens import count_message_tokens
from storage.records import ANY_WINDOW


class PromptEntry(NamedTuple):
    """A message of the prompt before it is fitted."""

    # The index of the message in the client's list; None: a stored message, which goes before the list.
    client_index: int | None
    # The message as it goes upstream.
    message: WireMessage


class PromptSize(NamedTuple):
    """The size of a prompt. Both numbers are 0 if nothing was counted, or if not all entries are text."""

    # The tokens of the prompt.
    tokens: int
    # The most tokens that the prompt may have.
    max_tokens: int


class UsableSummary(NamedTuple):
    """A summary that may replace the beginning of the conversation."""

    # The index of the first entry after it.
    first_index: int
    # The summary and its end in the prompt.
    cut: SummaryCut


class WindowRoom:
    """The room in a request's window. The parameter `start` of the methods is an index of `entries`."""

    def __init__(
        self,
        prompt: Prompt,
        count: Callable[[str], int],
        *,
        newer_system: str | None,
        note: NoteRoom,
        rounds: Sequence[WireMessage],
    ) -> None:
        """Counts the parts of the prompt that are always sent.

        count: returns the tokens of a text. The other parameters are those of `fit_prompt`.
        """
        # The messages that would be sent.
        self.entries = _list_entries(prompt)
        self.prompt = prompt
        self._eviction = prompt.eviction
        # The tokens of the model's window.
        self._context_tokens = prompt.target.context_window or ANY_WINDOW
        self._count = count
        self._note = note
        system = prompt.system
        # The tokens of the prompt's system text, and of the text that goes with a newer summary.
        self._system_tokens = count(system) if system else 0
        self._newer_system_tokens = self._system_tokens if newer_system is None else count(newer_system)
        # The tokens of all other parts that are always sent.
        self._fixed_tokens = self._count_fixed() + sum(count_message_tokens(m, count) for m in rounds)
        # The tokens of the entries.
        self.entry_tokens = EntryTokens([entry.message for entry in self.entries], count)
        # The entries as the window sees them; None: not needed yet.
        self._items: list[WindowItem] | None = None

    def _count_fixed(self) -> int:
        """Counts the parts that are always sent: the client's leading system messages, its schemas, and all tools."""
        request, count = self.prompt.request, self._count
        leading_messages = request.messages[: count_leading_system(request.messages)]
        fields = request.json
        # Upstreams put the schema of a structured reply into the prompt, too.
        schemas = [
            fields.get("tools"),
            fields.get("functions"),
            fields.get("response_format"),
            self.prompt.tools,
        ]
        schema_tokens = sum(count(orjson.dumps(each).decode()) for each in schemas if each)
        return sum(count_message_tokens(message, count) for message in leading_messages) + schema_tokens

    def _count_fixed_with(self, cut: SummaryCut | None) -> int:
        """Returns the tokens that are always sent: the fixed parts, the system text and a summary."""
        if cut is None:
            return self._fixed_tokens + self._system_tokens
        # With another summary the prompt's beginning changes anyway, so the memory section is rendered again.
        is_in_use = cut.id == self._eviction.used_summary_id
        system_tokens = self._system_tokens if is_in_use else self._newer_system_tokens
        return self._fixed_tokens + system_tokens + self._count(cut.text)

    def _make_budget(self, cut: SummaryCut | None) -> Budget:
        """Returns the tokens that the messages may take after this summary."""
        return plan_budget(
            self._context_tokens,
            max_tokens=self.prompt.request.max_tokens,
            fixed_tokens=self._count_fixed_with(cut),
            note_tokens=self._note.reserved_tokens,
        )

    def list_usable_summaries(self) -> list[UsableSummary]:
        """Returns the summaries that replace at least one message, and after which the list may begin."""
        summaries = []
        for cut in self._eviction.cuts:
            first_index = self._locate_first_after(cut)
            replaces_messages = first_index > 0 or self._eviction.evicted is not None
            if replaces_messages and may_begin(self._list_items(), first_index):
                summaries.append(UsableSummary(first_index, cut))
        return summaries

    def _locate_first_after(self, cut: SummaryCut) -> int:
        """Returns the index of the first entry after a summary."""
        inserted_count = len(self.prompt.composition.inserted)
        if cut.covered_inserted < inserted_count:
            return cut.covered_inserted
        client_entries = range(inserted_count, len(self.entries))
        return next((n for n in client_entries if (self.entries[n].client_index or 0) >= cut.first_index), 0)

    def _list_items(self) -> list[WindowItem]:
        """Returns the entries as the window sees them."""
        if self._items is None:
            self._items = _make_window_items(self.prompt, self.entries, self.entry_tokens.bounds)
        return self._items

    def measure_prompt(self, ranges: Sequence[range], cut: SummaryCut | None) -> PromptSize:
        """Returns the size of the prompt if some entries stay, after a summary.

        ranges: the indices of the entries that stay.
        """
        if (
            self._context_tokens == ANY_WINDOW
            or not self.entry_tokens.are_counted
            or any(list_shown_media(self.entries[n].message) for part in ranges for n in part)
        ):
            return PromptSize(0, 0)
        fixed_tokens = self._count_fixed_with(cut)
        tokens = sum(map(self.entry_tokens.count, ranges))
        return PromptSize(fixed_tokens + tokens, fixed_tokens + self._make_budget(cut).max_tokens_with_note)

    def count_note_tokens(self, ranges: Sequence[range], cut: SummaryCut | None) -> int:
        """Returns the tokens that a note may take: the tokens that the entries leave free, up to the note's bound.

        ranges: the indices of the entries that stay.
        """
        max_tokens_with_note = self._make_budget(cut).max_tokens_with_note
        max_tokens = self._note.max_tokens
        if max_tokens_with_note - sum(map(self.entry_tokens.bound, ranges)) >= max_tokens:
            return max_tokens
        free_tokens = max_tokens_with_note - sum(map(self.entry_tokens.count, ranges))
        return max(0, min(max_tokens, free_tokens))

    def count_surplus(self, start: int) -> int:
        """Returns the number of messages from `start` on that leave because they are too many."""
        bounds = self._eviction.bounds
        return 0 if bounds is None else choose_window_start(self._list_items()[start:], bounds)

    def fit_entries(self, start: int, cut: SummaryCut | None) -> Window:
        """Returns the entries from `start` on that fit after a summary. Its ranges are of indices of entries."""
        if not self.is_over(start, cut):
            return Window((range(start, len(self.entries)),))
        items, budget = self._list_items()[start:], self._make_budget(cut)
        window = fit_window(items, budget, lambda: self.entry_tokens.count_each()[start:])
        ranges = tuple(range(start + part.start, start + part.stop) for part in window.ranges)
        return replace(window, ranges=ranges)

    def choose_evicting_window(self, window: Window) -> int:
        """Returns the tokens of the largest window without room for the messages that left this one."""
        return ANY_WINDOW if window.is_whole and self._exceeds_bounds() else self._context_tokens

    def _exceeds_bounds(self, start: int = 0, share: float = 1.0) -> bool:
        """Returns whether the entries from `start` on are more than a share of the agent's bound."""
        bounds = self._eviction.bounds
        return bounds is not None and len(self.entries) - start > bounds.max_messages * share

    def is_over(self, start: int = 0, cut: SummaryCut | None = None, share: float = 1.0) -> bool:
        """Returns whether the entries from `start` on, after a summary, take more than a share of the window."""
        if self._exceeds_bounds(start, share):
            return True
        max_tokens = self._make_budget(cut).max_list_tokens * share
        indices = range(start, len(self.entries))
        # Bytes are an upper bound of tokens: if they fit, nothing has to be counted.
        if self.entry_tokens.bound(indices) <= max_tokens:
            return False
        return self.entry_tokens.count(indices) > max_tokens

    def plan_summary(self, summaries: Sequence[UsableSummary], *, is_due: bool) -> SummaryPlan | None:
        """Returns the plan of a summary to make, if the window fills up and there is enough after the newest summary.

        is_due: True: messages have left the window, and no summary replaces them.
        """
        eviction, bounds = self._eviction, self._eviction.bounds
        if eviction.retained_share is None:
            return None
        start, newest_cut = summaries[-1] if summaries else (0, None)
        max_tokens = self._make_budget(newest_cut).max_list_tokens
        # If the window has no limit of tokens, the bounds of messages decide which messages stay.
        retained_tokens = (
            0 if self._context_tokens == ANY_WINDOW else int(max_tokens * eviction.retained_share)
        )
        min_messages = 0 if bounds is None else bounds.min_messages
        newest_id = max((cut.id for cut in eviction.cuts), default=0)
        plan = SummaryPlan(retained_tokens, limit_summary(self._context_tokens), min_messages, newest_id)
        is_early = bounds is not None and len(self.entries) - start > bounds.summarise_above
        if is_due or is_early:
            return plan
        if not self.is_over(start, newest_cut, EARLY_SHARE):
            return None
        # A summary covers whole turns, and leaves the last turns as they are.
        items = self._list_items()
        end = len(self.entries)
        turn_starts = (i for i in range(end - 1, start, -1) if items[i].role == "user")
        count = self.entry_tokens.count
        covered_end = next((i for i in turn_starts if count(range(i, end)) >= retained_tokens), start)
        return plan if count(range(start, covered_end)) >= max_tokens * WORTHWHILE_SHARE else None


def _list_entries(prompt: Prompt) -> list[PromptEntry]:
    """Returns the messages after the leading system messages, as an endless window would have them."""
    messages, composition = prompt.request.messages, prompt.composition
    entries = [PromptEntry(None, each.message) for each in composition.inserted]
    for i in range(max(prompt.eviction.start_index, count_leading_system(messages)), len(messages)):
        if i in composition.replacements:
            entries += [PromptEntry(i, message) for message in composition.replacements[i]]
        else:
            entries.append(PromptEntry(i, prompt.render_client_message(i)))
    return entries


def _make_window_items(
    prompt: Prompt, entries: Sequence[PromptEntry], max_tokens: Sequence[int]
) -> list[WindowItem]:
    """Returns the entries as the window sees them. max_tokens: an upper bound of the tokens of each entry."""
    nudges = {n for n, each in enumerate(prompt.composition.inserted) if each.is_nudge}
    hidden_rounds = prompt.composition.replacements
    items = []
    results = flag_results(message for _, message in entries)
    for n, ((index, message), is_result) in enumerate(zip(entries, results, strict=True)):
        # Of the messages of hidden rounds, only a nudge has the user's role.
        is_nudge = n in nudges or (index in hidden_rounds and message.get("role") == "user")
        item = make_window_item(message, max_tokens[n], is_nudge=is_nudge)
        # The media of a result stay with it.
        items.append(replace(item, role="tool") if is_result and item.role == "user" else item)
    return items
