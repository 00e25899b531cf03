"""Settling what stands after a request has ended: supersession, confirmation, forms, tombstones.

`finish` and `cancel` change a tree that was loaded again inside the writing transaction, since other requests may have
ended meanwhile. The store writes what they have changed. They judge again only the exchanges that the request touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import Canon, WireMessage, is_user, squash, text_of, visible
from gateway.core.conversation.fillers import with_fillers_of
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match import MemoryUse
from gateway.core.conversation.plan import (
    Amendment,
    Plan,
    find_opening,
    find_redactions,
    is_asked_again,
    on_record,
)
from gateway.core.conversation.provider_fields import has_opaque
from gateway.core.conversation.tree import Tree, end_offset, flat, is_forgotten, is_tombstone
from gateway.core.thoughts import without_thoughts
from storage.records import Evicted, Exchange, State


class Ended(Struct, frozen=True):
    """The end of a request."""

    # The id of the exchange to be written (negative: not yet stored).
    id: int
    # Our reply's messages as the upstream saw them.
    full: Sequence[WireMessage]
    # The reply as the client has it.
    shown_reply: WireMessage
    now: float
    # Index in the exchange's input -> text.
    notes: Mapping[int, str]
    # Ids of the calls that the gateway ran.
    gateway_calls: frozenset[str] = frozenset()
    # The turn has memory operations.
    edits: bool = False
    # The part of the path that the request left out.
    evicted: Evicted | None = None


# Settles a request that has ended: writes it to the tree, and returns its exchange. Raises: Missing.
Rule = Callable[[Tree, Plan, Ended], Exchange]


def finish(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Writes a request that went to its end. Returns its exchange, or an older one with the same words.

    Raises: Missing.
    """
    query = plan.query
    amended = [x for a in plan.amendments if a.reply for x in [tree.get(a.exchange)] if x is not None]
    tree.load_together(x for x in amended if _may_have_fillers(x))
    for amendment in plan.amendments:
        _amend(tree, plan, amendment)
    revived = {a.exchange for a in plan.amendments if _revive(tree, a)}
    is_written = tree.get(ended.id) is not None
    e = _exchange(tree, plan, ended)
    reply = query.listing.canon.atoms(ended.shown_reply)
    e = replace(e, reply=reply, ended=ended.now, stopped=None, size=len(squash(text_of(ended.shown_reply))))
    # A message that was written before the model was asked is a row of its own already, whatever the answer.
    twin = None if is_written else _find_twin(tree, e)
    e = _add(tree, e, plan, ended) if twin is None else _repeat(tree, twin, e, plan, ended)
    # A request that goes on from superseded exchanges brings them back, all along its path. Each exchange that is
    # brought back, revived or new is compared with the alternatives that stand at its place.
    # A quote takes no other exchange's place.
    is_new = twin is None and not plan.quotes
    judged = [y for y in tree.chain(e) if (y.id == e.id and is_new) or y.superseded or y.id in revived]
    tree.load_together(x for y in judged for x in (y, *tree.siblings(y)))
    for y in judged:
        if y.superseded:
            y = tree.change(y.id, superseded=False)
        _judge(
            tree, y, named=query.named, idle_s=query.idle_s, is_client=query.kind is ConversationKind.CLIENT
        )
    if plan.quotes and not tree.is_continued(e):
        tree.change(e.id, superseded=True)
    for i in revived:
        _mark_carried(tree, tree.by_id[i])
    _mark_carried(tree, e)
    refresh_standing(tree, e, named=query.named)
    return tree.by_id[e.id]


def _find_twin(tree: Tree, e: Exchange) -> Exchange | None:
    """Returns the exchange at the same place with the same words, because a request sent twice is one exchange."""
    for x in tree.siblings(e):
        is_same = x.ended is not None and tree.is_same_input(x, e) and x.reply == e.reply
        if is_same and _gone(x) == _gone(e):
            return x
    return None


def _add(tree: Tree, e: Exchange, plan: Plan, ended: Ended) -> Exchange:
    fields = {} if is_tombstone(e) else {**contents(plan, ended, e.redactions), "edits": ended.edits}
    canon = plan.query.listing.canon
    key = canon.reply_key(e.reply or ())
    return tree.add(replace(e, path=_path_of(tree, e, canon), reply_key=key, head=head_of(tree, e), **fields))


def _repeat(tree: Tree, twin: Exchange, e: Exchange, plan: Plan, ended: Ended) -> Exchange:
    """Writes a request into the exchange with the same words (`twin`), which counts as touched now."""
    e = tree.change(twin.id, touched=max(e.begun, twin.touched), ended=ended.now)
    if is_tombstone(e):
        return e
    # A note stays, with what a request for the same has added to it.
    longer = {i: note for i, note in ended.notes.items() if note.startswith(twin.notes.get(i, ""))}
    e = tree.change(e.id, **contents(plan, ended, e.redactions), notes={**twin.notes, **longer})
    # Edits that were merged into the blocks already are not merged once more.
    if not e.merged:
        e = tree.change(e.id, edits=ended.edits)
    _refresh_prior(tree, e)
    return e


def open_(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Writes the user's message before the model is asked, in append mode.

    If the process dies, the message stays like that of a cancelled request. What was heard of the reply before it is
    known from now on, since the client sends it once.
    """
    for amendment in plan.amendments:
        _amend(tree, plan, amendment)
    e = _exchange(tree, plan, ended)
    if is_tombstone(e):
        return tree.add(e)
    return tree.add(replace(e, state=State.OPEN, input=_redacted(plan.messages, e.redactions)))


def cancel(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Writes a request after its client has left.

    The text generated so far is not shown. It is stored so that the part that was spoken is recognised later.
    """
    e = _exchange(tree, plan, ended)
    if is_tombstone(e):
        return tree.add(replace(e, stopped=ended.now))
    e = replace(e, state=State.CANCELLED, stopped=ended.now, **contents(plan, ended, e.redactions))
    if ended.full:
        e = replace(e, edits=ended.edits, size=len(squash(text_of(ended.shown_reply))))
    else:
        e = replace(e, shown_reply=None, full=None, hidden=False, opaque=False)
    return tree.add(e)


def refuse(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Writes a request that the upstream refused for what is in it, so that nothing of it is sent again."""
    return tree.change(cancel(tree, plan, ended).id, superseded=True)


def _exchange(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Returns the new exchange at its place, without its words.

    Where its match point was forgotten meanwhile, it begins a new tree.
    """
    e = _place(tree, plan, ended)
    tree.lend(e.id, plan.messages)
    conversation = _conversation_of(tree, plan, e)
    e = replace(e, conversation=e.id if conversation is None else conversation)
    # Another request, which was off the record, may have ended since this one was planned.
    redactions = find_redactions(tree, e, plan.messages, len(plan.held), tree.siblings(e))
    e = replace(e, redactions=plan.redactions | redactions)
    again = [x for x in tree.siblings(e) if is_asked_again(tree, x, e, follows_head=plan.follows_head)]
    return _off_the_record(tree, plan, e) if plan.off or any(map(is_forgotten, again)) else e


def _place(tree: Tree, plan: Plan, ended: Ended) -> Exchange:
    """Returns the new exchange after its parent.

    It takes the place of its draft: in append mode the user's message was written before the model was asked.
    """
    parent, draft = tree.get(plan.exchange.parent), tree.get(ended.id)
    if draft is not None:
        tree.remove(draft)
    e = replace(
        plan.exchange,
        id=ended.id,
        seq=draft.seq if draft else 0,
        run=draft.run if draft else 0,
        parent=None if parent is None else parent.id,
        notes=dict(ended.notes),
        evicted=ended.evicted,
        length=len(plan.exchange.inputs) + 1,
    )
    if parent is None:
        return e
    e = replace(e, prior=tree.prior(e), offset=end_offset(parent), length=parent.length + e.length)
    # The window may begin among the new messages, and their places move with the form of those before them.
    if e.evicted is not None and e.evicted.depth == e.depth:
        begin = e.evicted.offset + e.offset - plan.exchange.offset
        e = replace(e, evicted=e.evicted._replace(offset=begin))
    # The exchange continues its parent's run of numbers, unless another conversation took the next ones; the store
    # checks that.
    return e if draft else replace(e, seq=parent.seq + len(parent.inputs) + 1, run=parent.run)


def _conversation_of(tree: Tree, plan: Plan, e: Exchange) -> int | None:
    """Returns the conversation of the new exchange (row id); None: it begins one."""
    if e.parent is not None or plan.query.named:
        return plan.conversation
    opening = _later_opening(tree, e)
    if opening is None and plan.conversation is None:
        opening = find_opening(tree, e, plan.query)
    return opening.conversation if opening else plan.conversation


def _off_the_record(tree: Tree, plan: Plan, e: Exchange) -> Exchange:
    """Returns the new exchange as one that is off the record. Most are stored without text."""
    is_asked = plan.query.mode is not MemoryUse.ON and not plan.follows_head
    if is_asked and (only_here := _only_here(tree, e, named=plan.query.named)):
        # Its messages on the record that no sibling has stay on the record; its reply was not heard.
        return replace(e, notes={}, redactions=e.redactions | {-1, *range(len(e.inputs))} - only_here)
    # What was held back for it is stored already, and goes with the next request on the record.
    own = len(plan.held)
    inputs, media = e.inputs[own:], e.media[own:]
    return replace(e, state=State.OFF, notes={}, inputs=inputs, media=media, length=e.length - own)


def _only_here(tree: Tree, e: Exchange, *, named: bool) -> set[int]:
    """Returns the indices of messages on the record that no sibling of e has once it is written."""
    siblings = tree.siblings(e)
    found = on_record(e, siblings)
    for x in siblings if found else ():
        if is_tombstone(x) or not tree.stands(x, named=named):
            continue
        if tree.is_continued(x) or tree.is_same_input(x, e) or not tree.extends(e, x):
            found = {i for i in found if i in x.redactions or x.inputs[: i + 1] != e.inputs[: i + 1]}
    return found


def _later_opening(tree: Tree, e: Exchange) -> Exchange | None:
    """Returns an opening that began later than e and extends it.

    Of two openings that overlap, the one that began later joins the earlier one. But the earlier one may end later,
    and is then written when the other is stored already. One that belongs to an older conversation repeats or extends
    another opening.
    """
    openings = [x for x in tree if x.parent is None]
    tree.load_together(openings)
    old = {x.conversation for x in openings if x.begun <= e.begun}
    later = (x for x in openings if x.conversation not in old and tree.extends(x, e))
    return min(later, key=lambda x: x.begun, default=None)


def _redacted(messages: Sequence[WireMessage], redactions: frozenset[int]) -> bytes:
    """Returns an input as it is stored. A message that is not stored has only its role left."""
    if not redactions:
        return orjson.dumps(messages)
    return orjson.dumps(
        [{"role": m.get("role"), "content": ""} if i in redactions else m for i, m in enumerate(messages)]
    )


def contents(plan: Plan, ended: Ended, redactions: frozenset[int]) -> dict[str, Any]:
    """Returns the fields of an exchange that hold content. redactions: what is not stored; -1: the reply."""
    if -1 in redactions:
        return {
            "input": _redacted(plan.messages, redactions),
            "shown_reply": None,
            "full": None,
            "model": plan.query.model,
        }
    hidden = len(ended.full) > 1
    full = (
        orjson.dumps({"messages": list(ended.full), "gateway_calls": sorted(ended.gateway_calls)})
        if hidden
        else None
    )
    shown_reply = ended.full[0] if len(ended.full) == 1 else ended.shown_reply
    return {
        "input": _redacted(plan.messages, redactions),
        "shown_reply": orjson.dumps(shown_reply),
        "full": full,
        "hidden": hidden,
        "opaque": has_opaque(shown_reply),
        "model": plan.query.model,
    }


def _path_of(tree: Tree, e: Exchange, canon: Canon) -> bytes:
    """Returns the hash of the path down to the reply of e; b"" where its beginning is not known."""
    # The hash goes on from the nearest ancestor that has one; a cancelled or cut exchange has none.
    rest = [e]
    above = tree.parent(e)
    while above is not None and (above.reply is None or not above.path):
        rest.append(above)
        above = tree.parent(above)
    if above is None and rest[-1].parent is not None:
        return b""
    path = above.path if above is not None else b""
    for x in reversed(rest):
        path = canon.path((*flat(x), *(x.reply or ())), path)
    return path


# -- forms


def _amend(tree: Tree, plan: Plan, amendment: Amendment) -> None:
    """Gives a stored exchange the form in which it came back. A tombstone gets its hashes, and no words."""
    x = tree.get(amendment.exchange)
    if x is None:
        return
    listing = plan.query.listing
    if amendment.block is not None:
        start, end = amendment.block
        inputs = tuple(listing.atoms[start:end])
        # A note stays with a message that is unchanged. Before a changed message it would not belong to the prompt.
        notes = {i: n for i, n in x.notes.items() if inputs[i : i + 1] == x.inputs[i : i + 1]}
        x = tree.change(
            x.id,
            inputs=inputs,
            media=amendment.media,
            notes=notes,
            input=None if is_tombstone(x) else _redacted(listing.messages[start:end], x.redactions),
        )
    if amendment.reply is not None:
        start, end = amendment.reply
        messages = listing.messages[start:end]
        shown_reply = visible(messages) if len(messages) > 1 else messages[0]
        if _may_have_fillers(x):
            shown_reply = with_fillers_of(shown_reply, tree.content(x).shown_reply or {})
        # The atoms are sorted so that the text comes before the calls, as in every stored reply.
        reply = tuple(sorted(listing.canon.atoms(shown_reply), key=lambda a: a[:1]))
        x = tree.change(
            x.id,
            reply=reply,
            reply_key=listing.canon.reply_key(reply),
            size=len(squash(text_of(shown_reply))),
            shown_reply=None if is_tombstone(x) or -1 in x.redactions else orjson.dumps(shown_reply),
        )
    _rehash(tree, x, plan)


def _may_have_fillers(x: Exchange) -> bool:
    """Returns whether a filler may have come before a tool: the tool has run, or the reply was cut."""
    return x.hidden or x.reply is None


def _rehash(tree: Tree, x: Exchange, plan: Plan) -> None:
    """Renews offsets and path hashes of an exchange with a changed form, and of uncontinued ones below it."""
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
    """Marks a cancelled turn as finished when its reply came back, because the client had received it."""
    x = tree.get(amendment.exchange)
    if x is None or amendment.reply is None or x.ended is not None:
        return False
    state = x.state if is_tombstone(x) else State.FINISHED
    tree.change(x.id, ended=x.stopped, state=state)
    return True


def _refresh_prior(tree: Tree, x: Exchange) -> None:
    """Corrects `prior` of all exchanges below x, after x has gained or lost additions."""
    todo = tree.kids(x)
    while todo:
        kid = todo.pop()
        prior = tree.prior(kid)
        if prior != kid.prior:
            todo += tree.kids(tree.change(kid.id, prior=prior))


# -- who stands


def _judge(tree: Tree, y: Exchange, *, named: bool, idle_s: float, is_client: bool) -> None:
    """Decides between alternatives at one place: the one touched last stands, the others are superseded.

    A turn supersedes what it repeats or extends, and after the first turn also what extends it. If nothing that stands
    is like it, it supersedes whatever had ended before it began. What a later turn carried is never superseded. Where
    the same was asked for a person and for a program (a guardrail, a router), the answer to the person stands, unless
    the new message comes alone: then the client has marked it as sent again, and goes on from the last answer.
    What is off the record takes the place of what it extends alone: elsewhere words would be lost that were on it.
    """
    rivals = [x for x in tree.siblings(y) if x.ended is not None and not x.superseded]

    def in_order(x: Exchange) -> tuple[Exchange, Exchange]:
        """Returns the exchange touched first, then the one touched last; y counts as last where both are equal."""
        return (x, y) if tree.touched(x) <= tree.touched(y) else (y, x)

    def is_like(x: Exchange) -> bool:
        old, new = in_order(x)
        # After a match point the place is certain, so a shorter form of a question is the same question too. So it
        # is at the beginning where the longer one has more than the question: no one had heard a word of its reply.
        more = old.inputs[len(new.inputs) :]
        is_certain = y.parent is not None or (bool(more) and all(map(is_user, more)))
        return tree.extends(new, old) or (is_certain and tree.extends(old, new))

    near = [x for x in rivals if is_like(x)]
    # Alternatives that overlapped are requests side by side, and all of them stand.
    apart = [x for x in rivals if y.parent is not None and tree.are_apart(x, y)]
    # What is off the record took no other exchange's place, so what extends it does.
    for x in [*near, *apart] if all(map(is_tombstone, near)) else near:
        old, new = in_order(x)
        is_same = tree.is_same_input(x, y)
        if _gone(new) > _gone(old) and (is_same or not tree.extends(new, old)):
            continue
        if is_same and is_client and _is_for_program(tree, new) and not _is_for_program(tree, old):
            old, new = new, old
        # Without an id another question is a new chat once the idle time has passed, and the old one stands too.
        if not tree.is_continued(old) and (x in near or named or tree.touched(new) - tree.end(old) <= idle_s):
            tree.change(old.id, superseded=True)


def _gone(e: Exchange) -> tuple[bool, bool]:
    """Returns whether all of an exchange, and whether its last message or reply, is forgotten or off the record."""
    return is_tombstone(e), is_forgotten(e)


def _is_for_program(tree: Tree, e: Exchange) -> bool:
    """Returns whether a reply that nothing followed has no words for a person: calls alone, or JSON."""
    if tree.kids(e) or is_tombstone(e):
        return False
    text = without_thoughts(text_of(tree.shown_reply(e) or {})).strip() if e.size else ""
    if text[:1] not in "{[":
        return False
    try:
        return not text or isinstance(orjson.loads(text), (dict, list))
    except orjson.JSONDecodeError:
        return False


def _mark_carried(tree: Tree, e: Exchange) -> None:
    """Marks the exchanges that a finished request with a new user message carried: those of the turn before it.

    Its parent is left out where the request itself names it.
    """
    if tree.goes_on(e):
        return
    x, is_shown = tree.parent(e), e.ends_with_user
    while x is not None:
        if not x.continued and not is_shown:
            tree.change(x.id, continued=True)
        if not tree.goes_on(x):
            return
        x, is_shown = tree.parent(x), False


def refresh_standing(tree: Tree, e: Exchange, *, named: bool) -> None:
    """Updates the stored flag `standing` of all exchanges that the changes of one request may affect."""
    chain = tree.chain(e)
    # Roots of a conversation compete: whether one is detached depends on the others, and on their first turns.
    todo = [x for i in tree.changed for x in [tree.by_id[i]]]
    if len(chain) <= 2 or any(x.parent is None for x in todo):
        todo += [x for x in tree if x.parent is None and x.conversation == e.conversation]
    stands: dict[int, bool] = {}
    while todo:
        x = todo.pop()
        if x.id not in stands:
            stands[x.id] = tree.stands(x, named=named)
            todo += [c for c in tree.kids(x) if tree.goes_on(c)]
    for i, stood in stands.items():
        if stood != tree.by_id[i].active:
            tree.change(i, active=stood)


def head_of(tree: Tree, e: Exchange) -> int:
    """Returns how many messages of a first exchange were made elsewhere; 0 for any other exchange.

    Elsewhere made are all messages up to the last assistant message; what answers the last user's message is of the
    turn itself. If the list begins with an opening that was sent here before, they are the messages of that opening's
    head.
    """
    if e.parent is not None:
        return 0
    sent = [
        x for x in tree.siblings(e) if len(x.inputs) < len(e.inputs) and x.inputs == e.inputs[: len(x.inputs)]
    ]
    if sent:
        return head_of(tree, max(sent, key=lambda x: len(x.inputs)))
    asked = max((i for i, atoms in enumerate(e.inputs) if is_user(atoms)), default=len(e.inputs))
    return max(
        (i + 1 for i, atoms in enumerate(e.inputs[:asked]) if atoms and atoms[0][:1] in b"ac"), default=0
    )


def mergeable(tree: Tree, now: float, idle_s: float, *, named: bool) -> list[tuple[Exchange, str]]:
    """Returns the exchanges with memory edits that may be merged into the blocks, oldest first, each with the reason.

    An exchange with a date in the future ended before the clock was put back, and counts as old.
    """
    found = [
        (e, "carried" if tree.is_continued(e) else "idle")
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
