"""The search of a memory for the note of one request, and the choice of the hits in the note."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from msgspec import Struct

from gateway.core.prompt import note_choice, note_query, note_text
from gateway.core.tags import make_mark
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.find_messages import (
    FoundMessages,
    SearchOutcome,
    find_messages,
)
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_tokens import count_tokens
from gateway.run.memory.request_search import RequestSearch
from gateway.run.memory.superseded import find_superseded_exchanges
from gateway.run.memory.visible import shows_origin
from storage.errors import StoreError, StoreTimeout

_log = logging.getLogger("mnemogate")

_NO_MESSAGES = FoundMessages((), "", frozenset(), False)
_ALL_MESSAGES_SHOWN = _NO_MESSAGES._replace(is_all_shown=True)
NO_SEARCH = SearchOutcome(_NO_MESSAGES, note_choice.NO_CHOICE, "")


class NoteBudget(Struct, frozen=True):
    """The tokens that the parts of a note may take."""

    # The most tokens of recalled messages, by `Recaller.limit_recalled_tokens`.
    recalled_tokens: int
    # The part of `recalled_tokens` that has room in this prompt's window.
    fitting_tokens: int
    # The tokens of the line that names the note's mark; 0: the prompt names the mark.
    naming_tokens: int


class NoteSearch(Struct, frozen=True):
    """Searches a memory for a message, and chooses the hits in its note."""

    # Searches the memory for the request.
    search: RequestSearch
    # The tokens that the note may take.
    budget: NoteBudget
    # The names of the speaker and of the user.
    names: Sequence[str]
    # The seconds for which a conversation is idle before its memory edits are confirmed.
    idle_s: float

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
        search, context = self.search, self.search.context
        query = make_named_query(text, self.names)
        if self._is_all_shown(text, query):
            return _ALL_MESSAGES_SHOWN
        found_messages = await find_messages(text, query, search, self.names)
        if not context.is_plain:  # a plain list has nothing in another form
            rule = partial(find_superseded_exchanges, context, self.idle_s)
            superseded_rows = await retry_with_contents(search.store.turns, context.agent, context.tree, rule)
            found_messages = found_messages.without(lambda m: m.exchange_row in superseded_rows, "superseded")
        found_messages = found_messages.without_statements(
            [fact for fact in context.snapshot.standing if fact.seq in search.standing_seqs]
        )
        window = search.prompt.window
        return found_messages.without(
            lambda m: m.kind == "fact" and shows_origin(context, window, m), "shown"
        )

    async def _choose(self, found_messages: FoundMessages) -> note_choice.Choice:
        """Chooses the messages for which the note has room."""
        context, prompt, visible = self.search.context, self.search.prompt, self.search.visible
        budget_tokens = self.budget.fitting_tokens
        if found_messages.is_selection:
            budget_tokens = min(budget_tokens, note_choice.limit_selection(self.budget.recalled_tokens))
        render = partial(
            render_request_note,
            context,
            names_mark=self.budget.naming_tokens > 0,
            is_selection=found_messages.is_selection,
        )
        cut_chars = found_messages.choose_line_chars(budget_tokens)
        changes = prompt.section.changes
        choice = found_messages.choose(budget_tokens, cut_chars, visible)
        # The estimate is too low for some languages, and a full window has no room for a token more.
        while choice.hits and (share := await _measure_room_share(prompt, render(choice.hits, changes))) > 1:
            # If the note takes less than its budget, a slightly smaller budget would give the same note.
            note_tokens = note_text.estimate_tokens(render(choice.hits, ()))
            budget_tokens = min(budget_tokens - 1, int(note_tokens / share) - self.budget.naming_tokens)
            choice = found_messages.choose(budget_tokens, cut_chars, visible)
        return choice

    def _is_all_shown(self, text: str, query: str) -> bool:
        """Returns whether the conversation's notes show all of a young memory, so that no search finds more."""
        search, visible = self.search, self.search.visible
        # The lines of a message may be a template's. Without these lines, other messages are shown in another form.
        if not visible.notes or "\n" in text:
            return False
        messages = search.store.recall.find_cached_messages(
            search.context.agent, search.context.snapshot.numbers, visible.verbatim_seqs
        )
        return messages is not None and note_choice.shows_all(
            visible.notes, messages, query, exclude_atoms=visible.atoms
        )


def make_named_query(text: str, names: Sequence[str]) -> str:
    """Returns the query for a message. names: the names of its speaker and of the user."""
    return note_query.with_speaker(note_query.make_query(text), names)


async def _measure_room_share(prompt: Prompt, note: str) -> float:
    """Returns the share of its room in the window that a note takes, above 1 if it does not fit.

    Returns 0 if the window was not counted.
    """
    room = prompt.window.note_tokens
    if not room or prompt.target.context_window is None:
        return 0.0
    return await count_tokens(prompt.target.model, note) / room


def render_request_note(
    context: MemoryContext,
    hits: Sequence[note_text.NoteHit],
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
