"""The memory section of a conversation: a snapshot, pinned to the path until taking it again costs nothing.

What the model itself changes it learns from its tools' results; what others change rides in the next note. So the
first bytes of the prompt stay what they were, and the provider's cache holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from gateway.core.prompt.blocks import describe_tools, render_section, section_changes
from storage.records import Block, Snapshot
from storage.value import frozen

# Where an agent's own prompt says so, its blocks stand there, and otherwise behind it.
CORE_MEMORY = "{CORE_MEMORY}"


@frozen
class Section:
    """A section for one request. snapshot: the path's from now on; id 0: it has to be stored; None: nothing to say.

    changes: what a note has to say, or [].
    """

    snapshot: Snapshot | None
    changes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.snapshot.text if self.snapshot else ""


NO_SECTION = Section(None)


def digest(value: str) -> str:
    """Returns the hash by which a path remembers what it knows of a block."""
    return blake2b(value.encode(), digest_size=8).hexdigest()


def made_of(system: str, offered: Iterable[str]) -> str:
    """Returns the hash of what an agent's prompt is made of beside its blocks."""
    return digest("\0".join((system, *offered)))


@frozen
class SectionParts:
    """The parts of a section. With other ones the prompt begins anew anyway, but for the blocks and the tools.

    blocks: as this path sees them. offered: names of our tools in this request. system: the agent's own prompt, which
    stands before the blocks. epoch: the memory's now. summary: which one stands behind the section, 0: none.
    made: what an agent that may change is made of (`made_of`), "": one of the settings.
    """

    blocks: Sequence[Block]
    offered: Mapping[str, str]
    system: str
    epoch: int
    summary: int = 0
    made: str = ""

    def render(self) -> str:
        """Returns the text of the system message."""
        section = render_section(self.blocks, describe_tools(list(self.offered)))
        return _join(self.system, section, has_place=bool(self.made))

    def known(self) -> dict[str, Any]:
        """Returns what a path knows that has seen them."""
        known = {"blocks": _digests(self.blocks), "tools": dict(self.offered), "epoch": self.epoch}
        if self.summary:
            known["summary"] = self.summary
        if self.made:
            known["made"] = self.made
        return known

    def are_of(self, known: Mapping[str, Any]) -> bool:
        """Returns whether a path knows the same ones, but for the blocks and the tools."""
        found = known.get("epoch", 0), known.get("summary", 0), known.get("made", self.made)
        return found == (self.epoch, self.summary, self.made)


def make_section(
    parts: SectionParts,
    *,
    pinned: Snapshot | None,
    goes_on: bool,
    idle_s: float,
    cache_s: float,
    always: bool,
    takes_note: bool,
) -> Section:
    """Returns the section for one request.

    pinned: the path's snapshot. goes_on: the conversation exists already. idle_s: since the path was sent upstream.
    cache_s: how long the provider keeps its prompt cache. always: the agent asks for a new one with each request.
    takes_note: a note can be attached to this request.
    """
    if pinned is None and not (parts.system or parts.blocks or parts.offered or parts.summary or parts.made):
        return NO_SECTION
    # A conversation that began off the record has the profile's prompt alone. One of an agent over REST may begin with
    # messages that no provider has seen: its first ones, or those of an import.
    if goes_on and pinned is None and not parts.made:
        alone = _join(parts.system, "", has_place=False)
        pinned = Snapshot(0, alone, {"blocks": {}, "tools": dict(parts.offered), "epoch": parts.epoch})
    # It is taken again where it may show what is to be forgotten, and where the provider's cache is gone: after the
    # idle time, or because the prefix breaks anyway.
    if pinned is None or always or idle_s > cache_s or not parts.are_of(pinned.known):
        return _taken_again(parts, pinned)
    now = _digests(parts.blocks)
    if pinned.known.get("blocks", {}) == now or not takes_note:
        return Section(pinned if pinned.id or pinned.text else None)
    # The model learns of the changes by a note; the section's bytes stay, and with them the cached prefix.
    changes = untold(pinned, parts.blocks, parts.blocks)
    return Section(replace(pinned, id=0, known={**pinned.known, "blocks": now}), changes)


def _taken_again(parts: SectionParts, pinned: Snapshot | None) -> Section:
    text, known = parts.render(), parts.known()
    if pinned is not None and pinned.text == text and pinned.known == known:
        return Section(pinned if pinned.id else None)
    if not text and not parts.blocks and not parts.summary:
        return NO_SECTION
    return Section(Snapshot(0, text, known))


def _join(system: str, section: str, *, has_place: bool) -> str:
    """Returns the prompt with its section. has_place: it may say where that stands, as an agent's does."""
    if has_place and CORE_MEMORY in system:
        before, _, behind = system.partition(CORE_MEMORY)
        return f"{before}{section}{behind}"
    return f"{system}\n\n{section}" if system and section else system + section


def untold(pinned: Snapshot | None, read: Sequence[Block], blocks: Sequence[Block]) -> tuple[str, ...]:
    """Returns what a path has to be told of blocks that others changed since it saw them, a text for each.

    read: the blocks without the edits that the path's model has just made; blocks: with them.
    """
    if pinned is None:
        return ()
    seen = pinned.known.get("blocks", {})
    now = _digests(read)
    versions = {
        b.label: b.version if seen[b.label] == now.get(b.label) else -1 for b in blocks if b.label in seen
    }
    versions.update({label: -1 for label in seen if label not in now})
    return tuple(section_changes(versions, blocks))


def learned(snapshot: Snapshot | None, blocks: Sequence[Block]) -> Snapshot | None:
    """Returns the snapshot of a path whose model has just edited blocks, and so knows what they say now."""
    if snapshot is None:
        return None
    now = _digests(blocks)
    if snapshot.known.get("blocks") == now:
        return snapshot
    return replace(snapshot, id=0, known={**snapshot.known, "blocks": now})


def _digests(blocks: Sequence[Block]) -> dict[str, str]:
    return {b.label: digest(b.value) for b in blocks}
