"""Recall: the note that goes before the user's last message, made of earlier conversations."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.core.memory.standing import statement_of
from gateway.core.prompt import note
from gateway.core.prompt.event_order import Asked, events_of, order_asked
from gateway.core.prompt.section import Section
from gateway.core.prompt.shown_blocks import is_mark_named
from gateway.core.request.identity import KEEPS
from gateway.core.tags import mark_of
from gateway.run.memory.contents import with_contents
from gateway.run.memory.fit import count_tokens
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import FittedWindow, NoteRoom, Prompt, RecallResult, Sought
from gateway.run.memory.visible import VisibleContent, replaced, shows_origin
from gateway.settings import MemorySettings
from storage.errors import StoreError, TooSlow
from storage.recall_record import SearchTrace
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
# Of short messages more are read, for this many times the budget, since some of them repeat others.
SPARE = 2
# Streamed replies get a fifth of the time for recall: 30 ms by default, since voice agents ask for them.
STREAM_HASTE = 5
# The search by words keeps one part in this many of the time for recall.
WORDS_SHARE = 3
# A note may take one part in this many of the model's context; beyond FEW_TOKENS one part in twice as many, since notes
# of a thousand tokens would fill a window of 16,000 within six turns.
NOTE_SHARE = 16
FEW_TOKENS = 500
# Where a question asks for what came next, so many of its hits come before that.
_HITS_BEFORE_NEXT = 5
# Hits that stayed out of the note and are noted with the turn, at most.
LEFT_OUT = 5
# The window keeps so much free for a note: its frame, and a line or two. In a nearly full window a short note is better
# than a prefix that changes some turns earlier.
LEAST_TOKENS = 128


class Around(Protocol):
    """Returns what the user stated after a message, or before it."""

    async def __call__(self, event: Message, *, before: bool) -> list[Message]: ...


class _Renderer(Protocol):
    """Renders the note of a request: what is recalled, and changed memory blocks."""

    def __call__(
        self, hits: Sequence[note.Recalled], changes: Sequence[str], *, is_selection: bool = False
    ) -> str: ...


class _Recalling(NamedTuple):
    """One recall."""

    context: MemoryContext
    window: FittedWindow
    visible: VisibleContent
    # Tokens that the note may take.
    budget: int
    # When it began, by `time.perf_counter`.
    begun: float
    # Of its last search by words.
    trace: SearchTrace | None
    # What people call the user.
    names: Sequence[str]
    # The numbers of the facts that the memory section shows.
    standing: Collection[int]


class FoundMessages(NamedTuple):
    """The messages that memory has for one, best first."""

    messages: Sequence[Message]
    # What was looked for.
    query: str
    # Lines that the message has in common with what was found, which are not shown.
    shared: frozenset[str]
    # Nothing was looked for, and this shows most of the whole memory.
    is_selection: bool
    # Why some of what was found is not among the messages, by their numbers.
    left: Mapping[int, str] = {}
    # The notes of the conversation show all of the memory.
    is_all_shown: bool = False
    # The message asks for the order of events, so that many short lines are worth more than a few long ones.
    asks_for_order: bool = False

    def line_chars(self, budget: int) -> int:
        """Returns how much of one message a note shows. budget: tokens of the note."""
        return min(note.ORDER_CHARS if self.asks_for_order else note.CUT_CHARS, 2 * budget)


# Questions whose answer stands after or before what is found.
_NEIGHBOUR_QUESTIONS: Collection[Asked] = (Asked.NEXT, Asked.PREVIOUS)
_NOTHING = FoundMessages((), "", frozenset(), False)
_SHOWN = _NOTHING._replace(is_all_shown=True)


async def find_for(
    text: str,
    query: str,
    search: Callable[[str], Awaitable[list[Message]]],
    select: Callable[[str], Awaitable[list[Message]]],
    names: Sequence[str] = (),
    around: Around | None = None,
) -> FoundMessages:
    """Returns what memory has for a message.

    query: what `note.make_query` makes of it, with its speaker (`note.with_speaker`).
    search: returns what answers a query, best first.
    select: returns what shows most of the whole memory, for a query that asks for that.
    names: what people call the user.
    around: returns what the user stated after a message, or before it.
    """
    shared: frozenset[str] = frozenset()
    left: dict[int, str] = {}
    order = order_asked(query)
    if order is not None:
        query = events_of(query)
    found = await search(query)
    if found and around is not None and order in _NEIGHBOUR_QUESTIONS:
        # The words of what came next are unknown. The conversations after the event that was found have it.
        near = await around(found[0], before=order is Asked.PREVIOUS)
        found = [
            *{m.seq: m for m in chain(found[:_HITS_BEFORE_NEXT], near, found[_HITS_BEFORE_NEXT:])}.values()
        ]
    lines = note.shared_lines(text, found)
    own = note.with_speaker(note.make_query(note.without_lines(text, lines)), names) if lines else ""
    if own:
        # Some applications put every message into the same template, and its words would find themselves.
        rest = note.without_templates(found, lines)
        left.update((m.seq, "weak") for m in found)
        query, shared = own, lines
        found = [*await search(own), *rest]
    if found:
        return FoundMessages(found, query, shared, False, left, asks_for_order=order is not None)
    selection = await select(query)
    return FoundMessages(selection, "" if selection else query, shared, bool(selection), left)


class Recaller(Struct, frozen=True):
    """Makes notes of what memory has for a message."""

    store: Store
    settings: MemorySettings
    # None: memory is searched by words alone.
    embed_query: EmbedQuery | None

    def budget(self, context: MemoryContext, naming: int = 0) -> int:
        """Returns the tokens that a note may take; 0: nothing is recalled for this request.

        A note stays in the conversation, so in a small window it has to be small as well.

        naming: tokens of the line that names the note's mark, which is not counted in the result. In a small window it
        is taken as well, or the note would hold nothing else.
        """
        scope, window = context.request.identity.scope, context.request.target.context_window
        if scope is None or not scope.spans_conversations:
            return 0
        defined = context.request.spec.defined
        own = None if defined is None else defined.recall_tokens
        budget = max(0, (self.settings.recall_tokens if own is None else own) - naming)
        if window is None:
            return budget
        return min(budget, window // NOTE_SHARE, max(FEW_TOKENS, window // (2 * NOTE_SHARE)))

    def room(self, context: MemoryContext, section: Section) -> NoteRoom:
        """Returns the room for a note: the changes that it has to name are not cut short, what it recalls may be."""
        # Whether an earlier note in the window names the mark is known once that is fitted.
        naming = 0 if is_mark_named((section.text,), mark_of(context.agent.secret)) else note.NAMING_TOKENS
        budget = self.budget(context, naming)
        # A model's own count may be a fifth above the estimate.
        fixed = naming * 5 // 4 + _change_tokens(context, section)
        return NoteRoom(fixed + min(budget, LEAST_TOKENS), fixed + budget)

    async def recall(
        self, context: MemoryContext, prompt: Prompt, text: str, name: str | None = None
    ) -> RecallResult:
        """Returns the note for the user's last message, which also names changed blocks.

        text: that message.
        name: its speaker's, where the message has one.
        prompt: what is visible already.
        """
        section, window = prompt.section, prompt.window
        match_point = context.plan.match.match_point
        elsewhere = context.snapshot.next_seq - 1 - (match_point.length if match_point else 0)
        naming = 0 if prompt.names(mark_of(context.agent.secret)) else note.NAMING_TOKENS
        budget, begun = self._budget_in(context, prompt, naming), time.perf_counter()
        found, why, has_failed, ms = _NOTHING, "", False, 0.0
        is_noted = (
            bool(self.settings.keep_why_days)
            and context.request.identity.mode in KEEPS
            and self.budget(context, naming) > 0
        )
        trace, left = SearchTrace() if is_noted else None, note.LeftOut()
        render = _renderer(context, names_mark=naming > 0)
        chosen: Sequence[note.Recalled] = ()
        # What its client leaves out of a list is not put back, and may have to be recalled.
        is_trimmed = context.request.spec.history == "client" and not context.plan.follows_head
        if budget > 0 and (elsewhere > 0 or window.evicted_tokens > 0 or is_trimmed):
            visible = VisibleContent.of(context, prompt.composition, window)
            try:
                names = [each for each in dict.fromkeys((name, context.request.identity.name)) if each]
                shown = () if section.sent is None else section.sent.known.get("standing", ())
                recalling = _Recalling(context, window, visible, budget, begun, trace, names, shown)
                found = await self._find(recalling, text)
                if found.is_selection:
                    budget = min(budget, note.selection_budget(self.budget(context, naming)))
                if found.messages:
                    chosen = await _choose(found, prompt, visible, budget, naming, render, left)
            except StoreError as error:
                # A memory that answers late or not at all is one without hits; the reply does not wait for it.
                has_failed, why = True, "late" if isinstance(error, TooSlow) else "failed"
                _log.warning(
                    "Memory could not be searched for a reply, which was made without: %s", error.message
                )
            ms = (time.perf_counter() - begun) * 1000
        rendered = render(chosen, section.changes, is_selection=found.is_selection)
        sought = None
        if trace is not None:
            why = why or ("all_shown" if found.is_all_shown else "")
            sought = make_sought(why, found, chosen, left, trace)
        tokens = note.estimate_tokens(rendered) if chosen else 0
        return RecallResult(rendered, tokens, ms, begun, len(chosen), has_failed, why == "late", sought)

    def _budget_in(self, context: MemoryContext, prompt: Prompt, naming: int) -> int:
        """Returns the tokens that what is recalled may take in this prompt's window. naming: as for `budget`."""
        budget, room = self.budget(context, naming), prompt.window.note_tokens
        if room is None:
            return budget
        # The size of a note is estimated, and may be up to 3% more.
        return min(budget, (room - naming - _change_tokens(context, prompt.section)) * 31 // 32)

    async def _find(self, recalling: _Recalling, text: str) -> FoundMessages:
        """Returns what memory has for a message. Raises: StoreError."""
        context, query = recalling.context, note.with_speaker(note.make_query(text), recalling.names)
        if self._is_shown(recalling, text, query):
            return _SHOWN
        search, select = partial(self._search, recalling), partial(self._select, recalling)
        around = partial(self._around, recalling)
        result = await find_for(text, query, search, select, recalling.names, around)
        found, left = result.messages, dict(result.left)
        if not context.is_plain:  # a plain list has nothing in another form
            rule = partial(replaced, context, self.settings.idle_s)
            gone = await with_contents(self.store.turns, context.agent, context.tree, rule)
            left.update((m.seq, "superseded") for m in found if m.exchange in gone)
            found = [m for m in found if m.exchange not in gone]
        stated = {statement_of(f.text) for f in context.snapshot.standing if f.seq in recalling.standing}
        visible = [
            m
            for m in found
            if statement_of(m.text) not in stated
            and not (m.source == "fact" and shows_origin(context, recalling.window, m))
        ]
        if len(visible) < len(found):
            left.update((m.seq, "shown") for m in found if m not in visible)
        return result._replace(messages=visible, left=left)

    def _is_shown(self, recalling: _Recalling, text: str, query: str) -> bool:
        """Returns whether the conversation's notes show all of a young memory: no search finds more then."""
        context, visible = recalling.context, recalling.visible
        # The lines of a message may be a template's, and without them others are shown in another form.
        if not visible.notes or "\n" in text:
            return False
        messages = self.store.recall.all_cached_messages(
            context.agent, context.snapshot.numbers, visible.numbers
        )
        return messages is not None and note.shows_all(
            visible.notes, messages, query, exclude_atoms=visible.atoms
        )

    async def _select(self, recalling: _Recalling, query: str) -> list[Message]:
        """Returns what shows most of the whole memory, where a text asks for that."""
        context = recalling.context
        if note.has_selection(recalling.visible.notes):
            return []
        return await self.store.recall.most_telling(
            context.agent,
            query,
            opens=_opens(context),
            numbers=context.snapshot.numbers,
            skip=recalling.visible.numbers,
            # What the section shows is among the first, as a fact and as it was said, and is left out.
            limit=LEAST_HITS + 2 * len(recalling.standing),
            deadline_ms=_remaining_ms(self._limit_ms(context), recalling.begun),
        )

    async def _around(self, recalling: _Recalling, event: Message, *, before: bool) -> list[Message]:
        """Returns what the user stated after a message, or before it."""
        context = recalling.context
        return await self.store.recall.around(
            context.agent,
            event.seq,
            before=before,
            numbers=context.snapshot.numbers,
            skip=recalling.visible.numbers,
            deadline_ms=_remaining_ms(self._limit_ms(context), recalling.begun),
        )

    def _limit_ms(self, context: MemoryContext) -> float:
        """Returns the time for recall."""
        return self.settings.recall_deadline_ms / (STREAM_HASTE if context.request.chat.stream else 1)

    async def _search(self, recalling: _Recalling, query: str) -> list[Message]:
        """Returns what memory has for a text, best first."""
        context, window, visible, budget, begun, trace, *_ = recalling
        limit_ms = self._limit_ms(context)
        vector = None
        if self.embed_query is not None:
            # A vector that is waited for in vain leaves time for a search by words.
            wait_ms = _remaining_ms(limit_ms, begun) - limit_ms / WORDS_SHARE
            vector = await self.embed_query(context.agent.id, query, wait_ms)
        has_evicted = window.evicted_tokens > 0 and not visible.numbers
        return await self.store.recall.search(
            context.agent,
            query,
            numbers=context.snapshot.numbers,
            skip=visible.numbers,
            limit=MOST_HITS if has_evicted else max(LEAST_HITS, budget // LINE_TOKENS),
            room=SPARE * budget,
            only_strong=True,
            deadline_ms=_remaining_ms(limit_ms, begun),
            vector=vector,
            trace=trace,
        )


def make_sought(
    why: str,
    found: FoundMessages,
    chosen: Sequence[note.Recalled],
    left: note.LeftOut,
    trace: SearchTrace,
    most_left: int = LEFT_OUT,
) -> Sought:
    """Returns what is noted of a search. The rows of its ranking are not retained.

    most_left: hits that stayed out, with their scores.
    """
    few = most_left - (len(trace.hits) - len(chosen))
    weak = trace.weak(few) if few > 0 and trace.weak is not None else ()
    trace.weak = None
    return Sought(why, found.messages, chosen, left, found.left, found.is_selection, trace, weak)


async def _choose(
    found: FoundMessages,
    prompt: Prompt,
    visible: VisibleContent,
    budget: int,
    naming: int,
    render: _Renderer,
    left: note.LeftOut,
) -> list[note.Recalled]:
    """Returns what of this has room in a note.

    budget, naming: tokens, as in `Recaller.budget`.
    left: as for `note.choose`.
    """
    render = partial(render, is_selection=found.is_selection)
    choose = partial(
        note.choose,
        found.messages,
        found.query,
        exclude_atoms=visible.atoms,
        noted=visible.notes,
        shared=found.shared,
        cut_chars=found.line_chars(budget),
        is_selection=found.is_selection,
        left=left,
    )
    chosen = choose(budget_tokens=budget)
    # The estimate is too low for some languages, and a full window has no room for a token more.
    while chosen and (excess := await _excess(prompt, render(chosen, prompt.section.changes))) > 1:
        # The note may take less than its budget, and would be the same with a little less of it.
        taken = note.estimate_tokens(render(chosen, ()))
        budget = min(budget - 1, int(taken / excess) - naming)
        chosen = choose(budget_tokens=budget)
    return chosen


def _opens(context: MemoryContext) -> bool:
    """Returns whether this is the user's first message in the conversation."""
    user_messages = (m for m in context.plan.messages if m.get("role") == "user")
    return context.plan.match.match_point is None and len(list(user_messages)) == 1


async def _excess(prompt: Prompt, rendered: str) -> float:
    """Returns how many times the tokens that the window has for it a note takes; 0: the window was not counted."""
    most, target = prompt.window.note_tokens, prompt.target
    if not most or target.context_window is None:
        return 0.0
    return await count_tokens(target.model, rendered) / most


def _change_tokens(context: MemoryContext, section: Section) -> int:
    """Returns what a note of the changed blocks alone takes, with its frame, but without the name of its mark."""
    if not section.changes:
        return 0
    return note.estimate_tokens(_renderer(context, names_mark=False)((), section.changes))


def render_changes(context: MemoryContext, section: Section, notes: Sequence[str]) -> str:
    """Returns a note of the changed blocks alone. notes: those that the prompt has."""
    is_named = is_mark_named((section.text, *notes), mark_of(context.agent.secret))
    return _renderer(context, names_mark=not is_named)((), section.changes)


def _renderer(context: MemoryContext, *, names_mark: bool) -> _Renderer:
    now, mark = context.plan.query.now, mark_of(context.agent.secret)
    return partial(note.render_note, now=now, mark=mark, names_mark=names_mark)


def _remaining_ms(limit_ms: float, begun: float) -> float:
    """Returns what is left of a limit on the time since then; 1 at least, so that a search ends as too slow."""
    return max(1.0, limit_ms - (time.perf_counter() - begun) * 1000)
