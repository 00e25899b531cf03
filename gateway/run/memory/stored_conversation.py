"""Memory's knowledge of a stored conversation: read once for a send, and handed on from step to step.

The messages that came in are taken out of the request and composed here, so that a step of a run and a send look alike:
the request has the fields of the call and the leading system messages, and all content comes from the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec.structs import replace

from gateway.core.conversation.canonical import Canon, Listing, WireMessage, first_spoken, is_user
from gateway.core.conversation.match import MemoryUse, Query
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.stored_path import abandon, begins_fork, open_step, path_hash, plan_step
from gateway.core.conversation.tree import Tree
from gateway.core.memory import edits
from gateway.core.prompt.eviction import evicted_at
from gateway.core.request.chat_request import ChatRequest
from gateway.run.memory.memory_context import (
    MemoryContext,
    MemoryRequest,
    agent_of,
    in_prompt_order,
    initial_blocks,
    new_conversation_uid,
    offer_tools,
    stored_model_name,
)
from gateway.run.memory.prompt import Prompt
from storage.commands import ConversationPath, MemorySnapshot, StepOpen
from storage.errors import NotFound, StoreError
from storage.records import DEFAULT, Agent, Block, Exchange, Run, SentSection, State
from storage.sql.store import Store


def headed(request: ChatRequest) -> ChatRequest:
    """Returns a request with nothing of its list but its leading system messages."""
    spoken = range(first_spoken(request.messages), len(request.messages))
    if not spoken:
        return request
    edit = request.edit()
    for index in spoken:
        edit.drop_message(index)
    leading = request.messages[: spoken.start]
    return replace(request, raw=edit.render(), json={**request.json, "messages": leading}, messages=leading)


async def read_path(
    store: Store, request: MemoryRequest, messages: Sequence[WireMessage], idle_s: float
) -> MemoryContext:
    """Returns what a send goes on from.

    messages: what came in, as it will be stored.
    request: its chat completion is a headed one; its conversation is `default`, or the uid of one that is there.

    Raises: NotFound: there is no such conversation; StoreError.
    """
    scope = request.identity.scope
    assert scope is not None
    agents = store.agents
    # A remembered agent may have been forgotten by another process: then it is looked for once more.
    for _ in range(2):
        agent = await agent_of(store, request)
        own = await _find(store, request, agent) if agent.id else ConversationPath(MemorySnapshot())
        if own is not None:
            break
        agents.uncache(scope)
    else:
        raise StoreError("the memory of this agent is being removed")
    # Something of this memory was forgotten since the agent was cached.
    if agent.id and agent.epoch != own.snapshot.epoch:
        agent = replace(agent, epoch=own.snapshot.epoch)
        agents.cache(agent)
    conversation = own.snapshot.conversation
    if conversation is None and request.identity.conversation != DEFAULT:
        raise NotFound("there is no such conversation")
    path = list(own.path)
    unended = None
    if path and path[-1].state is State.OPEN:
        canon = Canon(agent.secret)
        unended = path[-1] = abandon(path[-1], canon, path_hash(path[:-1], canon), request.now)
    tree = Tree(path)
    uid = new_conversation_uid() if conversation is None else conversation.uid
    context = MemoryContext(
        request,
        agent,
        own.snapshot,
        plan_step(tree, _query(request, agent, idle_s), None, None),
        tree,
        tuple(path),
        is_plain=False,
        conversation_uid=uid,
        summaries=own.summaries,
        unended=unended,
    )
    blocks = (
        in_prompt_order(request.spec, own.snapshot.blocks)
        if agent.id
        else await initial_blocks(store, request, agent)
    )
    seen = edits.view(blocks, own.snapshot.ops, context.path_ids)
    has_begun = any(not exchange.superseded and not begins_fork(exchange) for exchange in path)
    initial = () if has_begun or request.spec.defined is None else request.spec.defined.initial_messages
    return _planned(context, [*initial, *messages], own.snapshot.section, seen)


def taken_up(context: MemoryContext) -> MemoryContext:
    """Returns what was known before the step with which the conversation ends, which is still open."""
    unended = context.unended
    assert unended is not None
    path = context.path[:-1]
    context = replace(context, path=path, tree=Tree(path), unended=None)
    return _planned(context, orjson.loads(unended.input or b"[]"), context.pinned, context.blocks)


async def reread(store: Store, context: MemoryContext) -> MemoryContext | None:
    """Returns the knowledge with what was changed meanwhile; None: the conversation has gone on without this send.

    Raises: StoreError.
    """
    own = await _find(store, context.request, context.agent)
    ends = [path[-1].id if path else None for path in (context.path, own.path if own else ())]
    if own is None or own.snapshot.conversation is None or ends[0] != ends[1]:
        return None
    context = replace(
        context, snapshot=own.snapshot, path=tuple(own.path), tree=Tree(own.path), summaries=own.summaries
    )
    blocks = in_prompt_order(context.request.spec, own.snapshot.blocks)
    return _planned(context, context.plan.held, context.pinned, blocks)


async def _find(store: Store, request: MemoryRequest, agent: Agent) -> ConversationPath | None:
    name, sleeptime = request.identity.conversation or DEFAULT, request.spec.sleeptime
    turns = 0 if sleeptime is None else sleeptime.every
    return await store.stored_paths.path(agent, name, request.target.context_window, turns)


def as_of(context: MemoryContext, last: int | None) -> MemoryContext:
    """Returns the knowledge as it was when an exchange was the last one; as it is where the path has it no more.

    last: the id of that exchange; 0: there was none; None: the last one that is not being answered.
    """
    path = context.path
    if last is None:
        path = path if context.unended is None else path[:-1]
    elif not last:
        path = ()
    elif last in context.path_ids:
        path = path[: next(n for n, x in enumerate(path, 1) if x.id == last)]
    if path == context.path:
        return context
    context = replace(context, path=path, tree=Tree(path), unended=None)
    return _planned(context, context.plan.held, context.pinned, context.blocks)


def ended(context: MemoryContext, finished: Exchange) -> MemoryContext:
    """Returns the knowledge with a step that has ended at its end; what comes next is not planned yet."""
    if context.path and context.path[-1] is finished:
        return context
    context.tree.add(finished)
    path = (*(x for x in context.path if x.id != finished.id), finished)
    return replace(context, path=path, unended=None)


def go_on(
    context: MemoryContext,
    finished: Exchange,
    messages: Sequence[WireMessage],
    pinned: SentSection | None,
    blocks: Sequence[Block],
    now: float,
) -> MemoryContext:
    """Returns the knowledge for the next step.

    finished: the step before.
    blocks: as that has left them.
    """
    context = replace(ended(context, finished), request=replace(context.request, now=now))
    return _planned(context, messages, pinned, blocks)


def _planned(
    context: MemoryContext,
    messages: Sequence[WireMessage],
    pinned: SentSection | None,
    blocks: Sequence[Block],
) -> MemoryContext:
    """Returns the knowledge with the plan of a step that brings these messages."""
    request, conversation = context.request, context.snapshot.conversation
    last = context.path[-1] if context.path else None
    plan = plan_step(
        context.tree,
        _query(request, context.agent, context.plan.query.idle_s),
        last,
        None if conversation is None else conversation.id,
        evicted=evicted_at(last, request.target.context_window),
        held=messages,
    )
    if request.spec.defined is not None and request.spec.defined.clears:
        first = _turn_begins(context, messages)
        plan = replace(plan, fill=tuple(each for each in plan.fill if each.exchange.depth >= first))
    context = replace(context, plan=plan, pinned=pinned, blocks=tuple(blocks))
    # The tools are the same for every step, whatever came in.
    body: dict[str, Any] = {**request.chat.json, "messages": [{"role": "user"}]}
    return replace(context, offered=offer_tools(context.request, context.agent, pinned, body))


def _turn_begins(context: MemoryContext, messages: Sequence[WireMessage]) -> int:
    """Returns the depth at which the turn under way begins, with the newest message that is no result of a tool."""
    if any(m.get("role") == "user" and not is_nudge(m) for m in messages):
        return context.path[-1].depth + 1 if context.path else 0
    begun = (x.depth for x in reversed(context.path) if any(map(is_user, x.inputs)))
    return next(begun, 0)


def _query(request: MemoryRequest, agent: Agent, idle_s: float) -> Query:
    return Query(
        Listing(Canon(agent.secret), ()),
        named=True,
        mode=MemoryUse.ON,
        now=request.now,
        idle_s=idle_s,
        kind=request.kind,
        model=stored_model_name(request.target),
    )


def open_write(context: MemoryContext, prompt: Prompt, run: Run | None, now: float) -> StepOpen:
    """Returns what is written before the model is asked. run: the one that begins with it."""
    conversation, spec = context.snapshot.conversation, context.request.spec
    last = context.path[-1] if context.path else None
    adopts = conversation is not None and not conversation.last_exchange
    return StepOpen(
        agent=context.agent,
        key=DEFAULT,
        uid=context.conversation_uid,
        conversation=None if conversation is None else conversation.id,
        rev=0 if conversation is None else conversation.rev,
        now=now,
        exchange=open_step(context.plan, prompt.notes, prompt.window.evicted),
        run=run,
        section=prompt.section.sent,
        defaults=spec.own_blocks,
        shared=spec.shared_blocks,
        adopts=adopts,
        continues_parent=[last.id] if adopts and last is not None else (),
        ends=context.unended,
    )
