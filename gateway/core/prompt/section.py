"""The memory section of a conversation: a snapshot, pinned to the path until taking it again costs nothing.

What changes afterwards the model reads further down: what it changes itself in its tools' results, what others change
in the next note. So the first bytes of the prompt stay what they were, and the provider's cache holds. What the model
reads last about a block must be what holds. So a note states each block that is not as the prompt shows it last, and
what the prompt shows is taken from the texts that stand in it, whatever way they came there (`Composition.shown`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from gateway.core.prompt.shown_blocks import (
    NOTHING_SHOWN,
    Shown,
    changes_since,
    describe_mark,
    describe_tools,
    digest,
    last_shown,
    render_section,
    show,
)
from storage.records import Block, SentSection

# Where an agent's own prompt has this placeholder, its blocks stand there, and otherwise after it.
CORE_MEMORY = "{CORE_MEMORY}"


def made_of(system: str, offered: Iterable[str]) -> str:
    """Returns the hash of what an agent's prompt is made of without its blocks."""
    return digest("\0".join((system, *offered)))


class SectionParts(Struct, frozen=True):
    """The parts of a section.

    With other ones the prompt changes from its beginning anyway, but for the blocks and the tools.
    """

    blocks: Sequence[Block]  # as this path sees them
    offered: Mapping[str, str]  # names of the gateway tools in this request
    system: str  # the agent's own prompt, which stands before the blocks
    epoch: int  # the memory's now
    mark: str  # of the memory's notes
    summary: int = 0  # which one stands after the section; 0: none
    made: str = ""  # what an agent that may change is made of (`made_of`); "": one of the settings
    standing: Sequence[int] = ()  # the numbers of the standing facts that one of the blocks shows

    @property
    def has_any(self) -> bool:
        """True where there is something to show."""
        has_blocks = any(block.value.strip() for block in self.blocks)
        return bool(has_blocks or self.system or self.offered or self.summary or self.made)

    def render(self) -> str:
        """Returns the text of the system message."""
        section = render_section(self.blocks, self.mark, describe_tools(list(self.offered)))
        if not section and (self.summary or self.made):
            # A summary bears the mark, and notes may go to an agent's model within a run. Elsewhere the first note
            # names the mark, and a conversation without notes needs none.
            section = describe_mark(self.mark)
        return _join(self.system, section, has_place=bool(self.made))

    def known(self) -> dict[str, Any]:
        """Returns what is stored with the rendered text, so that a later change of the inputs is noticed."""
        known = {
            "blocks": last_shown(map(show, self.blocks), NOTHING_SHOWN),
            "tools": dict(self.offered),
            "epoch": self.epoch,
            "mark": self.mark,
        }
        if self.summary:
            known["summary"] = self.summary
        if self.made:
            known["made"] = self.made
        if self.standing:
            known["standing"] = [*self.standing]
        return known

    def are_of(self, known: Mapping[str, Any]) -> bool:
        """Returns whether a section was made of the same ones, but for the blocks and the tools."""
        found = (
            known.get("epoch", 0),
            known.get("mark"),
            known.get("summary", 0),
            known.get("made", self.made),
        )
        return found == (self.epoch, self.mark, self.summary, self.made)


def shown_standing(pinned: SentSection | None, epoch: int) -> Sequence[int] | None:
    """Returns the numbers of the standing facts that a path's section shows; None: it is made anew.

    epoch: the memory's. Something was forgotten where the section has another one.
    """
    if pinned is None:
        return ()
    return pinned.known.get("standing", ()) if pinned.known.get("epoch", 0) == epoch else None


class Section(Struct, frozen=True):
    """A section for one request."""

    sent: (
        SentSection | None
    )  # the path's from now on; id 0: it has to be stored; None: there is nothing to show
    parts: SectionParts | None = None  # of which one that is taken now is made
    changes: tuple[str, ...] = ()  # what the request's note has to state
    shown: Shown = field(default_factory=dict)  # what the prompt shows last of each block, with its note

    @property
    def text(self) -> str:
        return self.sent.text if self.sent else ""


NO_SECTION = Section(None)


def make_section(
    parts: SectionParts,
    *,
    pinned: SentSection | None,
    shown: Shown = NOTHING_SHOWN,
    goes_on: bool,
    is_due: bool,
    takes_note: bool,
) -> Section:
    """Returns the section for one request.

    pinned: the path's snapshot.
    shown: what the texts after the section show last of each block, without this request's note.
    goes_on: the conversation exists already.
    is_due: it costs nothing to take it again, or the agent asks for that.
    takes_note: a note can be attached to this request.
    """
    # A conversation that began without one has the profile's prompt alone. One of an agent over REST may begin with
    # messages that no provider has seen: its first ones, or those of an import.
    if pinned is None and goes_on and not parts.made:
        pinned = SentSection(0, parts.system, {**parts.known(), "blocks": {}, "summary": 0})
    if pinned is None and not parts.has_any:
        return Section(None, parts)
    if pinned is None or not parts.are_of(pinned.known):
        return _taken(parts, pinned, shown, takes_note=takes_note)
    if is_due:
        taken = _taken(parts, pinned, shown, takes_note=takes_note)
        # Where an older text after it would have the last word, and no note can follow that, the section waits.
        if takes_note or not changes_since(taken.shown, parts.blocks)[0]:
            return taken
    return _with_changes(pinned, parts, shown, takes_note=takes_note)


def _taken(parts: SectionParts, pinned: SentSection | None, shown: Shown, *, takes_note: bool) -> Section:
    """Returns a section that is taken now; the pinned one if it is the same."""
    text, known = parts.render(), parts.known()
    is_same = pinned is not None and pinned.text == text and pinned.known == known
    sent = pinned if is_same and pinned is not None else SentSection(0, text, known)
    return _with_changes(sent, parts, shown, takes_note=takes_note)


def _with_changes(sent: SentSection, parts: SectionParts, shown: Shown, *, takes_note: bool) -> Section:
    last = last_shown((shown,), sent.known.get("blocks", NOTHING_SHOWN))
    changes, after = changes_since(last, parts.blocks) if takes_note else ((), last)
    return Section(sent if sent.id or sent.text else None, parts, changes, after)


def _join(system: str, section: str, *, has_place: bool) -> str:
    """Returns the prompt with its section. has_place: it may say where that stands, as an agent's does."""
    if has_place and CORE_MEMORY in system:
        before, _, after = system.partition(CORE_MEMORY)
        return f"{before}{section}{after}"
    return f"{system}\n\n{section}" if system and section else system + section
