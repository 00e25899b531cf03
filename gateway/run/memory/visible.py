"""The content that a request shows already, so that no note repeats it."""

from __future__ import annotations

from gateway.core.conversation.tree import Tree
from gateway.run.memory.known import Known
from gateway.run.memory.prompt import Prompt
from storage.records import Exchange, Message
from storage.value import frozen


@frozen
class VisibleContent:
    """The content that one request shows. prompt: the prompt without this request's note, which is made later."""

    known: Known
    prompt: Prompt

    def numbers(self) -> range:
        """Returns messages that need not even be looked at: the request has them word for word."""
        known, anchor = self.known, self.known.plan.match.anchor
        if anchor is None:
            return range(0)
        behind = first = anchor.seq + len(anchor.inputs) + 1
        if known.is_ours:
            first = max(anchor.run, self._first_filled(behind))
        elif known.is_plain and not self.prompt.window.evicted_tokens:
            first = anchor.run
        return range(first, behind)

    def _first_filled(self, otherwise: int) -> int:
        """Returns the number from which on a line of ours is filled in, without a gap and in whole exchanges."""
        window = self.prompt.window
        filled = range(len(self.prompt.composition.fill)) if window.filled is None else window.filled
        if not filled:
            return otherwise
        gap = next((n for n in range(len(filled) - 1, 0, -1) if filled[n - 1] != filled[n] - 1), 0)
        begins = self.prompt.composition.fill[filled[gap]].at or (0, 0)
        return next((x.seq for x in self.known.path if (x.depth, x.offset) >= begins), otherwise)

    def atoms(self) -> set[bytes]:
        """Returns the hashes of all that is visible."""
        listing, dropped = self.known.plan.query.listing, self.prompt.window.dropped
        if dropped:
            places = zip(listing.atoms, listing.positions, strict=True)
            found = {a for atoms, place in places if place not in dropped for a in atoms}
        else:
            found = set(listing.flat(len(listing)))
        for each in self.prompt.fill:
            found.update(each.atoms)
        return found

    def notes(self) -> list[str]:
        """Returns earlier notes of ours, as far as they are still visible."""
        dropped = self.prompt.window.dropped
        found = [note for i, note in self.prompt.composition.notes.items() if i not in dropped]
        for each in self.prompt.fill:
            found.append(each.note)
        return found

    def shows_origin(self, m: Message) -> bool:
        """Returns whether a fact was learned from what is visible anyway."""
        if self.prompt.window.evicted_tokens:
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
