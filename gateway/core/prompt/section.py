"""The memory section of a conversation: a snapshot of the blocks, pinned to the path until a new one costs nothing.

While it is pinned, the first bytes of the prompt stay the same, and the provider's cache holds. The model reads later
changes further down: its own changes in the results of its tools, other changes in the next note. The last version of a
block that the model reads must be the current one, so a note states each block that differs from the version that the
prompt shows last (`Composition.shown_blocks`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.prompt.shown_blocks import (
    NOTHING_SHOWN,
    ShownBlocks,
    combine_shown,
    describe_mark,
    describe_tools,
    digest_shown,
    list_changes,
    make_shown_by_block,
    render_section,
)
from storage.records import Block, SectionRecord, SentSection

# The mark that a section stores once the beginning of its path has changed.
_PREFIX_CHANGED: Final[SectionRecord] = {"prefix_changed": True}
# The section replaces this placeholder in an agent's own prompt. Without a placeholder, it follows the prompt.
CORE_MEMORY = "{CORE_MEMORY}"


def digest_definition(system: str, offered_tools: Iterable[str]) -> str:
    """Returns the digest of an agent's additions to its prompt. offered_tools: the names of the agent's tools."""
    return digest_shown("\0".join((system, *offered_tools)))


class SectionParts(Struct, frozen=True):
    """The parts of which a section is rendered.

    Another epoch, mark, summary or definition changes the prompt from its beginning, so that a new section costs
    nothing more. Changed blocks are stated in a note.
    """

    # The memory blocks as this path sees them.
    blocks: Sequence[Block]
    # The tools by the names under which this request offers them.
    offered_tools: Mapping[str, str]
    # The agent's own prompt, which stands before the blocks.
    system: str
    # The memory's current epoch.
    epoch: int
    # The mark of the memory's notes.
    mark: str
    # The id of the summary that stands after the section; 0: none.
    summary_id: int = 0
    # The digest of an agent's definition, which may change (`digest_definition`); "": a profile of the settings.
    definition_digest: str = ""
    # The numbers of the standing facts that one of the blocks shows.
    standing_seqs: Sequence[int] = ()

    @property
    def has_any(self) -> bool:
        """True if the section would show anything."""
        has_blocks = any(block.value.strip() for block in self.blocks)
        return bool(
            has_blocks or self.system or self.offered_tools or self.summary_id or self.definition_digest
        )

    def render(self) -> str:
        """Returns the text of the system message."""
        section = render_section(self.blocks, self.mark, describe_tools(list(self.offered_tools)))
        if not section and (self.summary_id or self.definition_digest):
            # A summary bears the mark, and notes may go to an agent's model within a run. Elsewhere the first note
            # names the mark, and a conversation without notes needs none.
            section = describe_mark(self.mark)
        return _join(self.system, section, may_have_placeholder=bool(self.definition_digest))

    def render_system(self) -> str:
        """Returns the text of the system message without blocks and tools."""
        return _join(self.system, "", may_have_placeholder=bool(self.definition_digest))

    def make_record(self) -> SectionRecord:
        """Returns the record that is stored with the rendered text (`SentSection.known`), to notice later changes."""
        record: SectionRecord = {
            "blocks": combine_shown(map(make_shown_by_block, self.blocks), NOTHING_SHOWN),
            "tools": dict(self.offered_tools),
            "epoch": self.epoch,
            "mark": self.mark,
        }
        if self.summary_id:
            record["summary"] = self.summary_id
        if self.definition_digest:
            record["made"] = self.definition_digest
        if self.standing_seqs:
            record["standing"] = [*self.standing_seqs]
        return record

    def has_same_source(self, record: SectionRecord) -> bool:
        """Returns whether a stored section was rendered of the same parts; blocks and tools are not compared."""
        stored_values = (
            record.get("epoch", 0),
            record.get("mark"),
            record.get("summary", 0),
            record.get("made", self.definition_digest),
        )
        return stored_values == (self.epoch, self.mark, self.summary_id, self.definition_digest)


def find_shown_standing(pinned_section: SentSection | None, epoch: int) -> Sequence[int] | None:
    """Returns the numbers of the standing facts that a path's section shows; None: the section must be rendered again.

    epoch: the memory's current epoch. A section of an earlier epoch may show a fact that was forgotten since.
    """
    if pinned_section is None:
        return ()
    return pinned_section.known.get("standing", ()) if pinned_section.known.get("epoch", 0) == epoch else None


class Section(Struct, frozen=True):
    """A section for one request."""

    # The section of the path from now on, with the id 0 if it has to be stored; None: the path has no section.
    sent: SentSection | None
    # The parts of a section that is rendered now; None: the section is not rendered.
    parts: SectionParts | None = None
    # The changes of blocks that the request's note has to state.
    changes: tuple[str, ...] = ()
    # The version of each block that the prompt shows last, this request's note included.
    shown_blocks: ShownBlocks = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.sent.text if self.sent else ""

    @property
    def has_changed_prefix(self) -> bool:
        """True if an earlier request of the path had another section, other tools, or hidden rounds that are gone.

        This holds for the rest of the path: each later request may bring back thoughts of earlier requests.
        """
        return self.sent is not None and "prefix_changed" in self.sent.known

    def name_tools(self, system: str, offered_tools: Collection[str]) -> str:
        """Returns a system text that names only the tools that a request has.

        system: the section's text, or the agent's own prompt alone.
        offered_tools: the names of the gateway's tools in the request.
        """
        named_tools = (self.sent and self.sent.known.get("tools")) or {}
        if named_tools.keys() <= frozenset(offered_tools):
            return system
        old_sentence = describe_tools([*named_tools])
        new_sentence = describe_tools([name for name in named_tools if name in offered_tools])
        return system.replace(f"{old_sentence}\n", new_sentence and f"{new_sentence}\n", 1)

    def without_blocks(self) -> Section:
        """Returns a copy of the section with the agent's own prompt alone.

        It is stored as if it showed the blocks, so that no note states the blocks until the section is rendered again.
        """
        if self.parts is None or self.sent is None:
            return self
        text = self.parts.render_system()
        if text == self.sent.text:
            return self
        return replace(self, sent=SentSection(0, text, self.sent.known | _PREFIX_CHANGED))

    def with_changed_prefix(self) -> Section:
        """Returns a copy of the section that notes a change of the prefix after it."""
        return self if self.sent is None else replace(self, sent=_with_prefix_changed(self.sent))


# The value for a request without a memory section.
NO_SECTION = Section(None)


def make_section(
    parts: SectionParts,
    *,
    pinned_section: SentSection | None,
    shown_after: ShownBlocks = NOTHING_SHOWN,
    is_continued: bool,
    may_rebuild: bool,
    takes_note: bool,
) -> Section:
    """Returns the section for one request.

    pinned_section: the section that the path has; None: the path has no section.
    shown_after: the content of each block that the texts after the section show last, without this request's note.
    is_continued: True if the conversation exists already.
    may_rebuild: True if rendering the section again costs nothing, or the agent asks for it.
    takes_note: True if a note can be attached to this request.
    """
    # A conversation that began without a section has the profile's prompt alone. The conversation of an agent with a
    # definition may begin with messages that no provider has seen: the agent's first messages, or imported ones.
    if pinned_section is None and is_continued and not parts.definition_digest:
        pinned_section = SentSection(0, parts.system, {**parts.make_record(), "blocks": {}, "summary": 0})
    if pinned_section is None and not parts.has_any:
        return Section(None, parts)
    if pinned_section is not None and pinned_section.known.get("tools", {}) != parts.offered_tools:
        pinned_section = _with_prefix_changed(pinned_section)
    if pinned_section is None or not parts.has_same_source(pinned_section.known):
        return _render_or_keep(parts, pinned_section, shown_after, takes_note=takes_note)
    if may_rebuild:
        rendered = _render_or_keep(parts, pinned_section, shown_after, takes_note=takes_note)
        # A text after the section may show an older version of a block, which only a note can correct. Without one, the
        # pinned section stays.
        if takes_note or not list_changes(rendered.shown_blocks, parts.blocks).texts:
            return rendered
    return _with_changes(pinned_section, parts, shown_after, takes_note=takes_note)


def _with_prefix_changed(sent_section: SentSection) -> SentSection:
    """Returns a section with the mark that the beginning of its path has changed."""
    record = sent_section.known | _PREFIX_CHANGED
    return sent_section if sent_section.known == record else SentSection(0, sent_section.text, record)


def _render_or_keep(
    parts: SectionParts, pinned_section: SentSection | None, shown_after: ShownBlocks, *, takes_note: bool
) -> Section:
    """Returns a section that is rendered now; the pinned section if both are the same."""
    text = parts.render()
    record = parts.make_record()
    if pinned_section is None:
        sent_section = SentSection(0, text, record)
    elif pinned_section.text == text and pinned_section.known in (record, record | _PREFIX_CHANGED):
        sent_section = pinned_section
    else:
        sent_section = SentSection(0, text, record | _PREFIX_CHANGED)
    return _with_changes(sent_section, parts, shown_after, takes_note=takes_note)


def _with_changes(
    sent_section: SentSection, parts: SectionParts, shown_after: ShownBlocks, *, takes_note: bool
) -> Section:
    """Returns the section as it was sent, with the changes of blocks that the request's note has to state."""
    shown = combine_shown((shown_after,), sent_section.known.get("blocks", NOTHING_SHOWN))
    changes: tuple[str, ...] = ()
    if takes_note:
        changes, shown = list_changes(shown, parts.blocks)
    return Section(sent_section if sent_section.id or sent_section.text else None, parts, changes, shown)


def _join(system: str, section: str, *, may_have_placeholder: bool) -> str:
    """Returns an agent's own prompt with the section, at the placeholder or at the end."""
    if may_have_placeholder and CORE_MEMORY in system:
        before, _, after = system.partition(CORE_MEMORY)
        return f"{before}{section}{after}"
    return f"{system}\n\n{section}" if system and section else system + section
