"""Reads a memory when a turn begins: the conversation that the request continues, and what memory adds to it.

Everything is read before the prompt is made; for a plain turn, in one round trip. gateway.core decides what is needed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.fast_path import plan_opening, plan_plain
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.loaded import is_loaded_enough
from gateway.core.conversation.lookup import RECENT_EXCHANGES, probes_for_list
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.openings import begins_conversation, openings_of
from gateway.core.conversation.plan import Plan, plan_turn
from gateway.core.conversation.tree import PathElement, Tree
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.memory import builtin, edits
from gateway.core.memory.memory_tools import BLOCK_TOOLS, MEMORY_TOOLS
from gateway.core.memory.offered_tools import allows_hidden_tools, choose_tool_names
from gateway.core.prompt.eviction import evicted_before
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import Mode
from gateway.core.upstream.policy import Target
from gateway.errors import NotAllowed
from gateway.run.memory.contents import retry_with_contents
from gateway.run.memory.queue import QueueTicket
from gateway.run.memory.resent import MAX_REQUEST_BYTES, ResentLists
from gateway.run.receipt import stored_model_name
from storage.commands import MemorySnapshot
from storage.errors import StoreError
from storage.records import Agent, Block, Evicted, Exchange, SentSection, Summary
from storage.sql.store import Store

# The tools that the memory section names: those of profiles, and those of agents made over REST.
_NAMED_IN_SECTION = MEMORY_TOOLS.keys() | builtin.tools_for(*builtin.MEMORY_USES)
_MEMORY_USES = {
    Mode.ON: MemoryUse.ON,
    Mode.STRICT: MemoryUse.ON,
    Mode.READ: MemoryUse.READ,
    Mode.OFF: MemoryUse.OFF,
}
# Not secure, since the name of a conversation opens nothing.
_ids = random.Random()


class MemoryRequest(Struct, frozen=True):
    """A request as memory sees it."""

    chat: ChatRequest
    identity: Identity
    # The agent that answers.
    spec: AgentSpec
    # Seconds since the epoch.
    now: float
    # The upstream and model that are expected to answer, with the model's window.
    target: Target
    # The kind of its conversation.
    kind: ConversationKind
    # The request's turn in the queue of its conversation.
    ticket: QueueTicket = field(default_factory=QueueTicket)


class MemoryContext(Struct, frozen=True):
    """Everything that was read for one request."""

    request: MemoryRequest
    # The memory's owner as it is stored, or a draft of it.
    agent: Agent
    # What was read in one round trip.
    snapshot: MemorySnapshot
    # What the request adds to its conversation.
    plan: Plan
    # The exchanges that were loaded.
    tree: Tree
    # The exchanges before the request, oldest first, as far back as the prompt needs them.
    path: tuple[Exchange, ...]
    # The client's list is the stored path word for word. Only the exchanges to which the gateway has added something
    # are in `tree` and `path`.
    is_plain: bool
    # The conversation's public name, a new one if it is new.
    conversation_uid: str
    # The memory section that the path has; None: the path has no section yet.
    pinned: SentSection | None = None
    # The memory blocks with the path's own pending edits.
    blocks: tuple[Block, ...] = ()
    # The gateway's tools for the model: name in this request -> tool.
    offered: Mapping[str, str] = field(default_factory=dict)
    # The row of the exchange, once its user message is written; negative before.
    exchange_row: int = -1
    # The exchange as it was written with its user message; None: it was not written, or more of the memory has changed
    # since it was read.
    opened_exchange: Exchange | None = None
    # The summaries of the conversation, newest first; None: they were not read.
    summaries: Sequence[Summary] | None = None
    # An exchange that a process left open when it died, in the form in which it ends. It is written with the next one.
    unended: Exchange | None = None

    @property
    def is_off(self) -> bool:
        """True if memory is off for this request: nothing is added, and nothing is stored."""
        return self.request.identity.mode is Mode.OFF

    @property
    def is_stored(self) -> bool:
        """True if the conversation is a stored one, so that all its messages are one path."""
        return self.request.kind is ConversationKind.AGENT

    @property
    def tools_in_section(self) -> dict[str, str]:
        """The offered tools that read or edit memory, which the memory section names."""
        offered = self.offered
        return {name: tool for name, tool in offered.items() if tool in _NAMED_IN_SECTION} if offered else {}

    @property
    def path_ids(self) -> set[int]:
        return {exchange.id for exchange in self.path}

    @property
    def evicted(self) -> Evicted | None:
        """The part of the path that had left the window before this request."""
        return evicted_before(self.plan.match.match_point, self.request.target.context_window)

    def answered_by(self, target: Target) -> MemoryContext:
        """Returns the context with the target that answers, which may differ from the expected one."""
        model = stored_model_name(target.upstream, target.model)
        if model == self.plan.query.model:
            return self
        return replace(self, plan=replace(self.plan, query=replace(self.plan.query, model=model)))

    def expected_from(self, target: Target) -> MemoryContext:
        """Returns the context of a request that is expected to be answered by another target."""
        return replace(self.answered_by(target), request=replace(self.request, target=target))


async def read_context(
    store: Store, resent: ResentLists, request: MemoryRequest, idle_s: float
) -> MemoryContext:
    """Reads the context of a request. A paused memory is read as if the request had turned it off.

    idle_s: for how long an unnamed opening may be repeated.

    Raises: StoreError.
    """
    agent, listing, snapshot = await _read_snapshot(store, resent, request)
    if agent.paused is not None:
        request = replace(request, identity=replace(request.identity, mode=Mode.OFF))
    identity, target, conversation = request.identity, request.target, snapshot.conversation
    is_named = identity.conversation_key is not None
    query = Query(
        listing,
        is_named=is_named,
        mode=_memory_use(identity),
        now=request.now,
        idle_s=idle_s,
        kind=request.kind,
        is_retry=identity.retry,
        conversation_row=conversation.id if is_named and conversation is not None else None,
        model=stored_model_name(target.upstream, target.model),
    )
    plan = plan_plain(snapshot, query)
    if plan is None or conversation is None or snapshot.exchange is None:
        return await _read_and_plan(store, request, agent, snapshot, query)
    # The snapshot has all that a plain turn needs.
    rounds = snapshot.additions.rounds
    has_last = bool(rounds) and rounds[-1].id == snapshot.exchange.id
    path = rounds if has_last else (*rounds, snapshot.exchange)
    blocks = blocks_on_path(request, snapshot, path) if snapshot.blocks or snapshot.edits else ()
    offered = offer_tools(request, agent, snapshot.section, request.chat.json)
    return MemoryContext(
        request=request,
        agent=agent,
        snapshot=snapshot,
        plan=plan,
        tree=Tree(rounds),
        path=path,
        is_plain=True,
        conversation_uid=conversation.uid,
        pinned=snapshot.section,
        blocks=blocks,
        offered=offered,
    )


def _memory_use(identity: Identity) -> MemoryUse:
    use = _MEMORY_USES[identity.mode]
    return MemoryUse.APART if identity.is_apart and use is MemoryUse.READ else use


class _ReadMemory(NamedTuple):
    """The memory of a request as it was read."""

    agent: Agent
    # The request's list, hashed with the memory's secret.
    listing: HashedList
    snapshot: MemorySnapshot


async def _read_snapshot(store: Store, resent: ResentLists, request: MemoryRequest) -> _ReadMemory:
    """Reads the snapshot of a request's memory, in one round trip. Raises: StoreError."""
    scope, key = request.identity.scope, request.identity.conversation_key
    assert scope is not None  # only requests with memory come here
    # A second time, because another process may have forgotten the cached agent.
    for _ in range(2):
        agent = await find_agent(store, request)
        hasher = MessageHasher(agent.secret)
        if len(request.chat.raw) > MAX_REQUEST_BYTES:
            listing = await asyncio.to_thread(_hash_large, hasher, request.chat.messages)
        else:
            listing = resent.listing(hasher, request.chat)
        path_hash = listing.answered_path_hash if listing.answered else None
        snapshot = (
            await store.turns.load_snapshot(agent, key, path_hash) if agent.is_stored else MemorySnapshot()
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
    plan, tree = await _plan(store, request, agent, snapshot, query)
    match_point = plan.match.match_point
    path = tuple(tree.chain(match_point))
    uid = await _conversation_uid(store, agent, snapshot, plan) or _uid_from_opening(
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
    number = match_point.section if match_point is not None else None
    pinned = await store.sections.find(agent.id, number) if number is not None else None
    blocks = (
        blocks_on_path(request, snapshot, path)
        if agent.is_stored
        else await initial_blocks(store, request, agent)
    )
    offered = offer_tools(request, agent, pinned, request.chat.json)
    if plan.omitted:
        plan = replace(plan, omitted=_omitted_by_client(request, plan))
    return replace(context, plan=plan, pinned=pinned, blocks=blocks, offered=offered)


async def find_agent(store: Store, request: MemoryRequest) -> Agent:
    """Returns the agent of the memory as it is stored, or a draft of it.

    Gateways that share a database would make different drafts, so with them the agent is stored before it is cached.
    Raises: NotFound: the agent was made over REST, and is gone.
    """
    scope, spec = request.identity.scope, request.spec
    assert scope is not None
    agents = store.agents
    if not store.database.is_shared:
        return agents.find_cached(scope) or await agents.find_or_draft(scope, must_exist=not spec.is_profile)
    # A turn off the record leaves hashes under the agent's secret, so it needs a stored agent as well.
    if spec.is_profile and not request.identity.leaves_nothing:
        return await agents.find_or_begin(scope, spec.own_blocks, spec.shared_blocks, request.now)
    return await agents.find_or_draft(scope, must_exist=not spec.is_profile)


async def refresh_agent(store: Store, agent: Agent, snapshot: MemorySnapshot) -> Agent:
    """Returns an agent as it is in a snapshot that was read after it. Raises: StoreError."""
    if not agent.is_stored or agent.epoch == snapshot.epoch:
        return agent
    # Something of this memory was forgotten since the agent was cached, or it was paused or resumed.
    agent = replace(await store.agents.load(agent.id) or agent, epoch=snapshot.epoch)
    store.agents.cache(agent)
    return agent


def check_not_paused(agent: Agent) -> None:
    """Raises: NotAllowed: the memory is paused."""
    if agent.paused is not None:
        raise NotAllowed(
            "This memory is paused: nothing is remembered or recalled until its person resumes it."
        )


def _omitted_by_client(request: MemoryRequest, plan: Plan) -> tuple[PathElement, ...]:
    """Returns the messages that the client left out of its list, without those that have left the window."""
    # In append mode the client leaves out everything, and asks for it.
    if request.spec.history == "client" and request.kind is ConversationKind.CLIENT:
        return ()
    evicted = evicted_before(plan.match.match_point, request.target.context_window)
    if evicted is None:
        return plan.omitted
    return tuple(element for element in plan.omitted if element.offset >= evicted.offset)


async def _plan(
    store: Store, request: MemoryRequest, agent: Agent, snapshot: MemorySnapshot, query: Query
) -> tuple[Plan, Tree]:
    """Loads as much of a conversation as it takes to plan the turn.

    The conversation's end is nearly always enough: as many exchanges as the list has replies, and some more. If that is
    not enough, the part back to where the window began is loaded, and at last all of the conversation. A new
    conversation needs nothing.
    """
    tree = Tree()
    openings = None if snapshot.has_tombs else store.turns.find_openings(agent, snapshot)
    # A memory that has not taken its first number holds nothing, whether it is stored or not.
    if snapshot.next_seq == 1 or (openings is not None and begins_conversation(query, openings)):
        return plan_opening(query) or plan_turn(tree, query), tree
    reach = _Reach(RECENT_EXCHANGES + query.listing.reply_count)
    window = request.target.context_window
    while True:
        tree, last_at = await _load_tree(store, agent, query, request.identity.conversation_key, tree, reach)
        # In append mode the path goes upstream from where its window began.
        is_end = reach.max_exchanges is not None
        needs_window = query.kind is ConversationKind.APPENDED and is_end and tree.is_partial
        if needs_window and not any(evicted_before(each, window) for each in tree):
            reach = _WHOLE_CONVERSATION  # nothing has left the window
            continue
        plan = await retry_with_contents(store.turns, agent, tree, partial(plan_turn, tree, query))
        evicted = evicted_before(plan.match.match_point, window)
        if not query.is_named and not query.listing.answered:
            store.turns.cache_openings(agent, snapshot, openings_of(tree))
        if reach == _WHOLE_CONVERSATION or not tree.is_partial:
            return plan, tree
        if is_loaded_enough(tree, plan, evicted, last_at, snapshot.exchange):
            return plan, tree
        if is_end and evicted is not None:
            # Exchanges before the window are not sent, so they are not needed to compose the request.
            reach = _Reach(max_exchanges=None, min_depth=max(0, evicted.depth - 1))
        else:
            reach = _WHOLE_CONVERSATION


class _Reach(NamedTuple):
    """How far up a conversation is loaded from its end."""

    # The most exchanges; None: any number.
    max_exchanges: int | None
    # The depth of the first exchange; None: the conversation's beginning.
    min_depth: int | None = None


_WHOLE_CONVERSATION = _Reach(max_exchanges=None)


async def _load_tree(
    store: Store, agent: Agent, query: Query, key: str | None, loaded: Tree, reach: _Reach
) -> tuple[Tree, float]:
    """Returns the exchanges that a list may go on from, and when their conversation was last written to (`Pool`).

    key: the client's own name for the conversation.
    loaded: the exchanges that were loaded with less reach.
    """
    # A client's id names one conversation. Only its first exchanges are loaded twice.
    loaded_before = tuple(loaded) if query.is_named else ()
    probes = probes_for_list(
        query,
        key,
        max_exchanges=reach.max_exchanges,
        min_depth=reach.min_depth,
        loaded_depth=min((exchange.depth for exchange in loaded_before if exchange.depth), default=None),
        with_contents=query.kind is ConversationKind.APPENDED,
    )
    pool = await store.turns.load_pool(agent, probes)
    exchanges = {
        exchange.id: exchange for exchange in (*pool.exchanges, *loaded_before)
    }  # parents before their children
    return Tree(exchanges.values(), {**loaded.contents, **pool.contents}, pool.tombs), pool.last_at


async def _conversation_uid(store: Store, agent: Agent, snapshot: MemorySnapshot, plan: Plan) -> str | None:
    """Returns the public name of the conversation that a plan continues.

    Returns None where the plan begins one, or where the conversation is gone.
    """
    conversation_row, conversation = plan.conversation_row, snapshot.conversation
    if conversation is not None and conversation.id == conversation_row:
        return conversation.uid
    if conversation_row is None or conversation_row <= 0 or not agent.is_stored:
        return None
    return await store.turns.find_conversation_uid(agent, conversation_row)


def _uid_from_opening(
    request: MemoryRequest, agent: Agent, snapshot: MemorySnapshot, listing: HashedList
) -> str:
    """Returns the public name of a conversation that begins.

    Requests that begin the same conversation at the same time need the same name before one of them is written. So it
    is a hash of the client's own name for the conversation. Without such a name, it is a hash of the messages and of
    the memory's next number, since an earlier conversation may have begun alike. The epoch is hashed too: after a
    forgetting it is another conversation.
    """
    key = request.identity.conversation_key
    seed = (
        b"m%d " % snapshot.next_seq + listing.hash_path(len(listing)) if key is None else b"k" + key.encode()
    )
    return blake2b(b"%d %b" % (agent.epoch, seed), key=agent.secret, digest_size=16).hexdigest()


def new_conversation_uid() -> str:
    """Returns a public name for a conversation that no list of a client begins."""
    return f"{_ids.getrandbits(128):032x}"


def in_prompt_order(spec: AgentSpec, blocks: Sequence[Block]) -> list[Block]:
    """Returns blocks in their order in the prompt: as the agent declares them, then blocks that were made since."""
    if len(blocks) < 2:
        return list(blocks)
    order = {block.label: n for n, block in enumerate(spec.blocks)}
    return sorted(blocks, key=lambda block: order.get(block.label, len(order)))


def blocks_on_path(
    request: MemoryRequest, snapshot: MemorySnapshot, path: Sequence[Exchange]
) -> tuple[Block, ...]:
    """Returns the blocks of a snapshot as a path sees them, its own pending edits included."""
    blocks = in_prompt_order(request.spec, snapshot.blocks)
    if not snapshot.edits:
        return tuple(blocks)
    return tuple(edits.blocks_on_path(blocks, snapshot.edits, {exchange.id for exchange in path}))


async def initial_blocks(store: Store, request: MemoryRequest, agent: Agent) -> tuple[Block, ...]:
    """Returns the blocks that the memory of a draft will have at first."""
    spec = request.spec
    defaults = [replace(block, id=n) for n, block in enumerate(spec.blocks)]
    if spec.shared_labels:
        stored = {block.label: block for block in await store.turns.load_shared_blocks(agent)}
        defaults = [stored.get(block.label, block) for block in defaults]
    return tuple(defaults)


def offer_tools(
    request: MemoryRequest, agent: Agent, pinned: SentSection | None, body: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the memory tools for a request: offered name -> tool.

    A request is offered memory tools if it names an agent or has tools of its own; without a user, only the tools that
    edit blocks. A request that only reads memory is offered the tools that its conversation has: other tools would
    change the beginning of the prompt, and the provider's cache would not be used.

    pinned: the path's section, which has the names that the conversation uses already.
    body: of the chat completion.
    """
    chat, identity, spec = request.chat, request.identity, request.spec
    if not spec.offers_tools or (identity.agent is None and not chat.has_tools):
        return {}
    if sampling := spec.definition.sampling:
        # Fields that come from the agent's definition, such as a response_format, do not rule out its tools.
        body = {
            name: value for name, value in body.items() if name not in sampling or sampling[name] != value
        }
    if not allows_hidden_tools(body):
        return {}
    agreed_names = pinned.known.get("tools") if pinned else None
    if identity.mode is Mode.READ and (not spec.is_profile or not agreed_names):
        return {}
    if not spec.is_profile:
        # On a clash of names the client's tool wins.
        return {tool.name: tool.name for tool in spec.tools if tool.name not in chat.tool_names}
    enabled = MEMORY_TOOLS if agent.scope.spans_conversations else BLOCK_TOOLS
    return choose_tool_names(enabled, frozenset(chat.tool_names), agreed_names)
