"""Makes the prompt of a request: its memory section, the additions around its messages, its window and its note."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.message_text import with_text_before
from gateway.core.prompt.compose import compose, find_known_note
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.eviction import Eviction, locate_window_start
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.shown_blocks import ShownBlocks
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.fit import fit_prompt, is_crowded, may_exceed
from gateway.run.memory.fitted_window import NO_NOTE, WHOLE_WINDOW, FittedWindow
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.noted_message import NotedMessage, find_noted_message
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.query_vectors import QueryVectors
from gateway.run.memory.recall import Recaller, render_changes
from gateway.run.memory.recall_result import RecallResult
from gateway.run.memory.section_maker import SectionMaker
from storage.errors import StoreError
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The tokens of a prompt are counted where its bytes may exceed this share of the window. It is below `EARLY_SHARE`, so
# a shorter prompt needs no summary yet.
_COUNTED_SHARE = 0.75


class Composer(Struct, frozen=True):
    """Makes the prompt of a request, and makes it again for another target."""

    # The store of the memories.
    store: Store
    # Makes the note.
    recaller: Recaller
    # Makes the memory section.
    section_maker: SectionMaker
    # True: there is a background model, so jobs make summaries.
    summarises: bool

    async def make_prompt(
        self,
        context: MemoryContext,
        form: EndpointForm,
        tools: Sequence[dict[str, Any]],
        made_notes: Mapping[int, str] | None = None,
    ) -> Prompt:
        """Returns the prompt for the target that is expected to answer.

        made_notes: the notes of this request that an earlier call has made; None: the notes are looked up.
        """
        if context.is_off:
            return await self._make_prompt_without_memory(context, form)
        request = context.request
        notes = _choose_notes(context, made_notes)
        message = find_noted_message(context)
        vectors = QueryVectors(self.recaller.embed_query)
        binds_thoughts = form.binds_thoughts
        pinned_facts = self.section_maker.list_pinned_facts(
            context, takes_note=message is not None, binds_thoughts=binds_thoughts
        )
        if message is not None and pinned_facts is None:
            context = await self.recaller.with_nearest_facts(context, vectors, message.text, message.name)
        composition = await self._compose(context, notes)
        section = self.section_maker.make(
            context, composition, takes_note=message is not None, binds_thoughts=binds_thoughts
        )
        # A note is made once: a retry, or the same question again, gets the same note.
        if message is not None and message.new_index is not None and message.new_index in notes:
            if section.changes:
                # The note stays, and the changes of blocks since are appended to it.
                notes[message.new_index] += render_changes(
                    context, section, WHOLE_WINDOW.list_fitting_notes(composition)
                )
                composition = await self._compose(context, notes)
            message = None
        prompt = Prompt(
            request=request.chat,
            target=request.target,
            form=form,
            system=section.text,
            tools=tools,
            composition=composition,
            section=section,
            new_notes={} if context.plan.is_off_record else notes,
            puts_tools_first=not request.spec.is_profile or context.is_agent_conversation,
        )
        prompt = await self._fit(context, prompt, takes_note=message is not None)
        return prompt if message is None else await self._with_recall(context, prompt, vectors, message)

    async def _with_recall(
        self, context: MemoryContext, prompt: Prompt, vectors: QueryVectors, message: NotedMessage
    ) -> Prompt:
        """Returns the prompt with the note for a message."""
        recall = await self.recaller.recall(context, prompt, vectors, message.text, message.name)
        if message.new_index is not None and not context.plan.is_off_record:
            # An empty note is stored as well, so that nothing is searched twice.
            prompt = replace(prompt, new_notes={**prompt.new_notes, message.new_index: recall.note})
        if recall.note:
            prompt = _with_note(context, prompt, recall, message.list_index)
        return replace(prompt, recall=recall)

    async def _make_prompt_without_memory(self, context: MemoryContext, form: EndpointForm) -> Prompt:
        """Returns the prompt of a request with its memory off."""
        request = context.request
        composition = await self._compose_without_memory(context)
        prompt = Prompt(request.chat, request.target, form, request.spec.system, composition=composition)
        return replace(prompt, window=await fit_prompt(prompt))

    async def retarget_prompt(
        self, context: MemoryContext, prompt: Prompt, target: Target, form: EndpointForm
    ) -> Prompt:
        """Returns the prompt for another target than the one that was expected. It may have another window.

        Parts that only the expected model can read are left out. Note and memory section stay as they are.
        """
        prompt = replace(prompt, target=target, form=form)
        if context.is_off:
            prompt = replace(prompt, composition=await self._compose_without_memory(context))
        else:
            earlier_composition = prompt.composition
            composition = await self._compose(context, prompt.new_notes)
            composition = replace(
                composition, notes=earlier_composition.notes, note_tokens=earlier_composition.note_tokens
            )
            eviction = self._make_eviction(context, composition)
            prompt = replace(prompt, composition=composition, eviction=eviction)
            prompt = await self._with_summaries(context, prompt)
        return await self._with_window(context, prompt, await fit_prompt(prompt))

    async def list_shown_blocks(self, context: MemoryContext) -> ShownBlocks:
        """Returns the last text of each memory block in the prompt of a request, without a note for the request."""
        composition = await self._compose(context, _list_known_notes(context))
        return self.section_maker.make(context, composition, takes_note=False).shown_blocks

    async def _compose(self, context: MemoryContext, notes: Mapping[int, str]) -> Composition:
        """Returns the composition of a request. notes: the notes of new messages, by the index of the message."""
        # For a plain list the snapshot has all that the gateway added to its path.
        if context.is_plain:
            return compose(
                context.tree, context.plan, context.offered_tools, notes, context.snapshot.additions
            )
        composing = partial(compose, context.tree, context.plan, context.offered_tools, notes)
        return await retry_with_contents(self.store.turns, context.agent, context.tree, composing)

    async def _compose_without_memory(self, context: MemoryContext) -> Composition:
        # In append mode only the gateway has the history, so it goes upstream even with memory off.
        return await self._compose(context, {}) if context.plan.follows_head else Composition()

    def _make_eviction(self, context: MemoryContext, composition: Composition) -> Eviction:
        """Returns the messages that may leave the window, and those that have left it.

        `_with_summaries` adds the summaries.
        """
        plan = context.plan
        spec = context.request.spec
        start_index = None
        if context.evicted is not None:
            start_index = locate_window_start(plan, composition, context.evicted, is_plain=context.is_plain)
        options = SummaryOptions.of(spec.definition.compaction)
        has_model = self.summarises or options.model is not None
        makes_summaries = spec.summarises and not plan.is_off_record and has_model
        return Eviction(
            plan,
            context.is_plain,
            evicted=None if start_index is None else context.evicted,
            start_index=start_index or 0,
            used_summary_id=context.used_summary_id,
            retained_share=options.retained_share if makes_summaries else None,
            bounds=spec.window_bounds,
        )

    async def _with_summaries(self, context: MemoryContext, prompt: Prompt) -> Prompt:
        """Adds the newest summaries on this path. Call it only if the whole conversation may not fit."""
        match_point = context.plan.match.match_point
        if match_point is None or not context.agent.is_stored or not context.request.spec.summarises:
            return prompt
        if context.summaries is not None:
            # All exchanges of a stored conversation are on the path, though not all of them were loaded.
            summaries = context.summaries
            path_ids = {each.exchange.id for each in context.summaries}
        else:
            try:
                summaries = await self.store.summaries.list_conversation_summaries(
                    context.agent.id, match_point.conversation_row, match_point.depth
                )
            except StoreError as error:
                _log.warning(
                    "Summaries could not be read, so a request was made without them: %s", error.message
                )
                return prompt
            path_ids = context.path_ids
        eviction = prompt.eviction.with_summaries(summaries, path_ids, prompt.composition)
        return replace(prompt, eviction=eviction)

    async def _fit(self, context: MemoryContext, prompt: Prompt, *, takes_note: bool) -> Prompt:
        """Fits the prompt, with room for the note, and with the section that goes with the chosen summary."""
        section = prompt.section
        context_window = prompt.target.context_window
        is_long = context_window is not None and may_exceed(prompt, int(context_window * _COUNTED_SHARE))
        # The note has to state all changes, however long they are.
        has_changes = context_window is not None and bool(section.changes)
        if not (is_long or has_changes or context.request.spec.window_bounds or context.evicted):
            return prompt
        composition = prompt.composition
        prompt = replace(prompt, eviction=self._make_eviction(context, prompt.composition))
        if is_long or prompt.eviction.evicted is not None or is_crowded(prompt):
            prompt = await self._with_summaries(context, prompt)
        elif not has_changes:
            return prompt
        eviction = prompt.eviction
        newer_summary_id = next((cut.id for cut in eviction.cuts if cut.id != eviction.used_summary_id), None)
        newer_system = None
        if newer_summary_id is not None:
            newer_system = self.section_maker.make(
                context, composition, summary_id=newer_summary_id, takes_note=takes_note
            ).text
        note_room = self.recaller.choose_note_room(context, section) if takes_note else NO_NOTE
        window = await fit_prompt(prompt, newer_system=newer_system, note=note_room)
        if window.summary_id in (0, eviction.used_summary_id):
            return await self._with_window(context, prompt, window, takes_note=takes_note)
        # With another summary the prompt's beginning changes anyway, so the memory section is rendered again as well.
        section = self.section_maker.make(
            context, composition, window, window.summary_id, takes_note=takes_note
        )
        return replace(prompt, window=window, section=section, system=section.text)

    async def _with_window(
        self, context: MemoryContext, prompt: Prompt, window: FittedWindow, *, takes_note: bool = False
    ) -> Prompt:
        """Returns the prompt with a window.

        If the window leaves out the text that shows a block last, the section is rendered again to show the block.
        """
        if not prompt.hides_shown_blocks(window):
            return replace(prompt, window=window)
        composition = prompt.composition
        section = self.section_maker.make(
            context, composition, window, takes_note=takes_note, prefix_changes=True
        )
        prompt = replace(prompt, section=section, system=section.text)
        note_room = self.recaller.choose_note_room(context, section) if takes_note else NO_NOTE
        return replace(prompt, window=await fit_prompt(prompt, note=note_room))


def _with_note(
    context: MemoryContext, prompt: Prompt, recall: RecallResult, list_index: int | None
) -> Prompt:
    """Returns the prompt with a note before the text of a message.

    list_index: the value of `NotedMessage.list_index`.
    """
    composition = prompt.composition
    window = prompt.window
    # The note's tokens are estimated: counting a new text takes as long as the search.
    tokens = recall.note_tokens or estimate_tokens(recall.note)
    if list_index is not None:
        position = context.plan.query.listing.positions[list_index]
        composition = replace(
            composition,
            notes={**composition.notes, position: recall.note},
            note_tokens=composition.note_tokens + tokens,
        )
    else:
        *earlier_messages, last_message = composition.inserted
        message = replace(
            last_message, message=with_text_before(last_message.message, recall.note), note=recall.note
        )
        composition = replace(composition, inserted=[*earlier_messages, message])
    if window.tokens:
        window = replace(window, tokens=window.tokens + tokens)
    return replace(prompt, composition=composition, window=window)


def _choose_notes(context: MemoryContext, made_notes: Mapping[int, str] | None) -> dict[int, str]:
    """Returns the notes that new messages have already, by the message's index. made_notes: as for `make_prompt`."""
    if made_notes is not None:
        return dict(made_notes)
    # The new messages of a plain list have no notes yet.
    return {} if context.is_plain else _list_known_notes(context)


def _list_known_notes(context: MemoryContext) -> dict[int, str]:
    """Returns the stored notes of the new user messages, by the message's index. A note without hits is empty."""
    user_indices = [i for i, message in enumerate(context.plan.messages) if message.get("role") == "user"]
    notes = {i: find_known_note(context.tree, context.plan, i) for i in user_indices}
    return {i: note for i, note in notes.items() if note is not None}
