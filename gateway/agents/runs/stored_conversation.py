"""Reads the context of a stored conversation once for a send, and plans each step of the send's run.

The new messages are taken out of the request and put into the plan. So a send and a later step look alike: the request
has the fields of the call and the leading system messages, and all other messages come from the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher, is_user
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.stored_path import abandon, begin_step, begins_fork, hash_exchanges, plan_step
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage, count_leading_system
from gateway.core.memory import edits
from gateway.core.prompt.eviction import find_evicted
from gateway.core.request.chat_request import ChatRequest
from gateway.run.memory.conversation_uid import make_conversation_uid
from gateway.run.memory.memory_agent import find_or_draft_agent, refresh_agent
from gateway.run.memory.memory_context import MemoryContext, MemoryRequest
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.section_blocks import list_initial_blocks, sort_in_prompt_order
from gateway.run.memory.tool_offer import offer_tools
from gateway.run.receipt import mask_model_name
from storage.commands import MemorySnapshot
from storage.errors import NotFound, StoreError
from storage.records import DEFAULT_CONVERSATION, Agent, Block, Exchange, ExchangeState, SentSection
from storage.run_commands import ConversationPath, StepOpen
from storage.run_records import Run
from storage.sql.store import Store


def without_spoken_messages(request: ChatRequest) -> ChatRequest:
    """Returns a copy of a request with only the leading system messages of its list."""
    spoken = range(count_leading_system(request.messages), len(request.messages))
    if not spoken:
        return request
    edit = request.begin_edit()
    for index in spoken:
        edit.drop_message(index)
    leading = request.messages[: spoken.start]
    return replace(
        request,
        raw=edit.render(),
        json={**request.json, "messages": leading},
        messages=leading,
        reply_models={},
        stored_indexes=frozenset(),
    )


async def read_stored_context(
    store: Store, request: MemoryRequest, messages: Sequence[WireMessage], idle_s: float
) -> MemoryContext:
    """Returns the context of a send, with the plan of its first step.

    request: the request to memory. Its chat completion has only leading system messages, and its conversation is
        `default` or a uid.
    messages: the messages of the send, as they will be stored.

    Raises: NotFound if there is no conversation of this uid; StoreError.
    """
    agent, stored_path = await _get_agent_and_path(store, request)
    agent = await refresh_agent(store, agent, stored_path.snapshot)
    conversation = stored_path.snapshot.conversation
    if conversation is None and request.identity.conversation_key != DEFAULT_CONVERSATION:
        raise NotFound("there is no such conversation")
    path = list(stored_path.path)
    abandoned_exchange = None
    if path and path[-1].state is ExchangeState.OPEN:
        hasher = MessageHasher(agent.secret)
        abandoned_exchange = path[-1] = abandon(
            path[-1], hasher, hash_exchanges(path[:-1], hasher), request.now
        )
    tree = Tree(path)
    uid = make_conversation_uid() if conversation is None else conversation.uid
    context = MemoryContext(
        request=request,
        agent=agent,
        snapshot=stored_path.snapshot,
        plan=plan_step(tree, _make_query(request, agent, idle_s), None, None),
        tree=tree,
        path=tuple(path),
        is_plain=False,
        conversation_uid=uid,
        summaries=stored_path.summaries,
        abandoned_exchange=abandoned_exchange,
    )
    blocks: Sequence[Block]
    if agent.is_stored:
        blocks = sort_in_prompt_order(request.spec, stored_path.snapshot.blocks)
    else:
        blocks = await list_initial_blocks(store, request.spec, agent)
    visible = edits.list_blocks_on_path(blocks, stored_path.snapshot.edits, context.path_ids)
    messages = _with_initial_messages(context, messages)
    return _with_plan(context, messages, stored_path.snapshot.section, visible)


async def _get_agent_and_path(store: Store, request: MemoryRequest) -> tuple[Agent, ConversationPath]:
    """Returns the agent that a request names, and the path of its conversation, empty if the agent is not stored yet.

    Raises: StoreError.
    """
    assert request.identity.scope is not None  # a stored conversation has an agent's memory
    # Another process may have forgotten the cached agent: then the agent is looked for once more.
    for _ in range(2):
        agent = await find_or_draft_agent(store, request)
        if not agent.is_stored:
            return agent, ConversationPath(MemorySnapshot())
        stored_path = await _read_path(store, request, agent)
        if stored_path is not None:
            return agent, stored_path
        store.agents.uncache(request.identity.scope)
    raise StoreError("the memory of this agent is being removed")


def _with_initial_messages(context: MemoryContext, messages: Sequence[WireMessage]) -> Sequence[WireMessage]:
    """Returns the messages of a send, after the agent's initial messages if the conversation has not begun."""
    has_begun = any(not exchange.superseded and not begins_fork(exchange) for exchange in context.path)
    return messages if has_begun else [*context.request.spec.initial_messages, *messages]


def resume_open_step(context: MemoryContext) -> MemoryContext:
    """Returns a copy of the context that ends before the last step of the conversation, which is still open."""
    open_exchange = context.abandoned_exchange
    assert open_exchange is not None  # the caller has seen that a step is open
    path = context.path[:-1]
    context = replace(context, path=path, tree=Tree(path), abandoned_exchange=None)
    return _with_plan(context, orjson.loads(open_exchange.input or b"[]"), context.section, context.blocks)


async def reread_context(store: Store, context: MemoryContext) -> MemoryContext | None:
    """Returns the context as it is stored now; None if the conversation was continued by another send.

    Raises: StoreError.
    """
    stored_path = await _read_path(store, context.request, context.agent)
    if stored_path is None or stored_path.snapshot.conversation is None:
        return None
    if [exchange.id for exchange in stored_path.path[-1:]] != [exchange.id for exchange in context.path[-1:]]:
        return None
    context = replace(
        context,
        snapshot=stored_path.snapshot,
        path=tuple(stored_path.path),
        tree=Tree(stored_path.path),
        summaries=stored_path.summaries,
    )
    blocks = sort_in_prompt_order(context.request.spec, stored_path.snapshot.blocks)
    return _with_plan(context, context.plan.pending, context.section, blocks)


async def _read_path(store: Store, request: MemoryRequest, agent: Agent) -> ConversationPath | None:
    name = request.identity.conversation_key or DEFAULT_CONVERSATION
    sleeptime = request.spec.sleeptime
    turns = 0 if sleeptime is None else sleeptime.every
    return await store.stored_paths.load_path(agent, name, request.target.context_window, turns)


def rewind_context(
    context: MemoryContext, messages: Sequence[WireMessage], last_row: int | None
) -> MemoryContext:
    """Returns a copy of the context of a send whose path ends with an earlier exchange.

    Returns the context unchanged if its path lacks the exchange.

    messages: the messages of the send, as they will be stored.
    last_row: the row of the exchange; 0: the path becomes empty; None: the last exchange that is not open.
    """
    path = context.path
    if last_row is None:
        path = path if context.abandoned_exchange is None else path[:-1]
    elif not last_row:
        path = ()
    elif last_row in context.path_ids:
        path = path[: next(n for n, exchange in enumerate(path, 1) if exchange.id == last_row)]
    if path == context.path:
        return context
    context = replace(context, path=path, tree=Tree(path), abandoned_exchange=None)
    return _with_plan(context, _with_initial_messages(context, messages), context.section, context.blocks)


def with_ended_step(context: MemoryContext, step: Exchange) -> MemoryContext:
    """Returns a copy of the context with an ended step as the last of its path. The plan of the step stays.

    The step is added to the tree that the copy shares with the context.
    """
    if context.path and context.path[-1] is step:
        return context
    context.tree.add(step)
    path = (*(exchange for exchange in context.path if exchange.id != step.id), step)
    return replace(context, path=path, abandoned_exchange=None)


def plan_next(
    context: MemoryContext, messages: Sequence[WireMessage], blocks: Sequence[Block], now: float
) -> MemoryContext:
    """Returns the context of the step after the last one of the path.

    messages: the messages that the next step brings, such as results of tools.
    blocks: the blocks after the edits of the last step.
    now: seconds since the epoch.
    """
    context = replace(context, request=replace(context.request, now=now))
    return _with_plan(context, messages, context.section, blocks)


def _with_plan(
    context: MemoryContext,
    messages: Sequence[WireMessage],
    section: SentSection | None,
    blocks: Sequence[Block],
) -> MemoryContext:
    """Returns a copy of the context with the plan of a step that brings these messages."""
    request, conversation = context.request, context.snapshot.conversation
    plan = plan_step(
        context.tree,
        _make_query(request, context.agent, context.plan.query.idle_s),
        context.last_exchange,
        None if conversation is None else conversation.id,
        evicted=find_evicted(context.last_exchange, request.target.context_window),
        pending=messages,
    )
    if request.spec.definition.clears:
        depth = _measure_turn_depth(context, messages)
        plan = replace(plan, omitted=tuple(part for part in plan.omitted if part.exchange.depth >= depth))
    context = replace(context, plan=plan, section=section, blocks=tuple(blocks))
    # The tools are the same for every step, whatever its messages.
    body: dict[str, Any] = {**request.chat.json, "messages": [{"role": "user"}]}
    return replace(context, offered_tools=offer_tools(context.request, context.agent, section, body))


def _measure_turn_depth(context: MemoryContext, messages: Sequence[WireMessage]) -> int:
    """Returns the depth of the exchange with which the current turn begins: the last one with a user's message."""
    if any(message.get("role") == "user" and not is_nudge(message) for message in messages):
        return context.path[-1].depth + 1 if context.path else 0
    return next((each.depth for each in reversed(context.path) if any(map(is_user, each.inputs))), 0)


def _make_query(request: MemoryRequest, agent: Agent, idle_s: float) -> Query:
    """Returns the query for the plan of a step. idle_s: the seconds after which a conversation rests."""
    return Query(
        HashedList(MessageHasher(agent.secret), ()),
        is_named=True,
        mode=MemoryUse.ON,
        now=request.now,
        idle_s=idle_s,
        kind=request.kind,
        model=mask_model_name(request.target.upstream, request.target.model),
    )


def make_step_open(context: MemoryContext, prompt: Prompt, run: Run | None, now: float) -> StepOpen:
    """Returns the command that stores an open step, before the model is asked.

    run: the run that begins with the step; None: the run has begun earlier.
    now: seconds since the epoch.
    """
    conversation, spec = context.snapshot.conversation, context.request.spec
    # A conversation of a client has no last exchange, since its exchanges are a tree.
    is_of_client = conversation is not None and not conversation.last_exchange
    return StepOpen(
        agent=context.agent,
        key=DEFAULT_CONVERSATION,
        uid=context.conversation_uid,
        conversation_row=None if conversation is None else conversation.id,
        rev=0 if conversation is None else conversation.rev,
        now=now,
        exchange=begin_step(context.plan, prompt.new_notes, prompt.window.evicted),
        run=run,
        section=prompt.section.sent,
        defaults=spec.own_blocks,
        shared=spec.shared_blocks,
        adopts_conversation=is_of_client,
        continued=[context.path[-1].id] if is_of_client and context.path else (),
        abandoned=context.abandoned_exchange,
    )
