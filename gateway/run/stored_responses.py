"""Stored responses of the gateway itself, found by their ids in the exchanges of memory.

A project's key is always needed. A request that names a user finds that user's responses alone; for one that names no
user the id is enough, since a client's GET cannot name any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from msgspec import Struct

from gateway.core.conversation.private import read_private
from gateway.core.turn_name import TurnName
from gateway.run.memory.named_turns import NamedTurn, TurnLocation, find_turn, load_turns_to
from gateway.run.store_errors import map_store_errors
from gateway.run.turn_services import TurnServices
from storage.forget_commands import ForgetTarget
from storage.listing import Page
from storage.records import Agent, ExchangeState
from storage.sql.store import Store

# The beginning of the names of conversations that are made for stored responses without a user.
UNNAMED_PREFIX: Final = "mnemogate-response-"
# The most pages of a project's newest exchanges that are searched for the id of an upstream, which no index has.
_MAX_PAGES = 10
# The exchanges of such a page. Not measured: a response beyond the last page is not found.
_PAGE_EXCHANGES = 200


class ResponseOwner(Struct, frozen=True):
    """The caller who asks for a stored response."""

    # The caller's project.
    project: str
    # The name of the user; None: the request names none.
    user: str | None
    # True: the key is this user's, and reads no memory that several users share.
    is_bound: bool = False

    def may_read(self, agent: Agent) -> bool:
        """Returns whether the caller may read a response that an agent's memory has."""
        scope = agent.scope
        is_readable = scope.is_person or not self.is_bound
        return scope.project == self.project and is_readable and scope.is_open_to(self.user)


@dataclass(eq=False)
class StoredResponses:
    """Reads and deletes stored responses."""

    # The store of the responses.
    store: Store
    # The services that the process's turns share.
    turn_services: TurnServices

    async def find(self, owner: ResponseOwner, name: TurnName) -> TurnLocation | None:
        """Returns the location of a turn, or None if its owner may read no such turn. Raises: MemoryUnavailable."""
        with map_store_errors():
            location = await find_turn(self.store, owner.project, name)
            if location is None or location.exchange.state is ExchangeState.OPEN:
                conversation = await self.store.messages.find_conversation(
                    owner.project, name.conversation_uid
                )
                if conversation is None:
                    await self.turn_services.wait_project_written(owner.project)
                else:
                    await self.turn_services.wait_written(conversation.agent.scope)
                location = await find_turn(self.store, owner.project, name)
        return location if location is not None and owner.may_read(location.agent) else None

    async def list_path(self, location: TurnLocation) -> Sequence[NamedTurn]:
        """Returns the turns of the path that ends with a turn, oldest first. Raises: MemoryUnavailable."""
        with map_store_errors():
            return await load_turns_to(self.store, location.agent, location.exchange)

    async def find_conversation_id(self, location: TurnLocation) -> str | None:
        """Returns the client's own id of a turn's conversation, if it has one. Raises: MemoryUnavailable."""
        with map_store_errors():
            conversation = await self.store.messages.find_conversation(
                location.agent.scope.project, location.turn.name.conversation_uid
            )
        return None if conversation is None else conversation.key

    async def forget_by_upstream_id(self, owner: ResponseOwner, upstream_id: str) -> bool:
        """Forgets the exchange of a response that an upstream had stored. Returns whether there was one.

        Only the project's newest exchanges are searched. Raises: MemoryUnavailable.
        """
        id_bytes = upstream_id.encode()
        before = None
        with map_store_errors():
            for _ in range(_MAX_PAGES):
                page: Page[int] = Page(after=before, limit=_PAGE_EXCHANGES)
                messages = await self.store.messages.list_page_of_project(owner.project, page)
                for agent, message in messages:
                    exchange = message.exchange
                    if (
                        exchange.shown_reply is None
                        or id_bytes not in exchange.shown_reply
                        or not owner.may_read(agent)
                    ):
                        continue
                    if upstream_id in (read_private(orjson.loads(exchange.shown_reply)).get("ids") or ()):
                        await self._forget(agent, [exchange.id])
                        return True
                if len(messages) < _PAGE_EXCHANGES:
                    return False
                before = messages[-1][1].exchange.id
        return False

    async def delete(self, location: TurnLocation) -> None:
        """Forgets the exchanges of a turn. Raises: MemoryUnavailable."""
        with map_store_errors():
            await self._forget(location.agent, location.rows)

    async def _forget(self, agent: Agent, rows: Sequence[int]) -> None:
        """Forgets exchanges without their alternatives, which are responses with ids of their own.

        Raises: StoreError.
        """
        target = ForgetTarget(exchange_rows=list(rows), keeps_replaced=True)
        await self.store.forgetting.forget(agent.id, target)
