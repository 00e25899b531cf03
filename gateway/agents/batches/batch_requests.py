"""The acceptance of batches: a batch is refused as a whole, or is on disk with all its items."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from adapters.batch.batch_provider import BatchProvider
from gateway.agents.batches.item_texts import ItemRequest
from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.core import ids
from gateway.errors import BadRequest, UnknownModel
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.route import make_agent_route
from gateway.settings import Settings
from storage.batch_records import Batch, BatchState, ItemDraft
from storage.errors import NotFound, StoreError
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import Run
from storage.sql.store import Store

# The most items of a batch. Not measured: it bounds the time in which a batch is accepted.
MAX_ITEMS = 10_000
# Kinds of self-hosted upstreams, which accept any key.
_KEYLESS_KINDS = ("scripted", "vllm", "ollama", "lmstudio", "llama.cpp")
# The most items that one transaction stores.
_PAGE = 50


class RequestedItem(Struct, frozen=True):
    """An item of a batch as it is requested: one send to one agent."""

    # The uid of the agent.
    agent_uid: str
    # The messages and the options of the send.
    request: ItemRequest
    # `default`, or the uid of the conversation.
    conversation_name: str = DEFAULT_CONVERSATION


class BatchRequests(Struct, frozen=True):
    """Accepts batches."""

    # The store to which batches are added.
    store: Store
    # The settings, which route models to upstreams.
    settings: Settings
    # Finds the agents, with the models that items ask for.
    resolver: AgentResolver
    # The upstreams, of which only the keys are looked at.
    failover: Failover
    # The batch APIs, by the names of upstreams.
    providers: Mapping[str, BatchProvider]
    # Returns the time in seconds since the epoch.
    now: Callable[[], float]

    async def accept(
        self, project: str, items: Sequence[RequestedItem], callback: str | None, *, has_credential: bool
    ) -> Batch:
        """Accepts a batch. Returns it once it is on disk.

        callback: the URL to call when the batch has ended; None: no URL is called.
        has_credential: True if the request carries a key for an upstream.

        Raises: BadRequest; NotFound if there is no such agent or conversation; StoreError.
        """
        _check_counts(items)
        needs_check = has_credential or any(provider.missing_package for provider in self.providers.values())
        agents = await self.store.batches.find_agents(project, [item.agent_uid for item in items])
        for item in items:
            if item.agent_uid not in agents:
                raise NotFound(f"there is no agent {ids.make_id('agent', item.agent_uid)!r}")
            if needs_check:
                await self._check_upstream(project, item, has_credential=has_credential)
        now = self.now()
        drafts: list[ItemDraft] = []
        for n, item in enumerate(items):
            if n % _PAGE == 0:
                await asyncio.sleep(0)  # Live turns come in between.
            drafts.append(await self._make_draft(item, agents[item.agent_uid], now))
        return await self._store_batch(
            Batch(0, ids.new_uid(), project, BatchState.CREATED, now, callback=callback), drafts
        )

    async def _store_batch(self, draft: Batch, items: Sequence[ItemDraft]) -> Batch:
        """Stores a batch with its items page by page, and starts it. If a page cannot be stored, the batch fails."""
        batches = self.store.batches
        batch = await batches.begin(draft)
        try:
            for n in range(0, len(items), _PAGE):
                await self.store.batch_items.add(batch.id, items[n : n + _PAGE])
            await batches.start(batch)
        except StoreError:
            with suppress(StoreError):
                await batches.fail(batch, draft.created)
            raise
        return batch

    async def _check_upstream(self, project: str, item: RequestedItem, *, has_credential: bool) -> None:
        """Checks that an item's upstream offers batches and has a key of its own.

        Raises: BadRequest.
        """
        request = item.request
        resolved = await self.resolver.resolve_for_send(
            project, item.agent_uid, item.conversation_name, model=request.model, system=request.system
        )
        try:
            route = make_agent_route(self.settings, resolved.spec)
        except UnknownModel:
            return
        provider = self.providers.get(route.upstream)
        if provider is not None and (missing := provider.missing_package) is not None:
            raise BadRequest(
                f"Batches of the upstream {route.upstream!r} cannot be made: {missing}.", param="requests"
            )
        if not has_credential:
            return
        kind = self.settings.get_upstream(route.upstream).kind
        if kind not in _KEYLESS_KINDS and not self.failover.endpoints[route.upstream][0].has_key:
            raise BadRequest(
                f"The upstream {route.upstream!r} has no key of its own, and a batch goes on when its caller's key "
                "is gone. Set `api_key` of the upstream.",
                param="requests",
            )

    async def _make_draft(self, item: RequestedItem, agent_row: int, now: float) -> ItemDraft:
        """Returns the draft of an item. Raises: NotFound if there is no such conversation."""
        conversation_row = 0
        if item.conversation_name != DEFAULT_CONVERSATION:
            conversation = await self.store.messages.get_conversation(agent_row, item.conversation_name)
            conversation_row = conversation.id
        run = Run.make_draft(
            ids.new_uid(), now, agent_row=agent_row, conversation_row=conversation_row, background=True
        )
        return ItemDraft(run, msgspec.json.encode(item.request), ids.new_uid())


def _check_counts(items: Sequence[RequestedItem]) -> None:
    """Raises: BadRequest if a batch has no items, too many, or several for one agent."""
    if not 0 < len(items) <= MAX_ITEMS:
        raise BadRequest(f"A batch has between 1 and {MAX_ITEMS} requests.", param="requests")
    uid, count = Counter(item.agent_uid for item in items).most_common(1)[0]
    if count > 1:
        name = ids.make_id("agent", uid)
        raise BadRequest(
            f"A batch has at most one request for an agent, saw {count} for {name}.", param="requests"
        )
