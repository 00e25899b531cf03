"""Making the prompt of a request: its memory section, what goes around the messages, what fits, and the note."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import RESULTS, WireMessage, shown_results, text_of
from gateway.core.conversation.match import MemoryUse
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.tree import is_forgotten
from gateway.core.memory.standing import standing_block
from gateway.core.message_text import prefixed
from gateway.core.prompt.compose import Composition, compose, known_note
from gateway.core.prompt.eviction import NO_EVICTION, Eviction, find_beginning
from gateway.core.prompt.note import estimate_tokens, own_words
from gateway.core.prompt.section import Section, SectionParts, digest_definition, make_section, shown_standing
from gateway.core.prompt.shown_blocks import Shown
from gateway.core.prompt.summary import SummaryTerms
from gateway.core.prompt.window import MessageBounds
from gateway.core.tags import mark_of
from gateway.core.upstream.policy import Target
from gateway.run.memory.contents import with_contents
from gateway.run.memory.fit import fit, is_crowded, may_exceed
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import (
    NO_NOTE,
    NO_RECALL,
    WHOLE,
    EndpointForm,
    FittedWindow,
    Prompt,
    RecallResult,
)
from gateway.run.memory.recall import Recaller, render_changes
from storage.errors import StoreError
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


class Composer(Struct, frozen=True):
    """Makes prompts."""

    store: Store
    recaller: Recaller
    # How long providers keep their cache.
    cache_s: float
    # A background job makes summaries.
    summarises: bool

    async def make(
        self,
        context: MemoryContext,
        form: EndpointForm,
        tools: Sequence[dict[str, Any]],
        made_notes: Mapping[int, str] | None = None,
    ) -> Prompt:
        """Returns the prompt for the target that is expected to answer. made_notes: those that were made before."""
        request, plan = context.request, context.plan
        if context.is_off:
            return await self._make_off(context, form)
        new = plan.messages
        last = _asked_at(plan)
        # Notes written once stay: a retry, or a question asked again, gets the same.
        notes = dict(made_notes or ())
        if made_notes is None and not context.is_plain:  # the new messages of a plain list have no notes yet
            notes = _known_notes(context)
        # Recall is for a person's words, not for a nudge of an agent's rules. What only quotes its
        # conversation is a front end's request for a title or the like.
        is_users = bool(new) and new[-1].get("role") == "user"
        is_asked = is_users and not (is_nudge(new[-1]) or shown_results(new)[-1])
        takes_note = is_asked and not plan.quotes
        at = plan.new[last - len(new)] if plan.new else -1
        if not is_asked and (asked_before := _read_before(context)) is not None:
            takes_note, at = True, asked_before
        composition = await self._compose(context, notes)
        section = self._section(context, composition, takes_note=takes_note, binds=form.binds)
        if is_asked and last in notes:
            takes_note = False
            if section.changes:
                # What was found for the message stays; that a block has changed since stands after it.
                notes[last] += render_changes(context, section, WHOLE.notes(composition))
                composition = await self._compose(context, notes)
        prompt = Prompt(
            request.chat,
            request.target,
            form,
            section.text,
            tools,
            composition,
            NO_EVICTION,
            WHOLE,
            section,
            {} if plan.off else notes,
            NO_RECALL,
            bool(request.spec.uid) or context.is_stored,
        )
        if request.target.context_window is not None or request.spec.bounds or context.evicted:
            prompt = await self._fitted(context, prompt, takes_note=takes_note)
        if not takes_note:
            return prompt
        text = text_of(new[last]) if is_asked else plan.query.listing.text(at)
        recall = await self.recaller.recall(context, prompt, text, _name_of(new[last]) if is_asked else None)
        if is_asked:
            # An empty note is stored as well, so that nothing is searched twice.
            notes[last] = recall.note
        if recall.note:
            prompt = replace(prompt, window=_put_note(context, prompt, recall, at))
        return replace(prompt, recall=recall)

    async def _make_off(self, context: MemoryContext, form: EndpointForm) -> Prompt:
        """Returns the prompt of a request whose memory is off."""
        request = context.request
        composition = await self._compose_off(context)
        prompt = Prompt(request.chat, request.target, form, request.spec.system, composition=composition)
        return replace(prompt, window=await fit(prompt))

    async def remake(
        self, context: MemoryContext, prompt: Prompt, target: Target, form: EndpointForm
    ) -> Prompt:
        """Returns the prompt for another target than was expected, perhaps with another window.

        What only the model that was expected could read stays here; note and memory section stay as they are.
        """
        prompt = replace(prompt, target=target, form=form)
        if context.is_off:
            prompt = replace(prompt, composition=await self._compose_off(context))
        else:
            made, before = await self._compose(context, prompt.notes), prompt.composition
            composition = replace(made, notes=before.notes, note_tokens=before.note_tokens)
            beginning = self._beginning(context, composition)
            prompt = replace(prompt, composition=composition, beginning=beginning)
            prompt = await self._with_summaries(context, prompt)
        return await self._shown_again(context, prompt, await fit(prompt))

    async def shown(self, context: MemoryContext) -> Shown:
        """Returns what the prompt of a request shows last of each memory block, without a note of its own."""
        composition = await self._compose(context, _known_notes(context))
        return self._section(context, composition, takes_note=False).shown

    async def _compose(self, context: MemoryContext, notes: Mapping[int, str]) -> Composition:
        if context.is_plain:  # the snapshot has all that the gateway added to its path
            return compose(context.tree, context.plan, context.offered, notes, context.snapshot.additions)
        composing = partial(compose, context.tree, context.plan, context.offered, notes)
        return await with_contents(self.store.turns, context.agent, context.tree, composing)

    async def _compose_off(self, context: MemoryContext) -> Composition:
        # In append mode only the gateway has the history, so it goes upstream even with memory off.
        return await self._compose(context, {}) if context.plan.follows_head else Composition()

    def _section(
        self,
        context: MemoryContext,
        composition: Composition,
        window: FittedWindow = WHOLE,
        summary: int | None = None,
        *,
        takes_note: bool,
        is_due: bool = False,
        binds: bool = False,
    ) -> Section:
        """Returns the memory section with what has changed since.

        summary: the id of the one that stands after it, or 0; None: the one in use.
        is_due: the prompt changes from its beginning in any case.
        binds: the section stays as it is for as long as the conversation has thoughts after it.
        """
        match_point, spec, plan = context.plan.match.match_point, context.request.spec, context.plan
        idle_s = 0.0 if match_point is None else plan.query.now - (match_point.ended or match_point.begun)
        is_due = is_due or spec.rebuilds or (idle_s > self.cache_s and not binds)
        blocks = context.blocks
        standing: tuple[int, ...] = ()
        if context.snapshot.standing and self.recaller.budget(context) > 0:
            is_new = is_due or match_point is None
            there = None if is_new else shown_standing(context.pinned, context.snapshot.epoch)
            block, standing = standing_block(context.snapshot.standing, there)
            if block is not None and all(each.label != block.label for each in blocks):
                blocks = (*blocks, block)
        parts = SectionParts(
            blocks,
            context.tools_in_section if context.offered else {},
            spec.system,
            context.snapshot.epoch,
            mark_of(context.agent.secret),
            _in_use(context) if summary is None else summary,
            digest_definition(spec.system, context.offered) if spec.uid else "",
            standing,
        )
        return make_section(
            parts,
            pinned=context.pinned,
            shown=window.shown(composition),
            is_continued=match_point is not None,
            is_due=is_due,
            takes_note=takes_note,
        )

    def _beginning(self, context: MemoryContext, composition: Composition) -> Eviction:
        """Returns where the request's window begins, as yet without its cuts."""
        plan, spec = context.plan, context.request.spec
        evicted, start = find_beginning(plan, composition, context.evicted, is_plain=context.is_plain)
        terms = SummaryTerms() if spec.defined is None else SummaryTerms.of(spec.defined.compaction)
        return Eviction(
            plan,
            context.is_plain,
            evicted,
            start,
            in_use=_in_use(context),
            summarises=spec.summarises and not plan.off and (self.summarises or terms.model is not None),
            retained_share=terms.retained_share,
            bounds=None if spec.bounds is None else MessageBounds(*spec.bounds),
        )

    async def _with_summaries(self, context: MemoryContext, prompt: Prompt) -> Prompt:
        """Adds the newest summaries on this path: read only where the conversation may not fit whole."""
        match_point = context.plan.match.match_point
        if match_point is None or not context.agent.id or not context.request.spec.summarises:
            return prompt
        if context.summaries is not None:
            # All of a stored conversation is on the path, though not all of it was loaded.
            found, covered = context.summaries, {each.exchange.id for each in context.summaries}
        else:
            try:
                found = await self.store.summaries.of(context.agent.id, match_point.conversation)
            except StoreError as error:
                _log.warning(
                    "Summaries could not be read, so a request was made without them: %s", error.message
                )
                return prompt
            covered = context.path_ids
        beginning = prompt.beginning.with_summaries(found, covered, prompt.composition)
        return replace(prompt, beginning=beginning)

    async def _fitted(self, context: MemoryContext, prompt: Prompt, *, takes_note: bool) -> Prompt:
        """Fits the window, once: with room for the note, and with the section that goes with the summary chosen."""
        section, most = prompt.section, prompt.target.context_window
        is_long = most is not None and may_exceed(prompt, most * 3 // 4)
        has_changes = most is not None and bool(section.changes)  # they may make a long note
        if not (is_long or has_changes or context.request.spec.bounds or context.evicted):
            return prompt
        composition = prompt.composition
        prompt = replace(prompt, beginning=self._beginning(context, prompt.composition))
        if is_long or prompt.beginning.evicted is not None or is_crowded(prompt):
            prompt = await self._with_summaries(context, prompt)
        elif not has_changes:
            return prompt
        beginning = prompt.beginning
        newer = next((cut.id for cut in beginning.cuts if cut.id != beginning.in_use), None)
        renewed = None
        if newer is not None:
            renewed = self._section(context, composition, summary=newer, takes_note=takes_note)
        note = self.recaller.room(context, section) if takes_note else NO_NOTE
        window = await fit(prompt, renewed=None if renewed is None else renewed.text, note=note)
        if window.summary_id in (0, beginning.in_use):
            return await self._shown_again(context, prompt, window, takes_note=takes_note)
        # With another summary the prompt's beginning changes anyway, so the memory section is rendered again too.
        section = self._section(context, composition, window, window.summary_id, takes_note=takes_note)
        return replace(prompt, window=window, section=section, system=section.text)

    async def _shown_again(
        self, context: MemoryContext, prompt: Prompt, window: FittedWindow, *, takes_note: bool = False
    ) -> Prompt:
        """Returns the prompt with a window; what that leaves out of the blocks' last values, the section shows."""
        if not prompt.hides(window):
            return replace(prompt, window=window)
        composition = prompt.composition
        section = self._section(context, composition, window, takes_note=takes_note, is_due=True)
        prompt = replace(prompt, section=section, system=section.text)
        note = self.recaller.room(context, section) if takes_note else NO_NOTE
        return replace(prompt, window=await fit(prompt, note=note))


def _asked_at(plan: Plan) -> int:
    """Returns the index of the new message that the user wrote last, of those in the user's role at the end of the
    list.

    An application's text after it is mostly in no later list (OpenClaw), and neither would its note be.
    """
    new = plan.messages
    last = len(new) - 1
    if [m.get("role") for m in new[-2:]] != ["user", "user"]:
        return last
    for at in range(last, last - len(plan.new), -1):
        if new[at].get("role") != "user":
            break
        if own_words(text_of(new[at])):
            return at
    return last


def _name_of(message: WireMessage) -> str | None:
    """Returns the name of a message's speaker, where its client gives one."""
    name = message.get("name")
    return name if isinstance(name, str) else None


def _read_before(context: MemoryContext) -> int | None:
    """Returns the index of the user's message whose results of tools a request brings, where nothing of it is stored.

    Its note is not stored either, and is looked for once more: the model had it before it called the tools.
    """
    plan = context.plan
    listing, match_point = plan.query.listing, plan.match.match_point
    at = len(listing) - 1
    if (
        plan.query.mode is not MemoryUse.READ
        or plan.follows_head
        or at < 0
        or listing.role(at) not in RESULTS
    ):
        return None
    while at >= 0 and listing.role(at) != "user":
        at -= 1
    is_kept = at not in plan.new and (match_point is None or not is_forgotten(match_point))
    return None if at < 0 or is_kept else at


def _put_note(context: MemoryContext, prompt: Prompt, recall: RecallResult, at: int) -> FittedWindow:
    """Puts a note before a message, by its index in the list. Returns the window with it."""
    plan, composition, window = context.plan, prompt.composition, prompt.window
    # The note alone is estimated: counting a new text takes as long as finding it.
    tokens = recall.tokens or estimate_tokens(recall.note)
    if plan.new:
        composition.notes[plan.query.listing.positions[at]] = recall.note
        composition.note_tokens += tokens
    else:
        # A stored conversation: the new message is the last of those put before the list.
        *before, last = composition.fill
        noted = replace(last, message=prefixed(last.message, recall.note), note=recall.note)
        composition.fill = [*before, noted]
    return replace(window, tokens=window.tokens + tokens) if window.tokens else window


def _in_use(context: MemoryContext) -> int:
    """Returns the id of the summary that the last request used; 0: none."""
    return 0 if context.pinned is None else context.pinned.known.get("summary", 0)


def _known_notes(context: MemoryContext) -> dict[int, str]:
    users = [i for i, m in enumerate(context.plan.messages) if m.get("role") == "user"]
    found = {i: known_note(context.tree, context.plan, i) for i in users}
    return {i: note for i, note in found.items() if note is not None}
