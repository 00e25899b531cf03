"""The search of a memory for the note of one request, and the choice of the hits in the note."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from functools import partial

from msgspec import Struct

from gateway.core.prompt import note_choice, note_query, note_text
from gateway.core.tags import make_mark
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.find_messages import (
    FoundMessages,
    SearchOutcome,
    choose_hit_limit,
    choose_selection_limit,
    find_messages,
)
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import count_tokens
from gateway.run.memory.query_vectors import QueryVectors
from gateway.run.memory.superseded import find_superseded_exchanges
from gateway.run.memory.visible import VisibleContent, shows_origin
from storage.errors import StoreError, StoreTimeout
from storage.records import Message
from storage.search_trace import SearchTrace
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The most hits that are read if a part of a client's list has left the window. Many hits are visible in the window, and
# are left out only when they are read.
MAX_HITS = 40
# Short messages are read for this many times the budget, since some of them repeat others.
SPARE_BUDGETS = 2
# The search by words has a third of the time for recall to itself.
WORDS_TIME_PARTS = 3

_NO_MESSAGES = FoundMessages((), "", frozenset(), False)
_ALL_MESSAGES_SHOWN = _NO_MESSAGES._replace(is_all_shown=True)
NO_SEARCH = SearchOutcome(_NO_MESSAGES, note_choice.NO_CHOICE, "")


class NoteSearch(Struct, frozen=True):
    """The search of a memory for the note of one request. Implements `MemorySearch`, which documents the methods."""

    store: Store
    # The seconds for which a conversation is idle before its memory edits are confirmed.
    idle_s: float
    # The time for recall.
    limit_ms: float
    # The memory of the request.
    context: MemoryContext
    # The prompt without the note.
    prompt: Prompt
    # The content that the prompt shows already.
    visible: VisibleContent
    # The vectors of queries, each made once.
    vectors: QueryVectors
    # The tokens that recalled messages may take in a note, by `Recaller.choose_note_budget`.
    note_budget_tokens: int
    # The part of `note_budget_tokens` that has room in this prompt's window.
    budget_tokens: int
    # The tokens of the line that names the note's mark; 0: the prompt names the mark.
    naming_tokens: int
    # The names of the speaker and of the user.
    names: Sequence[str]
    # The time at which the recall started, by `time.perf_counter`.
    started_at: float
    # Gets the ranking of the last search by words; None: no ranking is recorded.
    trace: SearchTrace | None

    @property
    def _standing_seqs(self) -> Collection[int]:
        """The numbers of the facts that the memory section shows."""
        section = self.prompt.section.sent
        return () if section is None else section.known.get("standing", ())

    async def search_and_choose(self, text: str) -> SearchOutcome:
        """Searches for a message, and chooses the hits that a note shows."""
        found_messages = _NO_MESSAGES
        try:
            found_messages = await self._search(text)
            choice = await self._choose(found_messages) if found_messages.messages else note_choice.NO_CHOICE
            return SearchOutcome(found_messages, choice, "")
        except StoreError as error:
            # The reply does not wait for a memory that answers late or not at all: the memory has no hits then.
            _log.warning(
                "Memory could not be searched for a reply, which was made without: %s", error.message
            )
            is_late = isinstance(error, StoreTimeout)
            return SearchOutcome(found_messages, note_choice.NO_CHOICE, "late" if is_late else "failed")

    async def _search(self, text: str) -> FoundMessages:
        """Returns the stored messages that fit a message and are not in the prompt. Raises: StoreError."""
        context = self.context
        query = make_named_query(text, self.names)
        if self._is_all_shown(text, query):
            return _ALL_MESSAGES_SHOWN
        found_messages = await find_messages(text, query, self, self.names)
        if not context.is_plain:  # a plain list has nothing in another form
            rule = partial(find_superseded_exchanges, context, self.idle_s)
            superseded_rows = await retry_with_contents(self.store.turns, context.agent, context.tree, rule)
            found_messages = found_messages.without(lambda m: m.exchange_row in superseded_rows, "superseded")
        found_messages = found_messages.without_statements(
            [fact for fact in context.snapshot.standing if fact.seq in self._standing_seqs]
        )
        window = self.prompt.window
        return found_messages.without(
            lambda m: m.kind == "fact" and shows_origin(context, window, m), "shown"
        )

    async def _choose(self, found_messages: FoundMessages) -> note_choice.Choice:
        """Chooses the messages for which the note has room."""
        context, budget_tokens = self.context, self.budget_tokens
        if found_messages.is_selection:
            budget_tokens = min(budget_tokens, note_choice.limit_selection(self.note_budget_tokens))
        render = partial(
            render_request_note,
            context,
            names_mark=self.naming_tokens > 0,
            is_selection=found_messages.is_selection,
        )
        cut_chars = found_messages.choose_line_chars(budget_tokens)
        changes = self.prompt.section.changes
        choice = found_messages.choose(budget_tokens, cut_chars, self.visible)
        # The estimate is too low for some languages, and a full window has no room for a token more.
        while (
            choice.hits and (excess := await _measure_excess(self.prompt, render(choice.hits, changes))) > 1
        ):
            # If the note takes less than its budget, a slightly smaller budget would give the same note.
            note_tokens = note_text.estimate_tokens(render(choice.hits, ()))
            budget_tokens = min(budget_tokens - 1, int(note_tokens / excess) - self.naming_tokens)
            choice = found_messages.choose(budget_tokens, cut_chars, self.visible)
        return choice

    def _is_all_shown(self, text: str, query: str) -> bool:
        """Returns whether the conversation's notes show all of a young memory, so that no search finds more."""
        visible = self.visible
        # The lines of a message may be a template's. Without these lines, other messages are shown in another form.
        if not visible.notes or "\n" in text:
            return False
        messages = self.store.recall.find_cached_messages(
            self.context.agent, self.context.snapshot.numbers, visible.verbatim_seqs
        )
        return messages is not None and note_choice.shows_all(
            visible.notes, messages, query, exclude_atoms=visible.atoms
        )

    # -- the methods of `MemorySearch`

    async def search(self, query: str) -> list[Message]:
        """Searches the memory without the messages that the prompt shows, in the time that is left."""
        context, visible = self.context, self.visible
        # A vector that does not come in time leaves time for a search by words.
        wait_ms = self._measure_remaining_ms() - self.limit_ms / WORDS_TIME_PARTS
        vector = await self.vectors.find_vector(context.agent, query, wait_ms)
        has_evicted = self.prompt.window.evicted_tokens > 0 and not visible.verbatim_seqs
        return await self.store.recall.search(
            context.agent,
            query,
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=MAX_HITS if has_evicted else choose_hit_limit(self.budget_tokens),
            room=SPARE_BUDGETS * self.budget_tokens,
            only_strong=True,
            deadline_ms=self._measure_remaining_ms(),
            vector=vector,
            trace=self.trace,
        )

    async def select(self, query: str) -> list[Message]:
        """Returns the messages that show most of the whole memory, unless a note of the conversation has them."""
        context, visible = self.context, self.visible
        if note_text.has_selection(visible.notes):
            return []
        return await self.store.recall.find_most_telling(
            context.agent,
            query,
            is_opening=_opens_conversation(context),
            numbers=context.snapshot.numbers,
            skip=visible.verbatim_seqs,
            limit=choose_selection_limit(len(self._standing_seqs)),
            deadline_ms=self._measure_remaining_ms(),
        )

    async def find_neighbours(self, message: Message, *, before: bool) -> list[Message]:
        context = self.context
        return await self.store.recall.find_around(
            context.agent,
            message.seq,
            looks_back=before,
            numbers=context.snapshot.numbers,
            skip=self.visible.verbatim_seqs,
            limit=choose_hit_limit(self.budget_tokens),
            deadline_ms=self._measure_remaining_ms(),
        )

    def _measure_remaining_ms(self) -> float:
        """Returns the milliseconds that are left for recall, at least 1, so that a search ends as too slow."""
        return max(1.0, self.limit_ms - (time.perf_counter() - self.started_at) * 1000)


def make_named_query(text: str, names: Sequence[str]) -> str:
    """Returns the query for a message. names: the names of its speaker and of the user."""
    return note_query.with_speaker(note_query.make_query(text), names)


def _opens_conversation(context: MemoryContext) -> bool:
    """Returns whether this is the user's first message in the conversation."""
    user_messages = (message for message in context.plan.messages if message.get("role") == "user")
    return context.plan.match.match_point is None and len(list(user_messages)) == 1


async def _measure_excess(prompt: Prompt, note: str) -> float:
    """Returns the tokens of a note as a multiple of its room in the window, or 0 if the window was not counted."""
    room = prompt.window.note_tokens
    if not room or prompt.target.context_window is None:
        return 0.0
    return await count_tokens(prompt.target.model, note) / room


def render_request_note(
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
        mark=make_mark(context.agent.secret),
        is_selection=is_selection,
        names_mark=names_mark,
    )
