"""Batches: sends to many agents, answered at the providers' own time.

`POST /v1/messages/batches` is Anthropic's path as well: a request with its header, or with a `custom_id`, is not ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.core import ids
from gateway.dialects.letta.body import Maybe, given
from gateway.dialects.letta.error import Fault, Unprocessable
from gateway.dialects.letta.message import Showing, showing_of
from gateway.dialects.letta.resources.batch import (
    BatchesQuery,
    BatchItemsQuery,
    BatchMessagesQuery,
    BatchRequest,
    CreateBatch,
    batch_json,
    item_json,
)
from gateway.dialects.letta.send import Send, sent
from gateway.errors import BadRequest, UnknownId, UnknownPath
from gateway.run.background.batches.accept import AskedItem
from gateway.web.letta.api import AgentsApi, given_or_none, page_of, uid_or_none
from gateway.web.letta.exchanges import Exchanges
from gateway.web.letta.paging import place_in
from gateway.web.letta.routes import AgentsRoute, Asked, uid_in
from gateway.web.middleware import trace_of
from storage.batches import Batch, BatchItem

_PAGE = 20  # items whose messages are read at once


class BatchRoutes:
    def __init__(self, api: AgentsApi) -> None:
        self._api = api

    def rows(self) -> list[AgentsRoute]:
        all_, one = "/v1/messages/batches", "/v1/messages/batches/{batch_id}"
        return [
            AgentsRoute("POST", all_, self.create, "Send messages to many agents.", body=CreateBatch),
            AgentsRoute("GET", all_, self.list, "List batches.", query=BatchesQuery),
            AgentsRoute("GET", one, self.retrieve, "Return a batch, with counts of its items."),
            AgentsRoute(
                "GET", f"{one}/items", self.items, "List the items of a batch.", query=BatchItemsQuery
            ),
            AgentsRoute(
                "GET",
                f"{one}/messages",
                self.messages,
                "List what the agents of a batch were told and said.",
                query=BatchMessagesQuery,
            ),
            AgentsRoute("PATCH", f"{one}/cancel", self.cancel, "Cancel what has not ended of a batch."),
        ]

    async def create(self, asked: Asked) -> Any:
        _check_ours(asked)
        body: CreateBatch = asked.body
        callback = given_or_none(body.callback_url)
        if callback is not None and (why := self._api.runs.foreign.unreachable(callback)) is not None:
            raise BadRequest(f"The URL cannot be called: {why}.", param="callback_url")
        items = list[AskedItem]()
        for n, each in enumerate(body.requests):
            if n % _PAGE == 0:
                await asyncio.sleep(0)  # Live turns come in between.
            items.append(_item(each, n))
        credential = trace_of(asked.request.scope).caller.credential
        batch = await self._api.batches.accept(
            asked.project, items, callback, has_credential=credential is not None
        )
        return batch_json(*await self._api.batches.get(asked.project, batch.uid))

    async def list(self, asked: Asked) -> Any:
        _check_ours(asked)
        query: BatchesQuery = asked.query
        cursors = [await self._row(asked.project, name) for name in (query.after, query.before)]
        page = page_of(query, *cursors)
        return [batch_json(*each) for each in await self._api.batches.list(asked.project, page)]

    async def retrieve(self, asked: Asked) -> Any:
        return batch_json(*await self._api.batches.get(asked.project, asked.uid("job", "batch_id")))

    async def cancel(self, asked: Asked) -> Any:
        return batch_json(*await self._api.batches.cancel(asked.project, asked.uid("job", "batch_id")))

    async def items(self, asked: Asked) -> Any:
        batch, _ = await self._api.batches.get(asked.project, asked.uid("job", "batch_id"))
        query: BatchItemsQuery = asked.query
        after = 0
        if (uid := uid_or_none("run", query.after)) is not None:
            item = await self._api.store.batches.item(batch.id, uid)
            if item is None:
                raise UnknownId(f"There is no run {query.after!r} in this batch.")
            after = item.id
        return [item_json(*each) for each in await self._api.batches.items(batch, after, query.limit)]

    async def messages(self, asked: Asked) -> Any:
        batch, _ = await self._api.batches.get(asked.project, asked.uid("job", "batch_id"))
        query: BatchMessagesQuery = asked.query
        showing = showing_of(query)
        if (uid := uid_or_none("agent", query.agent_id)) is not None:
            item = await self._api.store.batches.of_agent(batch.id, uid)
            return {"messages": [] if item is None else await self._said(item, showing)}
        after, found = await self._after(batch, query), list[Any]()
        while len(found) < query.limit:
            page = await self._api.store.batches.items(batch.id, after=after, limit=_PAGE)
            for item in page:
                after = item.id
                found += await self._said(item, showing)
                if len(found) >= query.limit:
                    break
            if len(page) < _PAGE:
                break
        return {"messages": found}

    async def _after(self, batch: Batch, query: BatchMessagesQuery) -> int:
        place = place_in("message", query.after)
        item = None if place is None else await self._api.store.batches.of_agent(batch.id, place.uid)
        if place is not None and item is None:
            raise UnknownId(f"There is no message {query.after!r} in this batch.")
        return 0 if item is None else item.id

    async def _said(self, item: BatchItem, showing: Showing) -> Sequence[dict[str, Any]]:
        """Returns the messages of an item that has ended."""
        store, run = self._api.store, item.run
        if run is None or not run.is_over:
            return []
        number = await store.batches.exchange_of(run)
        agent = await store.agents.load(run.agent)
        if number is None or agent is None:
            return []
        e = await store.turns.exchange(agent, number)
        if e is None:
            return []
        shown = await Exchanges(store, agent, showing).of_run(run, [e], with_input=True)
        return [{**each, "agent_id": ids.named("agent", agent.uid)} for each in shown]

    async def _row(self, project: str, id: Maybe[str]) -> int | None:
        if not isinstance(id, str):
            return None
        return (await self._api.store.batches.find(project, uid_in("job", id))).id


def _check_ours(asked: Asked) -> None:
    """Refuses a client of Anthropic's Messages API, who cannot read our answer. Raises: UnknownPath."""
    if "anthropic-version" in asked.request.headers:
        method = asked.request.method
        raise UnknownPath(f"Unknown path: {method} /v1/messages/batches of Anthropic's Messages API")


def _item(request: BatchRequest, n: int) -> AskedItem:
    """Returns an item as it is asked for. Raises: Unprocessable, UnknownId, BadRequest."""
    at = ("body", "requests", n)
    if not isinstance(request.agent_id, str):
        raise Unprocessable([Fault((*at, "agent_id"), "Field required", "missing")])
    try:
        said = sent(Send(messages=request.messages, input=request.input, max_steps=request.max_steps))
    except Unprocessable as error:
        raise Unprocessable([replace(each, loc=(*at, *each.loc[1:])) for each in error.faults]) from error
    if said.answers:
        raise BadRequest("A batch takes new messages; answer a call with a send.", param="requests")
    fields = given(request)
    conversation = fields.get("conversation_id")
    name = "default" if conversation in (None, "default") else uid_in("conv", conversation)
    return AskedItem(
        uid_in("agent", request.agent_id),
        said.messages,
        request.max_steps,
        name,
        fields.get("override_model"),
        fields.get("override_system"),
    )
