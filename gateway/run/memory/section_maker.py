"""Makes the memory section of a request, and decides whether it is rendered again."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.core.memory.standing_block import StandingBlock, make_standing_block
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.section import (
    Section,
    SectionParts,
    digest_definition,
    find_shown_standing,
    make_section,
)
from gateway.core.tags import make_mark
from gateway.run.memory.fitted_window import WHOLE_WINDOW, FittedWindow
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.recall import Recaller


class SectionMaker(Struct, frozen=True):
    """Makes the memory section of a request from the blocks, the tools and the standing facts of its memory."""

    # Recalls messages for notes. Standing facts are shown only where messages are recalled.
    recaller: Recaller
    # The seconds after which a provider's prompt cache has expired.
    provider_cache_s: float

    def make(
        self,
        context: MemoryContext,
        composition: Composition,
        window: FittedWindow = WHOLE_WINDOW,
        summary_id: int | None = None,
        *,
        takes_note: bool,
        prefix_changes: bool = False,
        binds_thoughts: bool = False,
    ) -> Section:
        """Returns the memory section, and how the blocks have changed since the prompt last showed them.

        summary_id: the id of the summary that follows the section; 0: no summary; None: that of the last request.
        takes_note: True: a note can state changes.
        prefix_changes: True: the beginning of the prompt changes anyway, so a new section costs nothing.
        binds_thoughts: the value of `EndpointForm.binds_thoughts`.
        """
        spec = context.request.spec
        standing = self._make_standing_block(context, takes_note=takes_note, binds_thoughts=binds_thoughts)
        parts = SectionParts(
            blocks=context.blocks if standing.block is None else (*context.blocks, standing.block),
            offered_tools=context.tools_in_section if context.offered_tools else {},
            system=spec.system,
            epoch=context.snapshot.epoch,
            mark=make_mark(context.agent.secret),
            summary_id=context.used_summary_id if summary_id is None else summary_id,
            definition_digest=""
            if spec.is_profile
            else digest_definition(spec.system, context.offered_tools),
            standing_seqs=standing.shown_seqs,
        )
        return make_section(
            parts,
            pinned_section=context.section,
            shown_after=window.list_shown_blocks(composition),
            is_continued=context.is_continued,
            may_rebuild=prefix_changes or self._may_rebuild(context, binds_thoughts=binds_thoughts),
            takes_note=takes_note,
        )

    def list_pinned_facts(
        self, context: MemoryContext, *, takes_note: bool, binds_thoughts: bool
    ) -> Sequence[int] | None:
        """Returns the numbers of the standing facts that the section goes on to show.

        Returns None if the facts are chosen for this request. Facts are chosen for a message, so a request without one
        shows the facts of the last request.
        """
        may_choose = takes_note and self._may_rebuild(context, binds_thoughts=binds_thoughts)
        if may_choose or not context.is_continued:
            return None
        return find_shown_standing(context.section, context.snapshot.epoch)

    def _make_standing_block(
        self, context: MemoryContext, *, takes_note: bool, binds_thoughts: bool
    ) -> StandingBlock:
        """Returns the block of standing facts."""
        facts = context.snapshot.standing
        if not facts or self.recaller.limit_recalled_tokens(context) <= 0:
            return StandingBlock()
        pinned_facts = self.list_pinned_facts(context, takes_note=takes_note, binds_thoughts=binds_thoughts)
        return make_standing_block(facts, context.blocks, pinned_facts)

    def _may_rebuild(self, context: MemoryContext, *, binds_thoughts: bool) -> bool:
        """Returns whether the memory section may be rendered again: it costs nothing, or the agent asks for that."""
        return context.request.spec.rebuilds_section or (not binds_thoughts and self._is_cache_gone(context))

    def _is_cache_gone(self, context: MemoryContext) -> bool:
        """Returns whether the provider's cache of the conversation has expired by now."""
        match_point = context.plan.match.match_point
        if match_point is None:
            return False
        idle_s = context.plan.query.now - (match_point.ended or match_point.begun)
        return idle_s > self.provider_cache_s
