"""Recall: the note that goes before the user's last message, made of earlier conversations."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.prompt import note_choice, note_query, note_text
from gateway.core.prompt.section import Section
from gateway.core.prompt.shown_blocks import is_mark_named
from gateway.core.request.memory_mode import STORING_MODES
from gateway.core.tags import mark_of
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.find_messages import (
    FoundMessages,
    SearchOutcome,
    choose_hit_limit,
    choose_selection_limit,
    find_messages,
    make_search_record,
)
from gateway.run.memory.fitted_window import FittedWindow, NoteRoom
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import count_tokens
from gateway.run.memory.query_vectors import EmbedQuery, QueryVectors, sort_nearest_facts
from gateway.run.memory.recall_result import RecallResult
from gateway.run.memory.superseded import find_superseded_exchanges
from gateway.run.memory.visible import VisibleContent, shows_origin
from gateway.settings import MemorySettings
from storage.errors import StoreError, TooSlow
from storage.records import Message
from storage.search_trace import SearchTrace
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The most hits that are read if a part of a client's list has left the window. Many of them are visible in the window,
# and are left out only when they are read.
MAX_HITS = 40
# Short messages are read for this many times the budget, since some of them repeat others.
SPARE_BUDGETS = 2
# Streamed replies get a fifth of the time for recall: 30 ms by default, since voice agents ask for them.
STREAM_TIME_PARTS = 5
# The search by words has a third of the time for recall to itself.
WORDS_TIME_PARTS = 3
# A note may take a sixteenth of the model's context, but beyond FEW_TOKENS half of that: notes of a thousand tokens
# would fill a window of 16,000 within six turns.
NOTE_CONTEXT_PARTS = 16
FEW_TOKENS = 500
# The window has at least this room for a note: its frame, and a line or two. In a nearly full window a short note is
# better than a prefix that changes some turns earlier.
MIN_NOTE_TOKENS = 128


_NO_MESSAGES = FoundMessages((), "", frozenset(), False)
_ALL_MESSAGES_SHOWN = _NO_MESSAGES._replace(is_all_shown=True)
_NO_SEARCH = SearchOutcome(_NO_MESSAGES, note_choice.NO_CHOICE, "")


class Recaller(Struct, frozen=True):
    """Makes the notes of what memory has for a message, and chooses the facts that the memory section shows."""

    store: Store
    settings: MemorySettings
    # None: memory is searched by words alone.
    embed_query: EmbedQuery | None

    def note_budget(self, context: MemoryContext, naming_tokens: int = 0) -> int:
        """Returns the tokens that recalled messages may take in a note; 0: nothing is recalled for this request.

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
        budget = max(0, recall_tokens - naming_tokens)
        if context_window is None:
            return budget
        parts = NOTE_CONTEXT_PARTS
        return min(budget, context_window // parts, max(FEW_TOKENS, context_window // (2 * parts)))

    def note_room(self, context: MemoryContext, section: Section) -> NoteRoom:
        """Returns the room for a note. The changes that it has to state are not cut, recalled messages may be."""
        # Whether an earlier note names the mark is known only once the window is fitted.
        is_named = is_mark_named((section.text,), mark_of(context.agent.secret))
        naming_tokens = 0 if is_named else note_text.NAMING_TOKENS
        budget = self.note_budget(context, naming_tokens)
        # A model's own count may be a fifth above the estimate.
        fixed = naming_tokens * 5 // 4 + _change_tokens(context, section)
        return NoteRoom(fixed + min(budget, MIN_NOTE_TOKENS), fixed + budget)

    async def with_nearest_facts(
        self, context: MemoryContext, vectors: QueryVectors, text: str, name: str | None
    ) -> MemoryContext:
        """Returns the context with the standing facts in the order in which the memory section takes them.

        text: the message.
        name: the name of its speaker; None: the message names no speaker.
        """
        if self.embed_query is None or self.note_budget(context) <= 0:
            return context
        query = _query_of(text, _names(context, name))
        limit_ms = self.limit_ms(context)
        started_at = time.perf_counter()
        try:
            facts = await sort_nearest_facts(
                self.store,
                context.agent,
                context.snapshot,
                vectors,
                query,
                # The search for the note has the rest of the time, and takes the same vector.
                limit_ms - limit_ms / WORDS_TIME_PARTS,
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

        prompt: the prompt without the note. Recall leaves out what it shows.
        text: the message.
        name: the name of its speaker; None: the message names no speaker.
        """
        naming_tokens = 0 if prompt.names_mark(mark_of(context.agent.secret)) else note_text.NAMING_TOKENS
        budget = self._choose_budget(context, prompt, naming_tokens)
        started_at = time.perf_counter() - vectors.choosing_s
        trace = SearchTrace() if self._has_recall_record(context, naming_tokens) else None
        outcome = _NO_SEARCH
        search_ms = 0.0
        if budget > 0 and _may_find_more(context, prompt.window):
            search = _NoteSearch(
                recaller=self,
                context=context,
                prompt=prompt,
                visible=VisibleContent.of(context, prompt.composition, prompt.window),
                vectors=vectors,
                budget=budget,
                naming_tokens=naming_tokens,
                names=_names(context, name),
                started_at=started_at,
                trace=trace,
            )
            outcome = await search.search_and_choose(text)
            search_ms = (time.perf_counter() - started_at) * 1000
        found, choice, failure = outcome
        note = _render(
            context,
            choice.hits,
            prompt.section.changes,
            names_mark=naming_tokens > 0,
            is_selection=found.is_selection,
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

    def _has_recall_record(self, context: MemoryContext, naming_tokens: int) -> bool:
        """Returns whether a record of the search is stored with the turn."""
        return (
            bool(self.settings.keep_why_days)
            and context.request.identity.mode in STORING_MODES
            and self.note_budget(context, naming_tokens) > 0
        )

    def _choose_budget(self, context: MemoryContext, prompt: Prompt, naming_tokens: int) -> int:
        """Returns the tokens that recalled messages may take in this prompt's window."""
        budget = self.note_budget(context, naming_tokens)
        room = prompt.window.note_tokens
        if room is None:
            return budget
        # The size of a note is estimated, and may be up to 3% larger.
        return min(budget, (room - naming_tokens - _change_tokens(context, prompt.section)) * 31 // 32)

    def limit_ms(self, context: MemoryContext) -> float:
        """Returns the time for recall."""
        deadline_ms = self.settings.recall_deadline_ms
        return deadline_ms / STREAM_TIME_PARTS if context.request.chat.stream else deadline_ms


class _NoteSearch(Struct, frozen=True):
    """The search of a memory for the note of one request. Implements `MemorySearch`, which documents the methods."""

    recaller: Recaller
    context: MemoryContext
    prompt: Prompt
    visible: VisibleContent
    vectors: QueryVectors
    # The tokens of `Recaller.note_budget` that have room in this prompt's window.
    budget: int
    # The tokens of the line that names the note's mark; 0: the prompt names it.
    naming_tokens: int
    # The names of the speaker and of the user.
    names: Sequence[str]
    # When the recall started, by `time.perf_counter`.
    started_at: float
    # Takes the ranking of the last search by words.
    trace: SearchTrace | None

    @property
    def standing(self) -> Collection[int]:
        """The numbers of the facts that the memory section shows."""
        sent = self.prompt.section.sent
        return () if sent is None else sent.known.get("standing", ())

    async def search_and_choose(self, text: str) -> SearchOutcome:
        """Searches for a message, and chooses what a note shows."""
        found = _NO_MESSAGES
        try:
            found = await self._search(text)
            choice = await self._choose(found) if found.messages else note_choice.NO_CHOICE
            return SearchOutcome(found, choice, "")
        except StoreError as error:
            # The reply does not wait for a memory that answers late or not at all: the memory has no hits then.
            _log.warning(
                "Memory could not be searched for a reply, which was made without: %s", error.message
            )
            is_late = isinstance(error, TooSlow)
            return SearchOutcome(found, note_choice.NO_CHOICE, "late" if is_late else "failed")

    async def _search(self, text: str) -> FoundMessages:
        """Returns the messages that memory has for a message and the prompt does not show. Raises: StoreError."""
        context = self.context
        query = _query_of(text, self.names)
        if self._is_all_shown(text, query):
            return _ALL_MESSAGES_SHOWN
        found = await find_messages(text, query, self, self.names)
        if not context.is_plain:  # a plain list has nothing in another form
            rule = partial(find_superseded_exchanges, context, self.recaller.settings.idle_s)
            superseded = await retry_with_contents(
                self.recaller.store.turns, context.agent, context.tree, rule
            )
            found = found.rule_out("superseded", lambda m: m.exchange_row in superseded)
        found = found.without_statements(
            [fact for fact in context.snapshot.standing if fact.seq in self.standing]
        )
        window = self.prompt.window
        return found.rule_out("shown", lambda m: m.source == "fact" and shows_origin(context, window, m))

    async def _choose(self, found: FoundMessages) -> note_choice.Choice:
        """Chooses the messages for which the note has room."""
        context, budget = self.context, self.budget
        if found.is_selection:
            budget = min(
                budget, note_choice.limit_selection(self.recaller.note_budget(context, self.naming_tokens))
            )
        render = partial(_render, context, names_mark=self.naming_tokens > 0, is_selection=found.is_selection)
        cut_chars = found.choose_line_chars(budget)
        changes = self.prompt.section.changes
        choice = found.choose(budget, cut_chars, self.visible)
        # The estimate is too low for some languages, and a full window has no room for a token more.
        while (
            choice.hits and (excess := await _measure_excess(self.prompt, render(choice.hits, changes))) > 1
        ):
            # If the note takes less than its budget, a slightly smaller budget would give the same note.
            note_tokens = note_text.estimate_tokens(render(choice.hits, ()))
            budget = min(budget - 1, int(note_tokens / excess) - self.naming_tokens)
            choice = found.choose(budget, cut_chars, self.visible)
        return choice

    def _is_all_shown(self, text: str, query: str) -> bool:
        """Returns whether the conversation's notes show all of a young memory, so that no search finds more."""
        context, visible = self.context, self.visible
        # The lines of a message may be a template's. Without these lines, other messages are shown in another form.
        if not visible.notes or "\n" in text:
            return False
        messages = self.recaller.store.recall.find_cached_messages(
            context.agent, context.snapshot.numbers, visible.verbatim_seqs
        )
        return messages is not None and note_choice.shows_all(
            visible.notes, messages, query, exclude_atoms=visible.atoms
        )

    # -- as `MemorySearch`

    async def search(self, query: str) -> list[Message]:
        recaller, context, visible = self.recaller, self.context, self.visible
        # A vector that does not come in time leaves time for a search by words.
        wait_ms = self._measure_remaining_ms() - recaller.limit_ms(context) / WORDS_TIME_PARTS
        vector = await self.vectors.find_vector(context.agent, query, wait_ms)
        has_evicted = self.prompt.window.evicted_tokens > 0 and not visible.verbatim_seqs
        return await recaller.store.recall.search(
            context.agent,
            query,
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=MAX_HITS if has_evicted else choose_hit_limit(self.budget),
            room=SPARE_BUDGETS * self.budget,
            only_strong=True,
            deadline_ms=self._measure_remaining_ms(),
            vector=vector,
            trace=self.trace,
        )

    async def select(self, query: str) -> list[Message]:
        context, visible = self.context, self.visible
        if note_text.has_selection(visible.notes):
            return []
        return await self.recaller.store.recall.find_most_telling(
            context.agent,
            query,
            opens=_opens_conversation(context),
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=choose_selection_limit(len(self.standing)),
            deadline_ms=self._measure_remaining_ms(),
        )

    async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
        context = self.context
        return await self.recaller.store.recall.find_around(
            context.agent,
            message.seq,
            before=before,
            numbers=context.snapshot.numbers,
            skip=self.visible.verbatim_seqs,
            limit=choose_hit_limit(self.budget),
            deadline_ms=self._measure_remaining_ms(),
        )

    def _measure_remaining_ms(self) -> float:
        """Returns what is left of the time for recall; at least 1, so that a search ends as too slow."""
        return max(1.0, self.recaller.limit_ms(self.context) - (time.perf_counter() - self.started_at) * 1000)


def _names(context: MemoryContext, name: str | None) -> list[str]:
    """Returns the names of a message's speaker and of the user."""
    return [each for each in dict.fromkeys((name, context.request.identity.name)) if each]


def _query_of(text: str, names: Sequence[str]) -> str:
    """Returns the query for a message. names: of its speaker and of the user."""
    return note_query.with_speaker(note_query.make_query(text), names)


def _may_find_more(context: MemoryContext, window: FittedWindow) -> bool:
    """Returns whether the memory may have messages that the prompt does not show."""
    match_point = context.plan.match.match_point
    in_other_conversations = context.snapshot.next_seq - 1 - (match_point.length if match_point else 0)
    # Messages that the client leaves out of its list are not put back, and may have to be recalled.
    is_trimmed = context.request.spec.history == "client" and not context.plan.follows_head
    return in_other_conversations > 0 or window.evicted_tokens > 0 or is_trimmed


def _opens_conversation(context: MemoryContext) -> bool:
    """Returns whether this is the user's first message in the conversation."""
    user_messages = (message for message in context.plan.messages if message.get("role") == "user")
    return context.plan.match.match_point is None and len(list(user_messages)) == 1


async def _measure_excess(prompt: Prompt, note: str) -> float:
    """Returns the tokens of a note as a multiple of its room in the window; 0: the window was not counted."""
    room, target = prompt.window.note_tokens, prompt.target
    if not room or target.context_window is None:
        return 0.0
    return await count_tokens(target.model, note) / room


def _change_tokens(context: MemoryContext, section: Section) -> int:
    """Returns the tokens of a note that only states the changed blocks, without the line that names its mark."""
    if not section.changes:
        return 0
    return note_text.estimate_tokens(_render(context, (), section.changes, names_mark=False))


def render_changes(context: MemoryContext, section: Section, notes: Sequence[str]) -> str:
    """Returns a note that only states the changed blocks. notes: the notes in the prompt."""
    is_named = is_mark_named((section.text, *notes), mark_of(context.agent.secret))
    return _render(context, (), section.changes, names_mark=not is_named)


def _render(
    context: MemoryContext,
    hits: Sequence[note_text.Recalled],
    changes: Sequence[str],
    *,
    names_mark: bool,
    is_selection: bool = False,
) -> str:
    """Returns the note of a request, as `note_text.render_note`."""
    return note_text.render_note(
        hits,
        changes,
        context.plan.query.now,
        mark=mark_of(context.agent.secret),
        is_selection=is_selection,
        names_mark=names_mark,
    )
