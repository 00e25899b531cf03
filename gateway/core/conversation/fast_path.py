"""The fast path for a plain turn: the list is exactly the stored path, and goes on from its end.

Most turns are plain, and one indexed look-up shows it. From the `MemorySnapshot` alone the fast path comes to the
decision of plan.py and settle.py. A turn that needs more (forks, tool rounds, first turns, edits to be confirmed) is
not plain. docs/conversations.md has the argument.
"""

from __future__ import annotations

from itertools import chain

from msgspec.structs import replace

from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import Match, MemoryUse, Query
from gateway.core.conversation.plan import Plan, draft_exchange
from gateway.core.conversation.request_end import RequestEnd, make_content_fields
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import read_text, without_space_utf8
from storage.commands import MemorySnapshot
from storage.records import Exchange, ExchangeState

# Asked of every turn: a name of the module's costs a tenth of a member of its enum.
_ON, _FINISHED = MemoryUse.ON, ExchangeState.FINISHED


def plan_plain(snapshot: MemorySnapshot, query: Query) -> Plan | None:
    """Plans a plain turn. Returns None where the turn is not plain."""
    last_exchange, listing = snapshot.exchange, query.listing
    if last_exchange is None or not _is_plain(snapshot, last_exchange, query):
        return None
    answered_count = listing.answered_count
    messages = listing.messages
    inputs = listing.new_atoms
    new_indices = tuple(range(answered_count, len(messages)))
    # Without names, which cost as much again as the rest of this function.
    exchange = Exchange(
        0,
        last_exchange.conversation_row,
        last_exchange.id,
        last_exchange.depth + 1,
        listing.offsets[answered_count],
        inputs,
        tuple(map(listing.digest_media, new_indices)),
        None,  # reply
        b"",  # path
        None,  # reply_key
        query.now,  # begun
        query.now,  # touched
        None,  # ended
        0,  # size
        last_exchange.length + len(new_indices) + 1,
        False,  # active
        last_exchange.next_seq,  # with no other turn in between, there is no gap
        last_exchange.gapless_from,
        snapshot.additions.last,  # prior
    )
    return Plan(
        query,
        Match(last_exchange, answered_count - 1, answered_count - 1),
        new_indices,
        last_exchange.conversation_row,
        exchange,
        messages[answered_count:],
    )


def _is_plain(snapshot: MemorySnapshot, last_exchange: Exchange, query: Query) -> bool:
    """Returns whether a turn is plain. last_exchange: the end of the path that the list has."""
    # The path has one end, without followers or siblings.
    if snapshot.is_continued or snapshot.has_rivals or snapshot.matches_prefix:
        return False
    if query.kind is not ConversationKind.CLIENT or query.mode is not _ON:
        return False
    listing = query.listing
    new_count = len(listing.messages) - listing.answered_count
    if not new_count or (snapshot.has_tombstones and new_count > 1):
        return False
    # The last exchange is as the rules would leave it: no tombstone, no prefix made elsewhere, no edits that this turn
    # would confirm.
    if last_exchange.state is not _FINISHED or not last_exchange.active or last_exchange.prefix_length:
        return False
    if last_exchange.edits and not last_exchange.merged:
        return False
    if any(map(is_user, listing.new_atoms)):
        # A turn of several exchanges is continued as a whole, and more rows than one would have to be marked.
        return last_exchange.parent is None or any(map(is_user, last_exchange.inputs))
    # Results of tools are off the record if their calls are.
    return not last_exchange.redactions


def plan_opening(query: Query) -> Plan | None:
    """Plans a list to which no stored exchange matters, as `plan_turn` does in an empty tree.

    Returns None where a stored exchange may matter: then the tree has to be loaded.
    """
    listing = query.listing
    if listing.answered_count or query.kind is not ConversationKind.CLIENT or query.mode is not _ON:
        return None
    new_indices = tuple(range(len(listing)))
    return Plan(
        query,
        Match(),
        new_indices,
        conversation_row=query.conversation_row if query.is_named else None,
        exchange=draft_exchange(query, match_point=None, pending=(), new_indices=new_indices),
        messages=listing.messages,
    )


def finish_plain(plan: Plan, request_end: RequestEnd, section: int | None = None) -> Exchange:
    """Returns the exchange to be written, if the conversation does not move before.

    section: the row of the path's memory section; None: the path has no stored section.
    """
    exchange = plan.exchange
    match_point = plan.match.match_point
    hasher = plan.query.listing.hasher
    text = without_space_utf8(read_text(request_end.shown_reply))
    reply = hasher.make_atoms(request_end.shown_reply, text)
    # The fields are given by position: names take half as long again for so many, and `replace` three times as long.
    return Exchange(
        exchange.id,
        exchange.conversation_row,
        exchange.parent,
        exchange.depth,
        exchange.offset,
        exchange.inputs,
        exchange.media,
        reply,
        hasher.hash_path(
            chain(*exchange.inputs, reply), b"" if match_point is None else match_point.path_hash
        ),
        hasher.make_reply_key(reply),
        exchange.begun,
        exchange.touched,
        request_end.now,
        len(text.decode("utf-8", "surrogatepass")),  # size
        exchange.length,
        True,  # active
        exchange.seq,
        exchange.gapless_from,
        exchange.prior,
        dict(request_end.notes),
        section,
        request_end.has_edits,
        request_end.evicted,
        **make_content_fields(plan, request_end, plan.redactions),
    )


def finish_opening(tree: Tree, plan: Plan, request_end: RequestEnd) -> Exchange | None:
    """Returns the exchange with which a list without a reply begins a conversation, if no stored exchange matters.

    Returns None where a stored exchange may matter: then the tree has to be loaded. The exchange equals the one that
    `settle.finish` makes in an empty tree.
    """
    matters = (
        tree.by_id
        or plan.is_off_record
        or plan.is_inactive
        or plan.redactions
        or plan.follows_head
        or plan.conversation_row is not None
    )
    if matters or plan.query.listing.answered_count:
        return None
    exchange = finish_plain(plan, request_end)
    return replace(
        exchange, id=request_end.id, conversation_row=request_end.id, length=len(exchange.inputs) + 1
    )
