"""Makes the note that goes before the user's last message, from earlier conversations."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.prompt import note_text
from gateway.core.prompt.section import Section
from gateway.core.prompt.shown_blocks import is_mark_named
from gateway.core.request.memory_mode import STORING_MODES
from gateway.core.tags import make_mark
from gateway.run.memory.find_messages import make_search_record
from gateway.run.memory.fitted_window import FittedWindow, NoteRoom
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.note_search import (
    NO_SEARCH,
    NoteBudget,
    NoteSearch,
    make_named_query,
    render_request_note,
)
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.query_vectors import EmbedQuery, QueryVectors, sort_nearest_facts
from gateway.run.memory.recall_result import RecallResult
from gateway.run.memory.request_search import WORDS_TIME_DIVISOR, RecallTime, RequestSearch
from gateway.run.memory.visible import VisibleContent
from gateway.settings import MemorySettings
from storage.errors import StoreError
from storage.search_trace import SearchTrace
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The time for recall is divided by this number for a streamed reply: 30 ms by default, since voice agents stream.
STREAM_TIME_DIVISOR = 5
# A note takes at most a sixteenth of the model's context, and above `_SMALL_NOTE_TOKENS` at most half of that: notes of
# a thousand tokens would fill a window of 16,000 within six turns.
NOTE_CONTEXT_DIVISOR = 16
_SMALL_NOTE_TOKENS = 500
# The least room that a window has for a note: its frame, and a line or two. In a nearly full window, a short note
# costs less than a prefix that changes some turns earlier.
MIN_NOTE_TOKENS = 128


class Recaller(Struct, frozen=True):
    """Makes the notes for messages, and chooses the facts that the memory section shows."""

    # The store of the memories.
    store: Store
    # The table `memory` of the settings.
    settings: MemorySettings
    # Returns the vector of a query; None: memory is searched by words alone.
    embed_query: EmbedQuery | None

    def limit_recalled_tokens(self, context: MemoryContext, naming_tokens: int = 0) -> int:
        """Returns the most tokens of recalled messages in a note; 0: nothing is recalled for this request.

        A note stays in the conversation, so in a small window it has to be small as well.

        naming_tokens: the tokens of the line that names the note's mark. They are part of `memory.recall_tokens`, but
            not of the share of a small window, where the note would hold nothing else.
        """
        scope, context_window = context.request.identity.scope, context.request.target.context_window
        if scope is None or not scope.spans_conversations:
            return 0
        recall_tokens = context.request.spec.definition.recall_tokens
        if recall_tokens is None:
            recall_tokens = self.settings.recall_tokens
        max_tokens = max(0, recall_tokens - naming_tokens)
        if context_window is None:
            return max_tokens
        share_tokens = context_window // NOTE_CONTEXT_DIVISOR
        return min(max_tokens, share_tokens, max(_SMALL_NOTE_TOKENS, share_tokens // 2))

    def choose_note_room(self, context: MemoryContext, section: Section) -> NoteRoom:
        """Returns the room that the window leaves for a note.

        Recalled messages may be cut from the note, but the changed blocks may not.
        """
        # Whether an earlier note names the mark is known only once the window is fitted.
        is_named = is_mark_named((section.text,), make_mark(context.agent.secret))
        naming_tokens = _count_naming_tokens(is_named=is_named)
        recalled_tokens = self.limit_recalled_tokens(context, naming_tokens)
        # A model's own count may be a fifth above the estimate.
        fixed_tokens = naming_tokens * 5 // 4 + _estimate_change_tokens(context, section)
        return NoteRoom(fixed_tokens + min(recalled_tokens, MIN_NOTE_TOKENS), fixed_tokens + recalled_tokens)

    async def with_nearest_facts(
        self, context: MemoryContext, vectors: QueryVectors, text: str, name: str | None
    ) -> MemoryContext:
        """Returns a copy of the context with the standing facts in the order in which the memory section takes them.

        text: the text of the message.
        name: the name of its speaker; None: the message names no speaker.
        """
        if self.embed_query is None or self.limit_recalled_tokens(context) <= 0:
            return context
        query = make_named_query(text, _list_names(context, name))
        time_limit_ms = self._choose_time_limit_ms(context)
        started_at = time.perf_counter()
        try:
            facts = await sort_nearest_facts(
                self.store,
                context.agent,
                context.snapshot,
                vectors,
                query,
                # The search for the note has the rest of the time, and takes the same vector.
                deadline_ms=time_limit_ms - time_limit_ms / WORDS_TIME_DIVISOR,
            )
        except StoreError as error:
            _log.warning(
                "Vectors could not be read, so a memory section shows the newest facts: %s", error.message
            )
            return context
        finally:
            vectors.choosing_s = time.perf_counter() - started_at
        return replace(context, snapshot=replace(context.snapshot, standing=facts))

    async def recall(
        self,
        context: MemoryContext,
        prompt: Prompt,
        vectors: QueryVectors,
        text: str,
        name: str | None = None,
    ) -> RecallResult:
        """Returns the note for the user's last message, which also states changed blocks.

        prompt: the prompt without the note. Recall leaves out the messages that it shows.
        text: the text of the message.
        name: the name of its speaker; None: the message names no speaker.
        """
        budget = self._choose_note_budget(context, prompt)
        started_at = time.perf_counter() - vectors.choosing_s
        trace = SearchTrace() if budget.recalled_tokens > 0 and self._has_recall_record(context) else None
        outcome = NO_SEARCH
        search_ms = 0.0
        if budget.fitting_tokens > 0 and _may_find_more(context, prompt.window):
            search = RequestSearch(
                store=self.store,
                context=context,
                prompt=prompt,
                visible=VisibleContent.of(context, prompt.composition, prompt.window),
                vectors=vectors,
                budget_tokens=budget.fitting_tokens,
                recall_time=RecallTime(self._choose_time_limit_ms(context), started_at),
                trace=trace,
            )
            note_search = NoteSearch(search, budget, _list_names(context, name), self.settings.idle_s)
            outcome = await note_search.search_and_choose(text)
            search_ms = (time.perf_counter() - started_at) * 1000
        found_messages, choice, failure = outcome
        note = render_request_note(
            context,
            choice.hits,
            prompt.section.changes,
            names_mark=budget.naming_tokens > 0,
            is_selection=found_messages.is_selection,
        )
        return RecallResult(
            note,
            note_tokens=note_text.estimate_tokens(note) if choice.hits else 0,
            search_ms=search_ms,
            started_at=started_at,
            hit_count=len(choice.hits),
            failure=failure,
            search=None if trace is None else make_search_record(outcome, trace),
        )

    def _has_recall_record(self, context: MemoryContext) -> bool:
        """Returns whether a record of the search is stored with the turn."""
        return bool(self.settings.keep_why_days) and context.request.identity.mode in STORING_MODES

    def _choose_note_budget(self, context: MemoryContext, prompt: Prompt) -> NoteBudget:
        """Returns the tokens that the parts of a note may take in a prompt whose window is fitted."""
        naming_tokens = _count_naming_tokens(is_named=prompt.names_mark(make_mark(context.agent.secret)))
        recalled_tokens = self.limit_recalled_tokens(context, naming_tokens)
        fitting_tokens = recalled_tokens
        window_tokens = prompt.window.note_tokens
        if window_tokens is not None:
            room_tokens = window_tokens - naming_tokens - _estimate_change_tokens(context, prompt.section)
            # The size of a note is estimated, and may be up to 3% larger.
            fitting_tokens = min(recalled_tokens, room_tokens * 31 // 32)
        return NoteBudget(recalled_tokens, fitting_tokens, naming_tokens)

    def _choose_time_limit_ms(self, context: MemoryContext) -> float:
        """Returns the time for recall in milliseconds."""
        deadline_ms = self.settings.recall_deadline_ms
        return deadline_ms / STREAM_TIME_DIVISOR if context.request.chat.stream else deadline_ms


def _list_names(context: MemoryContext, name: str | None) -> list[str]:
    """Returns the names of a message's speaker and of the user."""
    return [each for each in dict.fromkeys((name, context.request.identity.name)) if each]


def _may_find_more(context: MemoryContext, window: FittedWindow) -> bool:
    """Returns whether memory may have messages that the prompt does not show."""
    match_point = context.plan.match.match_point
    elsewhere_count = context.snapshot.next_seq - 1 - (match_point.length if match_point else 0)
    # Messages that the client leaves out of its list are not put back, and may have to be recalled.
    is_trimmed = context.request.spec.history == "client" and not context.plan.follows_head
    return elsewhere_count > 0 or window.evicted_tokens > 0 or is_trimmed


def _count_naming_tokens(*, is_named: bool) -> int:
    """Returns the tokens of the line that names the note's mark. is_named: True: the prompt names it already."""
    return 0 if is_named else note_text.NAMING_TOKENS


def _estimate_change_tokens(context: MemoryContext, section: Section) -> int:
    """Returns the tokens of a note that only states the changed blocks, without the line that names its mark."""
    if not section.changes:
        return 0
    return note_text.estimate_tokens(render_request_note(context, (), section.changes, names_mark=False))


def render_changes(context: MemoryContext, section: Section, notes: Sequence[str]) -> str:
    """Returns a note that only states the changed blocks. notes: the notes in the prompt."""
    is_named = is_mark_named((section.text, *notes), make_mark(context.agent.secret))
    return render_request_note(context, (), section.changes, names_mark=not is_named)
