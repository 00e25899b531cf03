"""What a request shows already, so that no note tells it again."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.conversation.canonical import text_of
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from gateway.core.prompt.compose import Composition
from gateway.run.memory.assemble import Assembly
from storage.commands import Look
from storage.records import Exchange, Message

__all__ = ["VisibleContent"]


@dataclass(slots=True)
class VisibleContent:
    """tree: None for a plain turn. path: the ids of its exchanges. cut: the conversation, if it does not fit."""

    plan: Plan
    look: Look
    tree: Tree | None
    composition: Composition
    path: set[int]
    cut: Assembly | None

    def numbers(self) -> range:
        """Of messages that need not even be looked at: the client's list has them word for word."""
        anchor = self.plan.place.anchor
        if self.tree is not None or anchor is None or self.cut is not None:
            return range(0)
        return range(anchor.run, anchor.seq + len(anchor.inputs) + 1)

    def atoms(self) -> set[bytes]:
        listing, composed, cut = self.plan.query.listing, self.composition, self.cut
        dropped = cut.dropped if cut else ()
        filled = range(len(composed.fill)) if cut is None or cut.filled is None else cut.filled
        found = {
            a for i, atoms in enumerate(listing.atoms) if listing.places[i] not in dropped for a in atoms
        }
        found.update(a for n in filled for a in composed.fill_atoms[n])
        return found

    def told(self) -> list[str]:
        """What our notes told, as far as they are still in sight."""
        if self.cut is not None:
            dropped = self.cut.dropped
            notes = [note for i, note in self.composition.notes.items() if i not in dropped]
            return notes + [text_of(m) for m in self.cut.fill if m.get("role") == "user"]
        chain = self.look.additions if self.tree is None else self.tree.chain(self.plan.place.anchor)
        return [note for x in chain for note in x.notes.values() if note]

    def shows_origin(self, m: Message) -> bool:
        """Of a fact: whether it was learned from what is in sight anyway."""
        if m.source != "fact" or self.cut is not None:
            return False
        anchor = self.plan.place.anchor
        if self.tree is None:
            return anchor is not None and m.conversation == anchor.conversation
        return bool(m.origins) and self.path.issuperset(m.origins)

    def replaced(self, idle_s: float) -> set[int]:
        """What this list says in other words, as far as no request has finished on it: a transcript that grew, a
        correction, a reply that was cut short or not spoken at all."""
        tree, plan = self.tree, self.plan
        # A reply that came back cut is stored as it was generated until this request has finished.
        found = {amendment.exchange for amendment in plan.amendments}
        if tree is None:
            return found
        unsettled = [x for x in tree.chain(plan.place.anchor) if not tree.is_carried(x)]
        found |= {x.id for x in unsettled}
        for x in (*unsettled, plan.exchange):
            if x.parent is not None:
                found |= {y.id for y in tree.siblings(x) if not tree.kids(y)}
            elif plan.conversation is not None:
                # Of what opened it only what goes on: in a named conversation lists may stand side by side.
                roots = _recent_roots(tree, plan.conversation, plan.query.now, idle_s)
                tree.load_together(roots)
                found |= {y.id for y in roots if tree.extends(x, y)}
        return found


def _recent_roots(tree: Tree, conversation: int, now: float, idle_s: float) -> list[Exchange]:
    roots = tree.roots(conversation)
    return [y for y in roots if not tree.kids(y) and tree.last(y, now) >= now - idle_s]
