"""The content that a request shows already, so that no note repeats it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from gateway.core.conversation.canonical import text_of
from gateway.core.conversation.tree import Tree
from gateway.run.memory.known import Known
from gateway.run.memory.prompt import Prompt
from storage.records import Exchange, Message


@dataclass(frozen=True, slots=True)
class VisibleContent:
    """The content that one request shows. prompt: the prompt without this request's note, which is made later."""

    known: Known
    prompt: Prompt

    @property
    def _is_cut(self) -> bool:
        return self.prompt.window.evicted_tokens > 0

    def numbers(self) -> range:
        """Returns messages that need not even be looked at: the client's list has them word for word."""
        anchor = self.known.plan.match.anchor
        if not self.known.is_plain or anchor is None or self._is_cut:
            return range(0)
        return range(anchor.run, anchor.seq + len(anchor.inputs) + 1)

    def atoms(self) -> set[bytes]:
        """Returns the hashes of all that is visible."""
        listing, composed, window = self.known.plan.query.listing, self.prompt.composition, self.prompt.window
        dropped: Container[int] = window.dropped if self._is_cut else ()
        is_all = not self._is_cut or window.filled is None
        filled = range(len(composed.fill)) if is_all else window.filled or ()
        found = {
            a for i, atoms in enumerate(listing.atoms) if listing.positions[i] not in dropped for a in atoms
        }
        found.update(a for n in filled for a in composed.fill_atoms[n])
        return found

    def notes(self) -> list[str]:
        """Returns earlier notes of ours, as far as they are still visible."""
        if self._is_cut:
            dropped = self.prompt.window.dropped
            notes = [note for i, note in self.prompt.composition.notes.items() if i not in dropped]
            return notes + [text_of(m) for m in self.prompt.fill if m.get("role") == "user"]
        return [note for x in self.known.path for note in x.notes.values() if note]

    def shows_origin(self, m: Message) -> bool:
        """Returns whether a fact was learned from what is visible anyway."""
        if m.source != "fact" or self._is_cut:
            return False
        anchor = self.known.plan.match.anchor
        # On a plain path not every exchange is loaded.
        if self.known.is_plain:
            return anchor is not None and m.conversation == anchor.conversation
        return bool(m.origins) and self.known.path_ids.issuperset(m.origins)

    def replaced(self, idle_s: float) -> set[int]:
        """Returns the exchanges whose words this list says otherwise, as far as no request has finished on it.

        That is a transcript that grew, a correction, a reply that was cut short or not spoken at all.
        """
        tree, plan = self.known.tree, self.known.plan
        # A reply that came back cut is stored as it was generated until this request has finished.
        found = {amendment.exchange for amendment in plan.amendments}
        if self.known.is_plain:
            # The exchange has no alternative, and stands in the form in which it came back.
            return found
        unsettled = [x for x in self.known.path if not tree.is_carried(x)]
        found |= {x.id for x in unsettled}
        for x in (*unsettled, plan.exchange):
            if x.parent is not None:
                found |= {y.id for y in tree.siblings(x) if not tree.kids(y)}
            elif plan.conversation is not None:
                # Only openings that this list extends are replaced; a named conversation may have several roots.
                roots = _recent_roots(tree, plan.conversation, plan.query.now, idle_s)
                tree.load_together(roots)
                found |= {y.id for y in roots if tree.extends(x, y)}
        return found


def _recent_roots(tree: Tree, conversation: int, now: float, idle_s: float) -> list[Exchange]:
    roots = tree.roots(conversation)
    return [y for y in roots if not tree.kids(y) and tree.last(y, now) >= now - idle_s]
