"""Settles a request that has ended: writes its exchange to the tree, and applies the amendments of its plan.

`write_draft`, `finish`, `cancel` and `refuse` change a tree that was loaded again inside the writing transaction, since
other requests may have ended meanwhile. The store writes the changed exchanges. `new_exchange.py` makes the exchange,
and `active.py` decides which exchanges are active afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import orjson
from msgspec.structs import replace

from gateway.core.conversation import active
from gateway.core.conversation.amendments import Amendment
from gateway.core.conversation.apply_amendments import amend, hash_path_to, revive
from gateway.core.conversation.canonical import is_assistant, is_user
from gateway.core.conversation.exchange import is_same_input, is_tombstone, read_off_record_part
from gateway.core.conversation.hashed_list import MessageSpan
from gateway.core.conversation.new_exchange import make_exchange
from gateway.core.conversation.omitted_front import with_amendments
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import read_private, with_private
from gateway.core.conversation.request_end import RequestEnd, make_content_fields, redact_input
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, read_text, without_space
from storage.records import Exchange, ExchangeState, make_message_key

# The most ids of equal replies that are stored as one exchange. Without a limit, a monitor that repeats its request
# would make the exchange longer each time. Not measured; any value far above the number of a reply's items behaves
# alike.
MAX_IDS: Final = 256

# One of `write_draft`, `finish`, `cancel` and `refuse`: writes a request to the tree, and returns its exchange. Raises:
# MissingContents.
SettleRule = Callable[[Tree, Plan, RequestEnd], Exchange]


def write_draft(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Writes the user's message before the model is asked, in append mode.

    If the process dies, the message stays like the message of a cancelled request. The part of the last reply that was
    heard is stored now, since the client sends it only once.
    """
    _amend_planned(tree, plan)
    exchange = make_exchange(tree, plan, request_end)
    if is_tombstone(exchange):
        return tree.add(exchange)
    return tree.add(
        replace(exchange, state=ExchangeState.OPEN, input=redact_input(plan.messages, exchange.redactions))
    )


def finish(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Writes a request that went to its end, and returns its exchange.

    If the same request was sent before, this is the exchange of that request.

    Raises: MissingContents.
    """
    revived_ids = _apply_amendments(tree, plan)
    exchange = _write_finished(tree, plan, request_end)
    is_new = exchange.id == request_end.id
    changed_ids = revived_ids | {exchange.id} if is_new and not plan.is_inactive else revived_ids
    active.judge_rivals_along_path(tree, exchange, changed_ids, plan.query, request_end.now)
    if plan.is_inactive and not tree.is_continued(exchange):
        tree.change(exchange.id, superseded=True)
    # True if the request does not just go on from the end of a stored path (docs/conversations.md, "The fast path").
    has_replies = bool(plan.amendments) or any(map(is_assistant, exchange.inputs))
    if has_replies and tree.is_active(tree.by_id[exchange.id], is_named=plan.query.is_named):
        path = with_amendments(tree.list_path_elements(exchange), plan.query.listing, plan.amendments)
        active.supersede_repeated(tree, path)
    for exchange_row in revived_ids:
        active.mark_continued(tree, tree.by_id[exchange_row])
    active.mark_continued(tree, exchange)
    active.refresh_active(tree, exchange, is_named=plan.query.is_named)
    return tree.by_id[exchange.id]


def _apply_amendments(tree: Tree, plan: Plan) -> set[int]:
    """Applies the plan's amendments, and those of cancelled exchanges. Returns the ids of the revived exchanges."""
    _amend_planned(tree, plan)
    unanswered = _make_unanswered_amendments(tree, plan)
    for amendment in unanswered:
        amend(tree, plan, amendment)
    return {each.exchange_row for each in (*plan.amendments, *unanswered) if revive(tree, each)}


def _amend_planned(tree: Tree, plan: Plan) -> None:
    """Applies the plan's amendments."""
    tree.contents.group(
        exchange
        for amendment in plan.amendments
        if amendment.reply and (exchange := tree.get(amendment.exchange_row)) is not None
    )
    for amendment in plan.amendments:
        amend(tree, plan, amendment)


def cancel(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Writes a request after its client has left.

    The reply so far is stored, so that the part that was spoken is recognised later. It is not active. If the client
    named the response before by its id, the heard part of that response is stored now: the client sends it only once.
    The same holds for a stored response: the client may name it, and the path is read from its id.
    """
    if plan.query.path_length is not None or plan.query.makes_response:
        _store_heard(tree, plan, request_end.now)
    exchange = make_exchange(tree, plan, request_end)
    if is_tombstone(exchange):
        return tree.add(replace(exchange, stopped=request_end.now))
    exchange = replace(
        exchange,
        state=ExchangeState.CANCELLED,
        stopped=request_end.now,
        **make_content_fields(plan, request_end, exchange.redactions),
    )
    if request_end.full_reply:
        exchange = replace(
            exchange, edits=request_end.has_edits, size=len(without_space(read_text(request_end.shown_reply)))
        )
    else:
        exchange = replace(exchange, shown_reply=None, full_reply=None, has_full_reply=False, opaque=False)
    return tree.add(exchange)


def _store_heard(tree: Tree, plan: Plan, now: float) -> None:
    """Applies the plan's amendments, which the request that brought them does not finish.

    A cancelled reply with a heard part is active from now on. now: the end of the request, in seconds since the epoch.
    """
    _amend_planned(tree, plan)
    revived_ids = {each.exchange_row for each in plan.amendments if revive(tree, each)}
    parent = tree.get(plan.exchange.parent)
    if revived_ids and parent is not None:
        active.judge_rivals_along_path(tree, parent, revived_ids, plan.query, now)
        active.refresh_active(tree, parent, is_named=plan.query.is_named)


def refuse(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Writes a request that the upstream refused for its content, so that this content is not sent again."""
    return tree.change(cancel(tree, plan, request_end).id, superseded=True)


def _make_unanswered_amendments(tree: Tree, plan: Plan) -> list[Amendment]:
    """Returns an amendment without a reply for each cancelled exchange with messages in the client's list.

    The replies are not in the list, but the messages count. The exchanges are those that the request goes on from, and
    their siblings with a message that no other exchange has (a caller typed and spoke at once).
    """
    chain = tree.list_path(tree.get(plan.exchange.parent))
    heard_rows = {amendment.exchange_row for amendment in plan.amendments if amendment.reply}
    unanswered = [each for each in chain if _is_cancelled(each) and each.id not in heard_rows]
    siblings = [
        other
        for each in chain
        for other in tree.list_siblings(each)
        if _is_cancelled(other) and not is_tombstone(other) and not other.redactions
    ]
    if siblings:
        ended_exchanges = [each for each in tree if each.ended is not None]
        unanswered += _select_unrepeated(siblings, (plan.exchange, *unanswered, *ended_exchanges), plan)
    return [
        Amendment(each.id, inputs=None, reply=MessageSpan(0, 0))
        for each in unanswered
        # Words that were forgotten, or off the record, elsewhere in the memory stay out of the conversation.
        if tree.forgotten_hashes.isdisjoint(map(make_message_key, each.inputs))
    ]


def _select_unrepeated(
    siblings: Iterable[Exchange], others: Iterable[Exchange], plan: Plan
) -> list[Exchange]:
    """Returns the siblings with messages in the client's list of which the last is in none of the other exchanges."""
    listed_atoms = set(plan.query.listing.atoms)
    stored_atoms = {atoms for other in others if not other.superseded for atoms in other.inputs}
    selection: list[Exchange] = []
    for sibling in siblings:
        is_listed = sibling.inputs and listed_atoms.issuperset(sibling.inputs)
        if is_listed and sibling.inputs[-1] not in stored_atoms:
            selection.append(sibling)
            stored_atoms.add(sibling.inputs[-1])
    return selection


def _is_cancelled(exchange: Exchange) -> bool:
    """Returns whether the client left before the exchange had ended, and has not sent the reply since."""
    return exchange.ended is None and exchange.stopped is not None


def _write_finished(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Writes the exchange of a request that went to its end, or writes into an exchange with the same words.

    Returns the exchange that has the request now.
    """
    # In append mode the user's message has a row already (`write_draft`), which stays a row of its own.
    is_written = tree.get(request_end.id) is not None
    exchange = replace(
        make_exchange(tree, plan, request_end),
        reply=plan.query.listing.hasher.make_atoms(request_end.shown_reply),
        ended=request_end.now,
        stopped=None,
        size=len(without_space(read_text(request_end.shown_reply))),
    )
    duplicate = None if is_written else _find_duplicate(tree, exchange, request_end)
    if duplicate is not None:
        return _write_into_duplicate(tree, duplicate, exchange, plan, request_end)
    return _add_exchange(tree, exchange, plan, request_end)


def _find_duplicate(tree: Tree, exchange: Exchange, request_end: RequestEnd) -> Exchange | None:
    """Returns the exchange with the same words at the same position, because a request sent twice is one exchange.

    A stored response is an exchange of its own, since its id shows its own time and fields. A later attempt at a
    response in the background writes into the exchange of the earlier one, which has the same tag.
    """
    tag = _read_response_tag(request_end.shown_reply)
    if tag == "":
        return None
    same_words = [
        other
        for other in tree.list_siblings(exchange)
        if other.ended is not None
        and other.reply == exchange.reply
        and is_same_input(other, exchange)
        and read_off_record_part(other) == read_off_record_part(exchange)
    ]
    tree.contents.group(same_words)
    for other in same_words:
        if _read_response_tag(tree.contents.get(other).shown_reply) == tag:
            return other
    return None


def _read_response_tag(reply: WireMessage | None) -> str | None:
    """Returns the tag of a reply's stored response; "": a response without a tag; None: the reply is no response."""
    response = read_private(reply or {}).get("response")
    return response.get("tag", "") if response is not None else None


def _add_exchange(tree: Tree, exchange: Exchange, plan: Plan, request_end: RequestEnd) -> Exchange:
    """Adds a finished exchange to the tree, with its content unless it is a tombstone."""
    fields = (
        {}
        if is_tombstone(exchange)
        else {**make_content_fields(plan, request_end, exchange.redactions), "edits": request_end.has_edits}
    )
    hasher = plan.query.listing.hasher
    key = hasher.make_reply_key(exchange.reply or ())
    return tree.add(
        replace(
            exchange,
            path_hash=hash_path_to(tree, exchange, hasher),
            reply_key=key,
            prefix_length=_count_prefix(tree, exchange),
            **fields,
        )
    )


def _write_into_duplicate(
    tree: Tree, duplicate: Exchange, exchange: Exchange, plan: Plan, request_end: RequestEnd
) -> Exchange:
    """Writes a request into the stored exchange with the same words, which counts as touched now.

    duplicate: the stored exchange.
    exchange: the request as an exchange of its own.
    """
    exchange = tree.change(
        duplicate.id, touched=max(exchange.begun, duplicate.touched), ended=request_end.now
    )
    if is_tombstone(exchange):
        return exchange
    # The stored notes stay, but a note that the repeated request has only extended is replaced.
    longer_notes = {
        i: note for i, note in request_end.notes.items() if note.startswith(duplicate.notes.get(i, ""))
    }
    content = make_content_fields(plan, request_end, exchange.redactions)
    if content["shown_reply"] is not None and "ids" in read_private(request_end.shown_reply):
        replies = (tree.contents.find_shown_reply(duplicate) or {}, request_end.shown_reply)
        ids = [each for reply in replies for each in read_private(reply).get("ids", ())]
        content["shown_reply"] = orjson.dumps(with_private(request_end.shown_reply, ids=ids[-MAX_IDS:]))
    exchange = tree.change(exchange.id, **content, notes={**duplicate.notes, **longer_notes})
    # Edits that were merged into the blocks already are not merged again.
    if not exchange.merged:
        exchange = tree.change(exchange.id, edits=request_end.has_edits)
    _refresh_prior(tree, exchange)
    return exchange


def _count_prefix(tree: Tree, exchange: Exchange) -> int:
    """Returns the number of an opening's first messages that were made elsewhere, its prefix; 0: no opening.

    The prefix ends with the last assistant message before the last user message. If the list begins with an opening
    that was sent here before, it has the prefix of that opening.
    """
    if exchange.parent is not None:
        return 0
    sent_before = [
        other
        for other in tree.list_siblings(exchange)
        if len(other.inputs) < len(exchange.inputs) and other.inputs == exchange.inputs[: len(other.inputs)]
    ]
    if sent_before:
        return _count_prefix(tree, max(sent_before, key=lambda other: len(other.inputs)))
    last_question = max(
        (i for i, atoms in enumerate(exchange.inputs) if is_user(atoms)), default=len(exchange.inputs)
    )
    return max(
        (i + 1 for i, atoms in enumerate(exchange.inputs[:last_question]) if is_assistant(atoms)),
        default=0,
    )


def _refresh_prior(tree: Tree, exchange: Exchange) -> None:
    """Corrects `prior` of all exchanges below an exchange that has gained or lost additions."""
    pending = tree.list_children(exchange)
    while pending:
        child = pending.pop()
        prior = tree.find_prior(child)
        if prior != child.prior:
            pending += tree.list_children(tree.change(child.id, prior=prior))
