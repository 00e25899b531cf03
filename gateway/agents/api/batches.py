"""Batches: sends to many agents, answered at the providers' own time.

`POST /v1/messages/batches` is Anthropic's path as well: requests with its header or a `custom_id` are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import asdict, replace

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api._paging import read_page, read_sent_ref
from gateway.agents.api._query import PageQuery
from gateway.agents.api._route import AgentsRoute, ApiRequest, read_uid
from gateway.agents.api.dependencies import AgentsApi, read_sent_uid
from gateway.agents.batches.batch_requests import RequestedItem
from gateway.agents.batches.item_texts import ItemRequest
from gateway.agents.core.rule_guide import DEFAULT_MAX_STEPS
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.message import Showing, read_showing
from gateway.agents.wire.run_json import render_usage
from gateway.agents.wire.send import MaxSteps, MessageType, Send
from gateway.agents.wire.send_content import read_send
from gateway.agents.wire.sent_values import find_sent, get_sent_or
from gateway.agents.wire.shown_values import NO_AUTHORS, NO_CALLBACK, measure_ns, render_time
from gateway.agents.wire.struct_fields import Body, Maybe, NoEffect, UrlQuery, refused
from gateway.core import ids
from gateway.core.request.memory_mode import refuse_unstored
from gateway.errors import BadRequest, NotAllowed, UnknownId, UnknownPath
from gateway.validation import Fault
from gateway.web.request_info import get_request_info
from storage.batch_records import Batch, BatchCounts, BatchItem
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import TokenCounts

_ANTHROPIC_BATCH = (
    "This is a batch of Anthropic's Messages API, which is not served here; a batch of agents names an agent_id "
    "in each request."
)
_NO_CLIENT_TOOLS = (
    "A batch goes on when its client is gone, so calls of the client's tools would have no answer."
)
_NO_SKILLS = "The client's own tools read its skills, and a batch has none of these."

# The items that one read returns, before the messages of each are read. Not measured: pages are read until the client's
# page is full.
_ITEMS_PER_PAGE = 20
# The requests of a new batch that are read before other tasks run. Not measured: live turns wait for as many.
_REQUESTS_PER_PASS = 20


class BatchRequest(Body):
    """One send of a batch. The messages are those of a send; answers to calls that wait are none."""

    agent_id: str | UnsetType = UNSET
    messages: Maybe[list[dict[str, Any]]] = UNSET
    input: Maybe[str | list[dict[str, Any]]] = UNSET
    max_steps: MaxSteps = DEFAULT_MAX_STEPS
    conversation_id: Maybe[str] = UNSET
    override_model: Maybe[str] = UNSET
    override_system: Maybe[str] = UNSET
    client_tools: Annotated[list[dict[str, Any]] | None, refused(_NO_CLIENT_TOOLS)] | UnsetType = UNSET
    client_skills: Annotated[list[dict[str, Any]] | None, refused(_NO_SKILLS)] | UnsetType = UNSET
    custom_id: Annotated[str | None, refused(_ANTHROPIC_BATCH)] | UnsetType = UNSET
    params: Annotated[dict[str, Any] | None, refused(_ANTHROPIC_BATCH)] | UnsetType = UNSET
    include_return_message_types: NoEffect[list[MessageType]] = UNSET
    enable_thinking: NoEffect[str | bool] = UNSET
    use_assistant_message: NoEffect[bool] = UNSET
    assistant_message_tool_name: NoEffect[str] = UNSET
    assistant_message_tool_kwarg: NoEffect[str] = UNSET


class CreateBatch(Body):
    """Sends to many agents, one to each. callback_url: is called when all have ended."""

    requests: list[BatchRequest]
    callback_url: Maybe[str] = UNSET


class BatchesQuery(PageQuery):
    """A page of batches."""


class BatchItemsQuery(UrlQuery):
    """A page of a batch's items, in the order in which they were given. after: a run's id."""

    after: Maybe[str] = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class BatchMessagesQuery(UrlQuery):
    """A page of the messages of a batch's items; those of one item stand together. after: a message's id."""

    after: Maybe[str] = UNSET
    # No item is listed in part, so the last item may exceed the limit.
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    agent_id: Maybe[str] = UNSET
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"


def _render_batch(batch: Batch, counts: BatchCounts) -> dict[str, Any]:
    """Returns the JSON of a batch."""
    return {
        "id": ids.make_id("job", batch.uid),
        "job_type": "batch",
        "status": batch.state.value,
        "counts": {"total": counts.total, **asdict(counts)},
        "created_at": render_time(batch.created),
        "updated_at": render_time(batch.ended or batch.created),
        "completed_at": render_time(batch.ended),
        "total_duration_ns": measure_ns(batch.created, batch.ended),
        "ttft_ns": None,
        "stop_reason": None,
        "background": True,
        "agent_id": None,
        "metadata": {},
        **NO_AUTHORS,
        **NO_CALLBACK,
        "callback_url": batch.callback,
    }


def _render_item(item: BatchItem, error_message: str) -> dict[str, Any]:
    """Returns the JSON of an item. error_message: the error with which the item failed; "": it has not failed."""
    run = item.run
    counts, steps = (TokenCounts(), 0) if run is None else (run.counts, run.steps)
    return {
        "agent_id": None if run is None else ids.make_id("agent", item.agent_uid),
        "run_id": None if run is None else ids.make_id("run", run.uid),
        "status": item.state,
        "stop_reason": None if run is None else run.stop,
        "error": item.explain_failure(error_message),
        "usage": render_usage(counts, steps, []),
    }


class BatchRoutes:
    """The routes of batches."""

    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def list_routes(self) -> list[AgentsRoute]:
        batches, batch = "/v1/messages/batches", "/v1/messages/batches/{batch_id}"
        return [
            AgentsRoute("POST", batches, self.create),
            AgentsRoute("GET", batches, self.list_batches),
            AgentsRoute("GET", batch, self.retrieve),
            AgentsRoute("GET", f"{batch}/items", self.list_items),
            AgentsRoute("GET", f"{batch}/messages", self.list_messages),
            AgentsRoute("PATCH", f"{batch}/cancel", self.cancel),
        ]

    async def create(self, request: ApiRequest, body: CreateBatch) -> dict[str, Any]:
        """Send messages to many agents."""
        _refuse_anthropic(request)
        refuse_unstored(request.http.scope["headers"])
        caller = get_request_info(request.http.scope).caller
        if caller.models is not None:
            raise NotAllowed(
                "This key is limited to certain models, and a batch asks for those of its agents.",
                code="model_not_allowed",
            )
        callback = find_sent(body.callback_url)
        self._api.agent_runs.defined_tools.check_callback(callback)
        items: list[RequestedItem] = []
        for n, item in enumerate(body.requests):
            if n % _REQUESTS_PER_PASS == 0:
                await asyncio.sleep(0)  # Live turns come in between.
            items.append(_make_item(item, n))
        batch = await self._api.batches.accept(
            request.project, items, callback, has_credential=caller.credential is not None
        )
        return await self._render(await self._api.store.batches.get(request.project, batch.uid))

    async def list_batches(self, request: ApiRequest, query: BatchesQuery) -> list[dict[str, Any]]:
        """List batches."""
        _refuse_anthropic(request)
        page = await read_page(query, partial(self._get_batch_row, request.project))
        batches = await self._api.store.batches.list_page(request.project, page)
        return [await self._render(batch) for batch in batches]

    async def retrieve(self, request: ApiRequest) -> dict[str, Any]:
        """Return a batch, with counts of its items."""
        return await self._render(await self._get_batch(request))

    async def cancel(self, request: ApiRequest) -> dict[str, Any]:
        """Cancel what has not ended of a batch."""
        batch = await self._get_batch(request)
        if not batch.is_over:
            batch = await self._api.store.batches.cancel(batch, self._api.now())
        return await self._render(batch)

    async def list_items(self, request: ApiRequest, query: BatchItemsQuery) -> list[dict[str, Any]]:
        """List the items of a batch."""
        batch = await self._get_batch(request)
        batch_items, after = self._api.store.batch_items, 0
        if (uid := read_sent_uid("run", query.after)) is not None:
            item = await batch_items.find(batch.id, uid)
            if item is None:
                raise UnknownId(f"There is no run {query.after!r} in this batch.")
            after = item.id
        items = await batch_items.list_page(batch.id, after=after, limit=query.limit)
        errors = await batch_items.load_error_messages(batch.id, after, items[-1].id) if items else {}
        return [_render_item(item, errors.get(item.id, "")) for item in items]

    async def list_messages(self, request: ApiRequest, query: BatchMessagesQuery) -> dict[str, Any]:
        """List what the agents of a batch were told and said.

        Of one agent they are listed whole: `after` and `limit` are ignored.
        """
        batch = await self._get_batch(request)
        showing = read_showing(query)
        if (uid := read_sent_uid("agent", query.agent_id)) is not None:
            item = await self._api.store.batch_items.find_of_agent(batch.id, uid)
            return {"messages": [] if item is None else await self._load_messages(item, showing)}
        after = await self._get_item_row(batch, query.after)
        messages: list[dict[str, Any]] = []
        async for item in self._load_items_after(batch, after):
            messages += await self._load_messages(item, showing)
            if len(messages) >= query.limit:
                break
        return {"messages": messages}

    async def _load_items_after(self, batch: Batch, after: int) -> AsyncIterator[BatchItem]:
        """Yields the items of a batch in their order. after: the row of the item before the first; 0: all items."""
        list_page = self._api.store.batch_items.list_page
        while page := await list_page(batch.id, after=after, limit=_ITEMS_PER_PAGE):
            for item in page:
                yield item
            after = page[-1].id

    async def _get_item_row(self, batch: Batch, message_id: Maybe[str]) -> int:
        """Returns the row of the item of a message; 0 if no message was sent. message_id: the id of the message."""
        ref = read_sent_ref("message", message_id)
        if ref is None:
            return 0
        # The id of a message has the uid of its agent.
        item = await self._api.store.batch_items.find_of_agent(batch.id, ref.uid)
        if item is None:
            raise UnknownId(f"There is no message {message_id!r} in this batch.")
        return item.id

    async def _load_messages(self, item: BatchItem, showing: Showing) -> Sequence[dict[str, Any]]:
        """Returns the JSON of the messages of an item; empty if the item has not ended."""
        store, run = self._api.store, item.run
        if run is None or not run.is_over:
            return []
        number = await store.batch_items.find_exchange(run)
        agent = await store.agents.find_by_id(run.agent_row)
        if number is None or agent is None:
            return []
        exchange = await store.turns.find_exchange(agent, number)
        if exchange is None:
            return []
        messages = await MessageRenderer(store, agent, showing).render_run(run, [exchange], has_input=True)
        return [{**message, "agent_id": ids.make_id("agent", agent.uid)} for message in messages]

    async def _render(self, batch: Batch) -> dict[str, Any]:
        return _render_batch(batch, await self._api.store.batch_items.count(batch.id))

    async def _get_batch(self, request: ApiRequest) -> Batch:
        return await self._api.store.batches.get(request.project, request.read_uid("job", "batch_id"))

    async def _get_batch_row(self, project: str, batch_id: str) -> int:
        return (await self._api.store.batches.get(project, read_uid("job", batch_id))).id


def _refuse_anthropic(request: ApiRequest) -> None:
    """Refuses a client of Anthropic's Messages API, which has another answer at this path. Raises: UnknownPath."""
    if "anthropic-version" in request.http.headers:
        method = request.http.method
        raise UnknownPath(f"Unknown path: {method} /v1/messages/batches of Anthropic's Messages API")


def _make_item(request: BatchRequest, n: int) -> RequestedItem:
    """Returns the item of the n-th request. Raises: Unprocessable, UnknownId, BadRequest."""
    path = ("body", "requests", n)
    if isinstance(request.agent_id, UnsetType):
        raise Unprocessable(Fault((*path, "agent_id"), "Field required", "missing"))
    try:
        content = read_send(Send(messages=request.messages, input=request.input, max_steps=request.max_steps))
    except Unprocessable as error:
        raise Unprocessable(replace(error.fault, path=(*path, *error.fault.path[1:]))) from error
    if content.answers:
        raise BadRequest("A batch takes new messages; answer a call with a send.", param="requests")
    conversation_name = get_sent_or(request.conversation_id, DEFAULT_CONVERSATION)
    if conversation_name != DEFAULT_CONVERSATION:
        conversation_name = read_uid("conv", conversation_name)
    item_request = ItemRequest(
        content.messages,
        request.max_steps,
        model=find_sent(request.override_model),
        system=find_sent(request.override_system),
    )
    return RequestedItem(read_uid("agent", request.agent_id), item_request, conversation_name)
