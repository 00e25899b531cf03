"""Reads a memory when a turn begins: the conversation that the request continues, and the memory's additions to it.

Everything is read before the prompt is made; for a plain turn, in one round trip. gateway.core decides what is needed.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.fast_path import plan_opening, plan_plain
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.loaded import is_loaded_enough
from gateway.core.conversation.lookup import RECENT_EXCHANGES, make_probes_for_list
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.openings import begins_conversation, digest_openings
from gateway.core.conversation.plan import Plan, plan_turn
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.prompt.eviction import find_evicted
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import Mode
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.conversation_uid import make_uid_from_opening
from gateway.run.memory.memory_agent import find_or_draft_agent, refresh_agent
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.resent import MAX_REQUEST_BYTES, ResentLists
from gateway.run.memory.section_blocks import list_initial_blocks, read_blocks_on_path
from gateway.run.memory.tool_offer import offer_tools
from gateway.run.receipt import mask_model_name
from storage.commands import MemorySnapshot
from storage.errors import StoreError
from storage.records import Agent
from storage.sql.store import Store

_MEMORY_USES = {
    Mode.ON: MemoryUse.ON,
    Mode.STRICT: MemoryUse.ON,
    Mode.READ: MemoryUse.READ,
    Mode.OFF: MemoryUse.OFF,
}


async def read_context(
    store: Store, resent_lists: ResentLists, request: MemoryRequest, idle_s: float
) -> MemoryContext:
    """Reads the context of a request. A paused memory is read as if the request had turned it off.

    idle_s: the seconds within which the opening of an unnamed conversation can be repeated.

    Raises: StoreError.
    """
    agent, listing, snapshot = await _read_memory(store, resent_lists, request)
    if agent.paused_at is not None:
        request = replace(request, identity=replace(request.identity, mode=Mode.OFF))
    conversation = snapshot.conversation
    query = _make_query(request, listing, snapshot, idle_s)
    plan = plan_plain(snapshot, query)
    if plan is None or conversation is None or snapshot.exchange is None:
        return await _read_and_plan(store, request, agent, snapshot, query)
    rounds = snapshot.additions.rounds
    ends_with_round = bool(rounds) and rounds[-1].id == snapshot.exchange.id
    path = rounds if ends_with_round else (*rounds, snapshot.exchange)
    blocks = read_blocks_on_path(request.spec, snapshot, path) if snapshot.blocks or snapshot.edits else ()
    offered_tools = offer_tools(request, agent, snapshot.section, request.chat.json)
    # The snapshot has all that a plain turn needs.
    return MemoryContext(
        request=request,
        agent=agent,
        snapshot=snapshot,
        plan=plan,
        tree=Tree(rounds),
        path=path,
        is_plain=True,
        conversation_uid=conversation.uid,
        section=snapshot.section,
        blocks=blocks,
        offered_tools=offered_tools,
    )


def _make_query(
    request: MemoryRequest, listing: HashedList, snapshot: MemorySnapshot, idle_s: float
) -> Query:
    """Returns the query for the conversation that a request continues. idle_s: as for `read_context`."""
    identity = request.identity
    is_named = identity.conversation_key is not None
    conversation = snapshot.conversation
    return Query(
        listing,
        is_named=is_named,
        mode=_choose_memory_use(identity),
        now=request.now,
        idle_s=idle_s,
        kind=request.kind,
        is_retry=identity.is_retry,
        makes_response=request.chat.makes_response,
        path_length=_count_path(request, listing) if request.chat.follows_response else None,
        conversation_row=conversation.id if is_named and conversation is not None else None,
        model=mask_model_name(request.target.upstream, request.target.model),
    )


def _count_path(request: MemoryRequest, listing: HashedList) -> int:
    """Returns the number of the list's first messages up to the last one that the gateway has put there."""
    last_stored = max(request.chat.stored_indexes, default=-1)
    return bisect_right(listing.positions, last_stored)


def _choose_memory_use(identity: Identity) -> MemoryUse:
    use = _MEMORY_USES[identity.mode]
    return MemoryUse.APART if identity.is_apart and use is MemoryUse.READ else use


class _ReadMemory(NamedTuple):
    """The memory of a request as it was read."""

    # The owner of the memory, as it is stored or as a draft.
    agent: Agent
    # The request's list, hashed with the memory's secret.
    listing: HashedList
    # The snapshot of the memory.
    snapshot: MemorySnapshot


async def _read_memory(store: Store, resent_lists: ResentLists, request: MemoryRequest) -> _ReadMemory:
    """Reads the memory of a request, in one round trip. Raises: StoreError."""
    scope = request.identity.scope
    # Only requests with memory come here.
    assert scope is not None
    # A second time, because another process may have forgotten the cached agent.
    for _ in range(2):
        agent = await find_or_draft_agent(store, request)
        hasher = MessageHasher(agent.secret)
        if len(request.chat.raw) > MAX_REQUEST_BYTES:
            listing = await asyncio.to_thread(_hash_large, hasher, request.chat.messages)
        else:
            listing = resent_lists.hash_list(hasher, request.chat)
        path_hash = listing.answered_path_hash if listing.answered_count else None
        snapshot = (
            await store.turns.find_snapshot(agent, request.identity.conversation_key, path_hash)
            if agent.is_stored
            else MemorySnapshot()
        )
        if snapshot is not None:
            break
        store.agents.uncache(scope)
    else:
        raise StoreError("the memory of this user is being removed")
    return _ReadMemory(await refresh_agent(store, agent, snapshot), listing, snapshot)


def _hash_large(hasher: MessageHasher, messages: Sequence[WireMessage]) -> HashedList:
    """Returns a list of many words or images with all hashes that its decision needs."""
    listing = HashedList(hasher, messages)
    listing.hash_new_media()
    return listing


async def _read_and_plan(
    store: Store, request: MemoryRequest, agent: Agent, snapshot: MemorySnapshot, query: Query
) -> MemoryContext:
    """Reads the context of a turn that is not plain."""
    plan, tree = await _load_and_plan(store, request, agent, snapshot, query)
    match_point = plan.match.match_point
    path = tuple(tree.list_path(match_point))
    uid = await _find_conversation_uid(store, agent, snapshot, plan) or make_uid_from_opening(
        request, agent, snapshot, query.listing
    )
    context = MemoryContext(
        request=request,
        agent=agent,
        snapshot=snapshot,
        plan=plan,
        tree=tree,
        path=path,
        is_plain=False,
        conversation_uid=uid,
    )
    if context.is_off:
        return context
    section_number = match_point.section if match_point is not None else None
    section = await store.sections.find(agent.id, section_number) if section_number is not None else None
    blocks = (
        read_blocks_on_path(request.spec, snapshot, path)
        if agent.is_stored
        else await list_initial_blocks(store, request.spec, agent)
    )
    offered_tools = offer_tools(request, agent, section, request.chat.json)
    if plan.omitted:
        plan = replace(plan, omitted=_list_omitted(request, plan))
    return replace(context, plan=plan, section=section, blocks=blocks, offered_tools=offered_tools)


def _list_omitted(request: MemoryRequest, plan: Plan) -> tuple[PathElement, ...]:
    """Returns the messages that the client left out of its list, without the messages that have left the window."""
    # In append mode the client leaves out everything, and asks for it.
    if request.spec.history == "client" and request.kind is ConversationKind.CLIENT:
        return ()
    evicted = find_evicted(plan.match.match_point, request.target.context_window)
    if evicted is None:
        return plan.omitted
    return tuple(element for element in plan.omitted if element.offset >= evicted.offset)


class _PlannedTurn(NamedTuple):
    """The plan of a turn, and the exchanges that were loaded for it."""

    # The plan of the turn.
    plan: Plan
    # The loaded exchanges.
    tree: Tree


async def _load_and_plan(
    store: Store, request: MemoryRequest, agent: Agent, snapshot: MemorySnapshot, query: Query
) -> _PlannedTurn:
    """Loads as much of a conversation as it takes to plan the turn.

    The conversation's end is nearly always enough: as many exchanges as the list has replies, and some more. If that is
    not enough, the part back to where the window began is loaded, and at last all of the conversation. A new
    conversation needs nothing.
    """
    tree = Tree()
    openings = None if snapshot.has_tombstones else store.turns.find_openings(agent, snapshot)
    # A memory that has not taken its first number holds nothing, whether it is stored or not.
    if snapshot.next_seq == 1 or (openings is not None and begins_conversation(query, openings)):
        return _PlannedTurn(plan_opening(query) or plan_turn(tree, query), tree)
    reach = _Reach(RECENT_EXCHANGES + query.listing.reply_count)
    window = request.target.context_window
    while True:
        tree, last_at = await _load_tree(store, agent, query, request.identity.conversation_key, tree, reach)
        # In append mode the path goes upstream from where its window began.
        is_end = reach.max_exchanges is not None
        needs_window = query.kind is ConversationKind.APPENDED and is_end and tree.is_partial
        if needs_window and not any(find_evicted(each, window) for each in tree):
            # Nothing has left the window.
            reach = _WHOLE_CONVERSATION
            continue
        plan = await retry_with_contents(store.turns, agent, tree, partial(plan_turn, tree, query))
        evicted = find_evicted(plan.match.match_point, window)
        if not query.is_named and not query.listing.answered_count:
            store.turns.cache_openings(agent, snapshot, digest_openings(tree))
        is_whole = reach == _WHOLE_CONVERSATION or not tree.is_partial
        if is_whole or is_loaded_enough(tree, plan, evicted, last_at, snapshot.exchange):
            return _PlannedTurn(plan, tree)
        if is_end and evicted is not None:
            # Exchanges before the window are not sent, so they are not needed to compose the request.
            reach = _Reach(max_exchanges=None, min_depth=max(0, evicted.depth - 1))
        else:
            reach = _WHOLE_CONVERSATION


class _Reach(NamedTuple):
    """The part of a conversation that is loaded, from its end upwards."""

    # The most exchanges; None: any number.
    max_exchanges: int | None
    # The depth of the first exchange; None: the conversation's beginning.
    min_depth: int | None = None


_WHOLE_CONVERSATION = _Reach(max_exchanges=None)


class _LoadedTree(NamedTuple):
    """Exchanges of a conversation."""

    # The exchanges.
    tree: Tree
    # The time of the conversation's last write, as in `CandidateExchanges`.
    last_at: float


async def _load_tree(
    store: Store, agent: Agent, query: Query, key: str | None, loaded_tree: Tree, reach: _Reach
) -> _LoadedTree:
    """Returns the exchanges that a list may go on from.

    key: the client's own name for the conversation.
    loaded_tree: the exchanges that were loaded with less reach.
    """
    # With a client's id all exchanges are of one conversation, so loaded exchanges are not loaded again, except for the
    # first exchanges, at depth 0.
    earlier_exchanges = tuple(loaded_tree) if query.is_named else ()
    probes = make_probes_for_list(
        query,
        key,
        max_exchanges=reach.max_exchanges,
        min_depth=reach.min_depth,
        loaded_depth=min((exchange.depth for exchange in earlier_exchanges if exchange.depth), default=None),
        loads_contents=query.kind is ConversationKind.APPENDED,
    )
    candidates = await store.turns.load_candidates(agent, probes)
    # Parents come before their children.
    exchanges = {exchange.id: exchange for exchange in (*candidates.exchanges, *earlier_exchanges)}
    tree = Tree(
        exchanges.values(),
        {**loaded_tree.contents.loaded, **candidates.contents},
        candidates.forgotten_hashes,
    )
    return _LoadedTree(tree, candidates.last_at)


async def _find_conversation_uid(
    store: Store, agent: Agent, snapshot: MemorySnapshot, plan: Plan
) -> str | None:
    """Returns the public id of the conversation that a plan continues.

    Returns None if the plan begins a conversation, or if the conversation is gone.
    """
    conversation_row = plan.conversation_row
    conversation = snapshot.conversation
    if conversation is not None and conversation.id == conversation_row:
        return conversation.uid
    if conversation_row is None or conversation_row <= 0 or not agent.is_stored:
        return None
    return await store.turns.find_conversation_uid(agent, conversation_row)
