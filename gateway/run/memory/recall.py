"""Recall: the note that goes before the user's last message, made of what earlier conversations said."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from gateway.core.prompt import note
from gateway.core.prompt.section import Section
from gateway.run.memory.contents import with_contents
from gateway.run.memory.fit import count_tokens
from gateway.run.memory.known import Known
from gateway.run.memory.prompt import NoteRoom, Prompt, RecallResult
from gateway.run.memory.visible import VisibleContent, replaced, shows_origin
from gateway.settings import MemorySettings
from storage.errors import StoreError
from storage.records import Message, Vector
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# (agent, text, milliseconds that there are) -> the text's vector, or None
EmbedQuery = Callable[[int, str, float], Awaitable[Vector | None]]

# A line of a note takes at least this much where messages are long, so that no more hits are read than may fit.
LINE_TOKENS = 40
# The bounds on the hits that are read. MOST_HITS is for a client's list of which a part has left the window: many hits
# are visible anyway then, and are left out only when they are read.
LEAST_HITS, MOST_HITS = 16, 40
# Of short messages more are read: for so many times the budget, since some of them repeat others.
SPARE = 2
# Streamed replies get a fifth of the time for recall: 30 ms by default, since voice agents ask for them.
STREAM_HASTE = 5
# A note may take one part in this many of the model's context; beyond FEW_TOKENS one part in twice as many, since notes
# of a thousand tokens would fill a window of 16,000 within six turns.
NOTE_SHARE = 16
FEW_TOKENS = 500
# The window keeps so much free for a note: its frame, and a line or two. In a nearly full window a short note is better
# than a prefix that changes some turns earlier.
LEAST_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Recaller:
    """Makes notes of what memory has for a message. embed_query: None: memory is searched by words alone."""

    store: Store
    settings: MemorySettings
    embed_query: EmbedQuery | None

    def budget(self, known: Known) -> int:
        """Returns the tokens that a note may take; 0: nothing is recalled for this request.

        A note stays in the conversation, so in a small window it has to be small as well.
        """
        scope, context = known.asked.identity.scope, known.asked.target.context_window
        if scope is None or not scope.spans:
            return 0
        defined = known.asked.spec.defined
        own = None if defined is None else defined.recall_tokens
        budget = self.settings.recall_tokens if own is None else own
        if context is None:
            return budget
        return min(budget, context // NOTE_SHARE, max(FEW_TOKENS, context // (2 * NOTE_SHARE)))

    def room(self, known: Known, section: Section) -> NoteRoom:
        """Returns the room for a note: the changes that it has to name are not cut short, what it recalls may be."""
        budget, changes = self.budget(known), _change_tokens(known, section)
        return NoteRoom(changes + min(budget, LEAST_TOKENS), changes + budget)

    async def recall(self, known: Known, prompt: Prompt, text: str) -> RecallResult:
        """Returns the note for the user's last message, which also names changed blocks.

        text: that message. prompt: what is visible already.
        """
        section, window = prompt.section, prompt.window
        is_cut = window.evicted_tokens > 0
        anchor = known.plan.match.anchor
        elsewhere = known.look.next_seq - 1 - (anchor.length if anchor else 0)
        budget, begun = self.budget(known), time.perf_counter()
        if window.note_tokens is not None:
            left = window.note_tokens - _change_tokens(known, section)
            # The size of a note is estimated, and may be up to 3% more.
            budget = min(budget, left * 31 // 32)
        chosen: list[note.Recalled] = []
        has_failed, is_selection, ms = False, False, 0.0
        render = partial(note.render_note, now=known.plan.query.now)
        if budget > 0 and (elsewhere > 0 or is_cut):
            query = note.make_query(text)
            visible = VisibleContent.of(known, prompt.composition, window)
            try:
                found = await self._search(known, query, visible, budget, begun, is_cut=is_cut)
                shared = note.shared_lines(text, found)
                own = note.make_query(note.without_lines(text, shared)) if shared else ""
                if own:
                    # Some applications put every message into the same template, whose words would find themselves.
                    rest, query = note.told_apart(found, shared), own
                    found = [*await self._search(known, query, visible, budget, begun, is_cut=is_cut), *rest]
                else:
                    shared = frozenset()
                if not found and note.asks_for_all(query, visible.notes, opens=_opens(known)):
                    found = await self._select(known, query, visible, begun)
                    is_selection, query, render = True, "", partial(render, is_selection=True)
                    budget = min(budget, note.selection_budget(self.budget(known)))
                if not known.is_plain:  # a plain list says nothing otherwise
                    rule = partial(replaced, known, self.settings.idle_s)
                    gone = await with_contents(self.store.turns, known.agent, known.tree, rule)
                    found = [m for m in found if m.exchange not in gone]
                choose = partial(
                    note.choose,
                    [m for m in found if m.source != "fact" or not shows_origin(known, window, m)],
                    query,
                    exclude_atoms=visible.atoms,
                    noted=visible.notes,
                    shared=shared,
                    cut_chars=min(note.CUT_CHARS, 2 * budget),
                    is_selection=is_selection,
                )
                chosen = choose(budget_tokens=budget)
                # The estimate is too low for some languages, and a full window has no room for a token more.
                while chosen and (excess := await _excess(prompt, render(chosen, section.changes))) > 1:
                    # The note may take less than its budget, and would be the same with a little less of it.
                    taken = note.estimate_tokens(render(chosen, ()))
                    budget = min(budget - 1, int(taken / excess))
                    chosen = choose(budget_tokens=budget)
            except StoreError as error:
                # A memory that answers late or not at all is one without hits; the reply does not wait for it.
                has_failed = True
                _log.warning("recall failed: %s", error.message)
            ms = (time.perf_counter() - begun) * 1000
        rendered = render(chosen, section.changes)
        return RecallResult(rendered, note.estimate_tokens(rendered) if chosen else 0, ms, has_failed)

    async def _select(self, known: Known, query: str, visible: VisibleContent, begun: float) -> list[Message]:
        """Returns what tells most of the whole memory, where a text has nothing that could be searched for."""
        return await self.store.recall.most_telling(
            known.agent,
            query,
            numbers=known.look.numbers,
            skip=visible.numbers,
            limit=LEAST_HITS,
            deadline_ms=_left(self._limit_ms(known), begun),
        )

    def _limit_ms(self, known: Known) -> float:
        """Returns the time for recall."""
        return self.settings.recall_deadline_ms / (STREAM_HASTE if known.asked.request.stream else 1)

    async def _search(
        self, known: Known, query: str, visible: VisibleContent, budget: int, begun: float, *, is_cut: bool
    ) -> list[Message]:
        """Returns what memory has for a text, best first. begun: when this recall began, since when its time runs."""
        limit_ms = self._limit_ms(known)
        vector = None
        if self.embed_query is not None:
            vector = await self.embed_query(known.agent.id, query, _left(limit_ms, begun))
        return await self.store.recall.search(
            known.agent,
            query,
            numbers=known.look.numbers,
            skip=visible.numbers,
            limit=MOST_HITS if is_cut and not visible.numbers else max(LEAST_HITS, budget // LINE_TOKENS),
            room=SPARE * budget,
            only_strong=True,
            deadline_ms=_left(limit_ms, begun),
            vector=vector,
        )


def _opens(known: Known) -> bool:
    """Returns whether the user has said nothing in this conversation before."""
    said = (m for m in known.plan.messages if m.get("role") == "user")
    return known.plan.match.anchor is None and len(list(said)) == 1


async def _excess(prompt: Prompt, rendered: str) -> float:
    """Returns how many times the tokens that the window has for it a note takes; 0: nobody has counted the window."""
    most, target = prompt.window.note_tokens, prompt.target
    if not most or target.context_window is None:
        return 0.0
    return await count_tokens(target.model, rendered) / most


def _change_tokens(known: Known, section: Section) -> int:
    """Returns what a note of the changed blocks alone takes, with its frame."""
    if not section.changes:
        return 0
    return note.estimate_tokens(note.render_note((), section.changes, known.plan.query.now))


def _left(limit_ms: float, begun: float) -> float:
    return max(1.0, limit_ms - (time.perf_counter() - begun) * 1000)
