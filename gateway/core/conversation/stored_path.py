"""Plans a turn of a stored conversation, which goes on from its last exchange.

Nothing is matched, and nothing waits to be confirmed: a step that has ended is continued and active, whether it has a
whole reply, a cut one or none.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import orjson
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher, is_result
from gateway.core.conversation.exchange import is_tombstone, list_input_atoms
from gateway.core.conversation.exchange_content import dump_full_reply
from gateway.core.conversation.match_query import Match, Query
from gateway.core.conversation.plan import Plan, draft_exchange
from gateway.core.conversation.provider_fields import has_provider_fields
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import WireMessage, read_call_id, read_text, without_space
from storage.records import Atom, EvictedPart, Exchange, ExchangeState


def begins_fork(exchange: Exchange) -> bool:
    """Returns whether an exchange is the empty one with which a fork begins."""
    return is_tombstone(exchange) and not exchange.inputs


def hash_exchanges(path: Sequence[Exchange], hasher: MessageHasher) -> bytes:
    """Returns the hash of a path, oldest first. An exchange without a hash of its own counts with its atoms."""
    hashed_count = next((count for count in range(len(path), 0, -1) if path[count - 1].path_hash), 0)
    atoms = [
        atom
        for exchange in path[hashed_count:]
        for atom in (*list_input_atoms(exchange), *(exchange.reply or ()))
    ]
    return hasher.hash_path(atoms, path[hashed_count - 1].path_hash if hashed_count else b"")


def plan_step(
    tree: Tree,
    query: Query,
    last_exchange: Exchange | None,
    conversation_row: int | None,
    *,
    evicted: EvictedPart | None = None,
    pending: Sequence[WireMessage] = (),
) -> Plan:
    """Plans a step, which goes on from the path in the tree.

    last_exchange: the last exchange of that path; None: the path is empty.
    conversation_row: the row of the conversation; None: the conversation has not begun.
    evicted: the part of the path that has left the window.
    pending: the gateway's own messages, results of tools, which come before the messages of the query's list.
    """
    new_indices = tuple(range(len(query.listing)))
    exchange = draft_exchange(query, last_exchange, pending, new_indices)
    exchange = replace(exchange, length=len(exchange.inputs) + 1)
    if last_exchange is not None:
        # The numbers go on without a gap, unless another conversation takes the next ones; the store checks that.
        exchange = replace(
            exchange,
            seq=last_exchange.next_seq,
            gapless_from=last_exchange.gapless_from,
            prior=last_exchange.id if last_exchange.has_additions else last_exchange.prior,
            length=last_exchange.length + exchange.length,
        )
    refused_ids = find_refused_ids(tree.list_path(last_exchange))
    return Plan(
        query=query,
        match=Match(last_exchange),
        new_indices=new_indices,
        conversation_row=conversation_row,
        exchange=replace(exchange, id=-1, conversation_row=conversation_row or 0),
        messages=[*pending, *query.listing.messages],
        omitted=tuple(_list_window(tree, last_exchange, refused_ids, evicted)),
        pending=tuple(pending),
        refused_results=frozenset(refused_ids),
    )


def _list_window(
    tree: Tree, last_exchange: Exchange | None, refused_ids: Container[int], evicted: EvictedPart | None
) -> Iterator[PathElement]:
    """Yields the elements of a path that go upstream: refused exchanges have only their results.

    refused_ids: the ids of the exchanges that the upstream would refuse again.
    evicted: the part of the path that has left the window.
    """
    for element in tree.list_path_elements(last_exchange):
        # The offset alone is not enough: an element without atoms has the same one as the element after it.
        is_in_window = evicted is None or (
            element.exchange.depth >= evicted.depth and element.offset >= evicted.offset
        )
        if is_in_window and (element.exchange.id not in refused_ids or is_result(element.atoms)):
            yield element


def find_refused_ids(path: Sequence[Exchange]) -> set[int]:
    """Returns the ids of the exchanges that the upstream would refuse again.

    These are the refused exchanges, and the unanswered exchanges directly before each of them: the upstream has taken
    none of them, so each may be the reason.
    """
    refused_ids: set[int] = set()
    is_refused = False
    for exchange in reversed(path):
        is_refused = exchange.superseded or (is_refused and exchange.reply is None)
        if is_refused:
            refused_ids.add(exchange.id)
    return refused_ids


def begin_step(plan: Plan, notes: Mapping[int, str], evicted: EvictedPart | None) -> Exchange:
    """Returns the exchange of a plan as it is written before the model is asked. notes: the notes by message index."""
    return replace(
        plan.exchange,
        state=ExchangeState.OPEN,
        input=orjson.dumps(plan.messages),
        notes=dict(notes),
        evicted=evicted,
        model=plan.query.model,
    )


def finish_step(
    exchange: Exchange,
    hasher: MessageHasher,
    parent_path_hash: bytes,
    *,
    full_reply: Sequence[WireMessage],
    shown_reply: WireMessage | None,
    model: str,
    evicted: EvictedPart | None,
    now: float,
) -> Exchange:
    """Returns the exchange as it has ended.

    parent_path_hash: the hash of the path before the exchange.
    full_reply: the messages of the reply, as they go upstream again; empty: there is no reply.
    shown_reply: the part of the reply that the client got; None: the client got all of the reply.
    now: the time of the end, in seconds since the epoch.
    """
    exchange = replace(_end_step(exchange, now), model=model, evicted=evicted)
    if not full_reply:
        return replace(exchange, path_hash=hasher.hash_path(list_input_atoms(exchange), parent_path_hash))
    client_reply = full_reply[0] if shown_reply is None else shown_reply
    atoms = hasher.make_atoms(client_reply)
    is_hidden = list(full_reply) != [client_reply]
    return replace(
        exchange,
        reply=atoms,
        path_hash=hasher.hash_path((*list_input_atoms(exchange), *atoms), parent_path_hash),
        reply_key=hasher.make_reply_key(atoms),
        size=len(without_space(read_text(client_reply))),
        shown_reply=orjson.dumps(client_reply),
        full_reply=dump_full_reply(full_reply, is_step=True) if is_hidden else None,
        has_full_reply=is_hidden,
        opaque=any(map(has_provider_fields, full_reply)),
    )


def finish_turn(
    exchange: Exchange,
    hasher: MessageHasher,
    parent_path_hash: bytes,
    *,
    full_reply: Sequence[WireMessage],
    shown_reply: WireMessage,
    model: str,
    now: float,
) -> Exchange:
    """Returns the exchange of a turn that is written as a whole, with its rounds of tools hidden.

    parent_path_hash, now: the hash of the path before the exchange and the time of the end, as in `finish_step`.
    full_reply: the messages of all rounds.
    shown_reply: the reply that the client got.
    """
    exchange = finish_step(
        exchange,
        hasher,
        parent_path_hash,
        full_reply=(shown_reply,),
        shown_reply=shown_reply,
        model=model,
        evicted=exchange.evicted,
        now=now,
    )
    if len(full_reply) < 2:
        return exchange
    gateway_call_ids = {
        read_call_id(call) for message in full_reply for call in message.get("tool_calls") or ()
    }
    return replace(
        exchange,
        full_reply=dump_full_reply(full_reply, gateway_call_ids),
        has_full_reply=True,
        opaque=any(map(has_provider_fields, full_reply)),
    )


def mark_refused(exchange: Exchange, path: Sequence[Exchange]) -> Exchange:
    """Returns an ended exchange that the upstream refused, marked so that it is not sent again.

    The messages that its prompt evicted to make room come back. An exchange with a user's message alone is no longer
    shown or recalled, and the memory section is again that of the last exchange that was answered or refused. One with
    results stays, since these report what tools have done; so does its memory section: the model knows what calls have
    changed.

    path: the exchanges before it, oldest first.
    """
    earlier_exchange = next(
        (
            other
            for other in reversed(path)
            if other.superseded or other.reply is not None or begins_fork(other)
        ),
        None,
    )
    exchange = replace(
        exchange, superseded=True, evicted=None if earlier_exchange is None else earlier_exchange.evicted
    )
    if not any(map(is_result, exchange.inputs)):
        exchange = replace(
            exchange, active=False, section=None if earlier_exchange is None else earlier_exchange.section
        )
    return exchange


def supersede_refused(path: Sequence[Exchange], inputs: Sequence[tuple[Atom, ...]]) -> Exchange | None:
    """Returns the refused exchange that has these inputs, marked as refused; None: no refused exchange has them.

    It stays out of later prompts, and the exchange of the resent message replaces it. Exchanges that a fork shares with
    its conversation are not searched, since they do not change.
    """
    refused_ids = find_refused_ids(path)
    for index in range(len(path) - 1, -1, -1):
        exchange = path[index]
        if exchange.conversation_row != path[-1].conversation_row:
            break
        if exchange.id in refused_ids and not exchange.superseded and exchange.inputs == tuple(inputs):
            return mark_refused(exchange, path[:index])
    return None


def abandon(exchange: Exchange, hasher: MessageHasher, parent_path_hash: bytes, now: float) -> Exchange:
    """Returns an exchange that a process left open, ended without a reply."""
    return replace(
        _end_step(exchange, now), path_hash=hasher.hash_path(list_input_atoms(exchange), parent_path_hash)
    )


def _end_step(exchange: Exchange, now: float) -> Exchange:
    """Returns a step that has ended. It needs no confirmation: the next step continues it."""
    return replace(exchange, state=ExchangeState.FINISHED, ended=now, continued=True, active=True)
