"""Applies amendments: gives stored exchanges the form in which they came back (`amendments.find_amendments`)."""

from __future__ import annotations

import orjson

from gateway.core.conversation.amendments import Amendment
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.exchange import count_atoms_to_end, is_tombstone, list_input_atoms
from gateway.core.conversation.fillers import with_fillers_of
from gateway.core.conversation.hashed_list import HashedList, MessageSpan
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.private import with_response_of
from gateway.core.conversation.request_end import redact_input
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import (
    WireMessage,
    list_raw_calls,
    make_shown_reply,
    read_audio_id,
    read_text,
    without_space,
)
from storage.records import REPLY, Exchange, ExchangeState


def amend(tree: Tree, plan: Plan, amendment: Amendment) -> None:
    """Gives a stored exchange the form in which it came back. A tombstone gets its hashes, and no words."""
    exchange = tree.get(amendment.exchange_row)
    if exchange is None:
        return
    # The reply is read before the input changes: an exchange with a changed input is not loaded from the store.
    is_heard = amendment.reply is not None and amendment.reply.start < amendment.reply.end
    stored_reply = (tree.contents.get(exchange).shown_reply or {}) if is_heard else {}
    listing = plan.query.listing
    if amendment.inputs is not None:
        exchange = _amend_inputs(tree, exchange, listing, amendment.inputs, amendment.media)
    if amendment.reply is not None:
        exchange = _amend_reply(tree, exchange, listing, amendment.reply, stored_reply)
    _rehash(tree, exchange, plan)


def _amend_inputs(
    tree: Tree, exchange: Exchange, listing: HashedList, span: MessageSpan, media: tuple[bytes, ...]
) -> Exchange:
    """Gives an exchange the inputs at a span of the client's list. media: the digests of the new inputs' media."""
    start, end = span
    inputs = tuple(listing.atoms[start:end])
    # A note stays with a message that is unchanged. Before a changed message it would not belong to the prompt.
    notes = {i: note for i, note in exchange.notes.items() if inputs[i : i + 1] == exchange.inputs[i : i + 1]}
    content = None
    if not is_tombstone(exchange):
        content = redact_input(listing.messages[start:end], exchange.redactions)
    return tree.change(exchange.id, inputs=inputs, media=media, notes=notes, input=content)


def _amend_reply(
    tree: Tree, exchange: Exchange, listing: HashedList, span: MessageSpan, stored_reply: WireMessage
) -> Exchange:
    """Gives an exchange the reply at a span of the client's list, with the fields that only its stored reply has."""
    messages = listing.messages[slice(*span)]
    shown_reply = messages[0] if len(messages) == 1 else make_shown_reply(messages)
    if "tool_calls" in shown_reply:
        shown_reply = {**shown_reply, "tool_calls": list_raw_calls(shown_reply)}
        if not shown_reply["tool_calls"]:
            del shown_reply["tool_calls"]  # upstreams refuse an empty list
    audio_id = read_audio_id(shown_reply)
    if audio_id and audio_id == read_audio_id(stored_reply):
        shown_reply = stored_reply  # the client names the sound alone, and memory has its words
    shown_reply = with_response_of(with_fillers_of(shown_reply, stored_reply), stored_reply)
    reply = listing.hasher.make_atoms(shown_reply)
    is_stored = not (is_tombstone(exchange) or REPLY in exchange.redactions)
    return tree.change(
        exchange.id,
        reply=reply,
        reply_key=listing.hasher.make_reply_key(reply),
        size=len(without_space(read_text(shown_reply))),
        shown_reply=orjson.dumps(shown_reply) if is_stored else None,
    )


def _rehash(tree: Tree, exchange: Exchange, plan: Plan) -> None:
    """Renews the offsets and path hashes of an exchange with a changed form, and of the loaded exchanges below it."""
    pending = [exchange]
    while pending:
        exchange = pending.pop()
        offset = exchange.offset
        prior = exchange.prior
        path_hash = exchange.path_hash
        if (parent := tree.find_parent(exchange)) is not None:
            offset, prior = count_atoms_to_end(parent), tree.find_prior(exchange)
        if exchange.reply is not None:
            path_hash = hash_path_to(tree, exchange, plan.query.listing.hasher)
        exchange = tree.change(exchange.id, offset=offset, prior=prior, path_hash=path_hash)
        pending += tree.list_children(exchange)


def revive(tree: Tree, amendment: Amendment) -> bool:
    """Marks a cancelled exchange as finished, because its reply came back, so the client had received it.

    Returns False, and marks nothing, if the exchange has ended already or is gone.
    """
    exchange = tree.get(amendment.exchange_row)
    if exchange is None or amendment.reply is None or exchange.ended is not None:
        return False
    state = exchange.state if is_tombstone(exchange) else ExchangeState.FINISHED
    tree.change(exchange.id, ended=exchange.stopped, state=state)
    return True


def hash_path_to(tree: Tree, exchange: Exchange, hasher: MessageHasher) -> bytes:
    """Returns the hash of the path down to the reply of the exchange; b"": the path's beginning is not known."""
    # The hash continues the hash of the nearest ancestor that has one; a cancelled exchange has no hash.
    unhashed = [exchange]
    ancestor = tree.find_parent(exchange)
    while ancestor is not None and (ancestor.reply is None or not ancestor.path_hash):
        unhashed.append(ancestor)
        ancestor = tree.find_parent(ancestor)
    if ancestor is None and unhashed[-1].parent is not None:
        return b""
    path_hash = b"" if ancestor is None else ancestor.path_hash
    for exchange_below in reversed(unhashed):
        path_hash = hasher.hash_path(
            (*list_input_atoms(exchange_below), *(exchange_below.reply or ())), path_hash
        )
    return path_hash
