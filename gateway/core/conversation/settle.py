"""What stands after a request has ended: supersession, confirmation, forms, tombstones.

`finish` and `cancel` change a tree that was loaded afresh inside the writing transaction (others may have ended
meanwhile); what they changed is what the store writes. Only what a request was part of is looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gateway.core.conversation.canonical import Canon, WireMessage, squash, text_of, visible
from gateway.core.conversation.plan import Amendment, Plan, find_opening
from gateway.core.conversation.provider_fields import has_opaque
from gateway.core.conversation.tree import Tree, end_offset, is_forgotten, is_tombstone
from storage.records import Atom, Evicted, Exchange, State

__all__ = ["Ended", "cancel", "contents", "finish", "head_of", "mergeable", "open_", "refresh_standing"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended. full: our reply's messages as the upstream saw them; said: as the client has it.

    id: of the exchange to be written (negative: not yet stored). ours: ids of the calls that the gateway ran.
    edits: whether memory operations hang on it. notes: index in the exchange's input -> text. evicted: what the request
    left out.
    """

    id: int
    full: Sequence[WireMessage]
    said: WireMessage
    now: float
    notes: Mapping[int, str]
    ours: frozenset[str] = frozenset()
    edits: bool = False
    snapshot: int | None = None
    evicted: Evicted | None = None


def finish(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """The request went to its end: its exchange stands, or is the same as one that does already."""
    query = plan.query
    for amendment in plan.amendments:
        _amend(tree, plan, amendment)
    revived = {a.exchange for a in plan.amendments if _revive(tree, a)}
    e = _exchange(tree, plan, ended)
    canon = query.listing.canon
    reply = canon.atoms(ended.said)
    e = replace(e, reply=reply, ended=ended.now, stopped=None, size=len(squash(text_of(ended.said))))
    twin = next(
        (
            x
            for x in tree.siblings(e)
            if x.ended is not None
            and tree.is_same_input(x, e)
            and x.reply == reply
            and is_tombstone(x) == is_tombstone(e)
        ),
        None,
    )
    if twin is not None:
        e = tree.change(twin.id, touched=max(e.begun, twin.touched), ended=ended.now)
        if not is_tombstone(e):
            e = tree.change(e.id, **contents(plan, ended), notes=twin.notes or ended.notes)
            if not e.merged:
                e = tree.change(e.id, edits=ended.edits)
            _refresh_prior(tree, e)
    else:
        if not is_tombstone(e):
            e = replace(e, **contents(plan, ended), edits=ended.edits)
        e = replace(
            e,
            path=_path_of(tree, e, canon),
            reply_key=canon.reply_key(reply),
            head=head_of(tree, e),
        )
        e = tree.add(e)
    judged = [y for y in tree.chain(e) if (y.id == e.id and twin is None) or y.superseded or y.id in revived]
    tree.load_together(x for y in judged for x in (y, *tree.siblings(y)))
    for y in judged:
        if y.superseded:
            y = tree.change(y.id, superseded=False)
        _judge(tree, y, named=query.named, idle_s=query.idle_s)
    for i in revived:
        _mark_carried(tree, tree.by_id[i])
    _mark_carried(tree, e)
    refresh_standing(tree, e, named=query.named)
    return tree.by_id[e.id]


def open_(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Append mode: the user's message, before the model is asked. A process that dies leaves it as a cancelled one."""
    e = _exchange(tree, plan, ended)
    return tree.add(e if is_tombstone(e) else replace(e, state=State.OPEN))


def cancel(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """The client left. What was generated is never told; it is kept to recognise the part that comes back as said."""
    e = _exchange(tree, plan, ended)
    if is_tombstone(e):
        return tree.add(replace(e, stopped=ended.now))
    e = replace(e, state=State.CANCELLED, stopped=ended.now, **contents(plan, ended))
    if ended.full:
        e = replace(e, edits=ended.edits, size=len(squash(text_of(ended.said))))
    else:
        e = replace(e, said=None, full=None, hidden=False, opaque=False)
    return tree.add(e)


def _exchange(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """The new exchange at its place. An anchor that was forgotten meanwhile leaves a new beginning."""
    conversation = plan.conversation
    parent = tree.get(plan.exchange.parent)
    draft = tree.get(ended.id)
    if draft is not None:
        tree.remove(draft)  # the user's message, written before the model was asked
    e = replace(
        plan.exchange,
        id=ended.id,
        seq=draft.seq if draft else 0,
        run=draft.run if draft else 0,
        parent=None if parent is None else parent.id,
        notes=dict(ended.notes),
        hush=plan.hush,
        snapshot=ended.snapshot,
        evicted=ended.evicted,
        length=len(plan.exchange.inputs) + 1,
    )
    if parent is not None:
        e = replace(
            e,
            prior=tree.prior(e),
            offset=end_offset(parent),
            length=parent.length + e.length,
        )
    if parent is not None and draft is None:  # if nobody else speaks in between, it goes on with the same run
        e = replace(e, seq=parent.seq + len(parent.inputs) + 1, run=parent.run)
    tree.lend(e.id, plan.messages)
    if parent is None and not plan.query.named:
        opening = _later_opening(tree, e)
        if opening is None and conversation is None:
            opening = find_opening(tree, e, plan.query)
        conversation = opening.conversation if opening else conversation
    e = replace(e, conversation=conversation if conversation is not None else e.id)
    if plan.off or any(is_forgotten(x) and tree.is_same_input(x, e) for x in tree.siblings(e)):
        return replace(e, state=State.OFF, notes={})
    return replace(e, input=orjson.dumps(_kept(plan)))


def _later_opening(tree: Tree, e: Exchange) -> Exchange | None:
    """Of requests that overlap the one that began later joins the earlier; the earlier may end later."""
    openings = [x for x in tree if x.parent is None]
    tree.load_together(openings)
    later = (x for x in openings if x.begun > e.begun and tree.extends(x, e))
    return min(later, key=lambda x: x.begun, default=None)


def _kept(plan: Plan) -> list[WireMessage]:
    """The input with what was off the record reduced to its role."""
    return [
        {"role": m.get("role"), "content": ""} if i in plan.hush else m for i, m in enumerate(plan.messages)
    ]


def contents(plan: Plan, ended: Ended) -> dict[str, Any]:
    """The fields of an exchange that hold what was said."""
    hidden = len(ended.full) > 1
    full = orjson.dumps({"messages": list(ended.full), "ours": sorted(ended.ours)}) if hidden else None
    said = ended.full[0] if len(ended.full) == 1 else ended.said
    return {
        "input": orjson.dumps(_kept(plan)),
        "said": orjson.dumps(said),
        "full": full,
        "hidden": hidden,
        "opaque": has_opaque(said),
        "model": plan.query.model,
    }


def _flat(e: Exchange) -> list[Atom]:
    return [a for atoms in e.inputs for a in atoms]


def _path_of(tree: Tree, e: Exchange, canon: Canon) -> bytes:
    """Hash of the path down to its reply; b"" where what it goes on from is not known, and nothing is found by it."""
    rest = [e]
    above = tree.parent(e)
    while above is not None and (above.reply is None or not above.path):
        rest.append(above)
        above = tree.parent(above)
    if above is None and rest[-1].parent is not None:
        return b""
    path = above.path if above is not None else b""
    for x in reversed(rest):
        path = canon.path((*_flat(x), *(x.reply or ())), path)
    return path


# -- forms


def _amend(tree: Tree, plan: Plan, amendment: Amendment) -> None:
    x = tree.get(amendment.exchange)
    if x is None:
        return
    listing = plan.query.listing
    if amendment.block is not None:
        start, end = amendment.block
        inputs = tuple(listing.atoms[start:end])
        notes = {i: n for i, n in x.notes.items() if inputs[i : i + 1] == x.inputs[i : i + 1]}
        x = tree.change(
            x.id,
            inputs=inputs,
            media=amendment.media,
            notes=notes,
            input=None
            if is_tombstone(x)
            else orjson.dumps(
                [
                    {"role": m.get("role"), "content": ""} if i in x.hush else m
                    for i, m in enumerate(listing.messages[start:end])
                ]
            ),
        )
    if amendment.reply is not None:
        start, end = amendment.reply
        messages = listing.messages[start:end]
        said = visible(messages) if len(messages) > 1 else messages[0]
        reply = tuple(sorted(listing.canon.atoms(said), key=lambda a: a[:1]))
        x = tree.change(
            x.id,
            reply=reply,
            reply_key=listing.canon.reply_key(reply),
            size=len(squash(text_of(said))),
            said=None if is_tombstone(x) or -1 in x.hush else orjson.dumps(said),
        )
    _rehash(tree, x, plan)


def _rehash(tree: Tree, x: Exchange, plan: Plan) -> None:
    """A changed form changes the hash of its path, and of what (uncarried) already lies below it."""
    canon, todo = plan.query.listing.canon, [x]
    while todo:
        x = todo.pop()
        offset = 0
        parent = tree.parent(x)
        if parent is not None:
            offset = end_offset(parent)
        elif x.parent is not None:
            offset = x.offset
        x = tree.change(x.id, offset=offset, prior=tree.prior(x) if parent is not None else x.prior)
        if x.reply is not None:
            x = tree.change(x.id, path=_path_of(tree, x, canon))
        todo += tree.kids(x)


def _revive(tree: Tree, amendment: Amendment) -> bool:
    """A cancelled turn whose reply came back was had after all."""
    x = tree.get(amendment.exchange)
    if x is None or amendment.reply is None or x.ended is not None:
        return False
    state = x.state if is_tombstone(x) else State.FINISHED
    tree.change(x.id, ended=x.stopped, state=state)
    return True


def _refresh_prior(tree: Tree, x: Exchange) -> None:
    """What is below learns that x has additions now, or has none any more."""
    todo = tree.kids(x)
    while todo:
        kid = todo.pop()
        prior = tree.prior(kid)
        if prior != kid.prior:
            todo += tree.kids(tree.change(kid.id, prior=prior))


# -- who stands


def _judge(tree: Tree, y: Exchange, *, named: bool, idle_s: float) -> None:
    """Of alternatives at one place the one touched last stands.

    A turn replaces what it repeats or extends (after the first: or is extended by); if that is nothing that stands,
    whatever had ended before it began. What a later turn carried never falls.
    """
    rivals = [x for x in tree.siblings(y) if x.ended is not None and not x.superseded]

    def grew(a: Exchange, b: Exchange) -> bool:
        return tree.extends(a, b)

    def is_later(a: Exchange, b: Exchange) -> bool:
        return tree.touched(a) <= tree.touched(b)

    near = [
        x
        for x in rivals
        if (grew(y, x) if is_later(x, y) else grew(x, y))
        or (y.parent is not None and (grew(x, y) or grew(y, x)))
    ]
    apart = [x for x in rivals if y.parent is not None and tree.are_apart(x, y)]
    for x in near or apart:
        old, new = (x, y) if is_later(x, y) else (y, x)
        if not tree.is_carried(old) and (near or named or tree.touched(new) - tree.end(old) <= idle_s):
            tree.change(old.id, superseded=True)


def _mark_carried(tree: Tree, e: Exchange) -> None:
    """Sets the stored flag of what a finished request with a new user message carried: one turn, all its exchanges."""
    if tree.goes_on(e):
        return
    x = tree.parent(e)
    while x is not None:
        if not x.carried:
            tree.change(x.id, carried=True)
        if not tree.goes_on(x):
            return
        x = tree.parent(x)


def refresh_standing(tree: Tree, e: Exchange, *, named: bool) -> None:
    """Brings the stored flag in line for whatever the changes of one request may have moved."""
    chain = tree.chain(e)
    todo = [x for i in tree.changed for x in [tree.by_id[i]]]
    if len(chain) <= 2 or any(x.parent is None for x in todo):
        todo += [x for x in tree if x.parent is None and x.conversation == e.conversation]
    seen: set[int] = set()
    while todo:
        x = tree.by_id[todo.pop().id]
        if x.id in seen:
            continue
        seen.add(x.id)
        stands = tree.stands(x, named=named)
        if stands != x.standing:
            tree.change(x.id, standing=stands)
        todo += [c for c in tree.kids(x) if tree.goes_on(c)]


def head_of(tree: Tree, e: Exchange) -> int:
    """Of a first exchange: how many of its messages were made elsewhere.

    All up to the last assistant message, but for those with which an opening was already sent here.
    """
    if e.parent is not None:
        return 0
    sent = [
        x for x in tree.siblings(e) if len(x.inputs) < len(e.inputs) and x.inputs == e.inputs[: len(x.inputs)]
    ]
    if sent:
        return head_of(tree, max(sent, key=lambda x: len(x.inputs)))
    return max((i + 1 for i, atoms in enumerate(e.inputs) if atoms and atoms[0][:1] in b"ac"), default=0)


def mergeable(tree: Tree, now: float, idle_s: float, *, named: bool) -> list[tuple[Exchange, str]]:
    """Exchanges whose memory edits may enter the blocks, oldest first, and why.

    What is dated in the future ended before the clock was put back.
    """
    found = [
        (e, "carried" if tree.is_carried(e) else "idle")
        for e in tree
        if e.edits and not e.merged and e.ended is not None and tree.stands(e, named=named)
    ]
    return sorted(
        (
            (e, why)
            for e, why in found
            if why == "carried" or (e.ended is not None and abs(now - e.ended) > idle_s)
        ),
        key=lambda pair: (pair[0].begun, pair[0].id),
    )
