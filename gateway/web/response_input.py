"""The input items of a response: what came before its reply."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

from adapters.types import Json
from gateway.core.conversation.canonical import is_system
from gateway.core.conversation.directions import directions_in
from gateway.dialects.responses.items import ItemGroup, ItemList, paginate
from gateway.dialects.responses.request_fields import asks_for_sealed_thoughts
from gateway.dialects.responses.response_ids import is_gateway_id, parse_turn_name
from gateway.dialects.responses.stored_response import read_stored_response
from gateway.errors import UnknownId
from gateway.run.memory.named_turns import NamedTurn, TurnLocation
from gateway.run.response_conversations import ResponseConversations
from gateway.run.stored_responses import ResponseOwner
from gateway.web.response_conversations import group_turns, render_turn, system_items
from gateway.web.response_finder import LocatedResponse, ResponseFinder
from storage.records import Run


@dataclass(eq=False)
class ResponseInput:
    """Lists the input items of responses that the gateway itself has answered."""

    finder: ResponseFinder
    conversations: ResponseConversations

    async def read_page(self, owner: ResponseOwner, response: LocatedResponse, query: str) -> Json:
        """Returns the page of input items that a query string asks for. Raises: BadRequest."""
        sealed = asks_for_sealed_thoughts(parse_qs(query))
        groups: list[ItemGroup] = []
        if response.location is not None:
            groups = await self._group_path(response.location, owner, sealed)
        elif response.run is not None:
            groups = await self._group_request(response.run, owner, sealed)
        return await asyncio.to_thread(paginate, groups, query)

    async def _group_request(self, run: Run, owner: ResponseOwner, sealed: bool) -> list[ItemGroup]:
        """Returns the input of a response in the background that has no turn yet, as its request has it."""
        request = await self.finder.background.runs.request(run)
        if request is None:
            return []
        groups: list[ItemGroup] = []
        items = ItemList()
        name = None if request.previous is None else parse_turn_name(request.previous)
        previous = None if name is None else await self.finder.find_turn(owner, name)
        if previous is not None:
            groups += await self._group_path(previous, owner, sealed, is_answered=True)
            items.record_calls(previous.turn.reply)
        own = [message for message in request.messages if not is_system(message)]
        items.add_inputs(run.uid, [*enumerate(own)], directions_in(request.messages), request.forms)
        groups += await self._group_system(request.conversation, owner)
        return [*groups, ItemGroup(lambda: items.items, run.uid)]

    async def _group_path(
        self, location: TurnLocation, owner: ResponseOwner, sealed: bool, *, is_answered: bool = False
    ) -> list[ItemGroup]:
        """Returns what comes before the reply of a turn, first what each response of its conversation has.

        sealed: thoughts have the form in which they are sent back.
        is_answered: the reply is added.
        """
        stored = self.finder.stored
        groups = await self._group_system(await stored.conversation_id(location), owner)
        response = read_stored_response(location.turn.reply)
        # Directions in the input of a conversation's response hold for that response alone.
        has_all_directions = response is None or response.full_echo.get("conversation") is None

        def render(turn: NamedTurn, before: NamedTurn | None) -> list[Json]:
            is_own = turn is location.turn
            directions = turn.directions if is_own or has_all_directions else ()
            return render_turn(
                turn,
                before,
                directions=directions,
                is_answered=is_answered or not is_own,
                shows_sealed_thoughts=sealed,
            )

        # The path ends with the same turn, but only in `location` does it have the name by which the client asks.
        before = (await stored.path(location))[:-1]
        return [*groups, *group_turns([*before, location.turn], render)]

    async def _group_system(self, conversation_id: str | None, owner: ResponseOwner) -> list[ItemGroup]:
        """Returns the items that each response of a conversation has; none where the gateway has not made it."""
        if is_gateway_id(conversation_id):
            with suppress(UnknownId):
                conversation = await self.conversations.find(owner, conversation_id)
                return [ItemGroup(lambda: system_items(conversation.items))]
        return []
