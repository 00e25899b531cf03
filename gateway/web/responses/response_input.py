"""The input items of a response: the items before its reply.

Items come from turns that are stored, from the request of a response in the background that has no turn yet, and from
the system messages of its conversation. `gateway.web.responses.turn_items` renders them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

from adapters.types import Json
from gateway.core.conversation.directions import list_directions
from gateway.core.conversation.wire_message import is_system
from gateway.dialects.responses.background import StoredResponseRequest
from gateway.dialects.responses.items import ItemGroup, ItemList, list_page
from gateway.dialects.responses.request_fields import asks_for_sealed_thoughts
from gateway.dialects.responses.response_ids import is_gateway_id, parse_turn_name
from gateway.dialects.responses.stored_response import read_stored_response
from gateway.errors import UnknownId
from gateway.run.memory.named_turns import NamedTurn, TurnLocation
from gateway.run.response_conversations import ResponseConversations
from gateway.run.stored_responses import ResponseOwner
from gateway.web.responses.response_finder import LocatedResponse, ResponseFinder
from gateway.web.responses.turn_items import choose_system_items, group_turns, render_turn
from storage.run_records import Run


@dataclass(eq=False)
class ResponseInput:
    """Lists the input items of responses that the gateway itself has answered."""

    # Finds the responses and their turns.
    finder: ResponseFinder
    # Reads the conversations of responses, for their system messages.
    conversations: ResponseConversations

    async def read_page(self, owner: ResponseOwner, response: LocatedResponse, query: str) -> Json:
        """Returns the page of input items that a query string asks for. Raises: BadRequest."""
        shows_sealed_thoughts = asks_for_sealed_thoughts(parse_qs(query))
        groups: list[ItemGroup] = []
        if response.location is not None:
            groups = await self._group_path(
                response.location, owner, has_last_reply=False, shows_sealed_thoughts=shows_sealed_thoughts
            )
        elif response.run is not None:
            groups = await self._group_request(
                response.run, owner, shows_sealed_thoughts=shows_sealed_thoughts
            )
        return await asyncio.to_thread(list_page, groups, query)

    async def _group_request(
        self, run: Run, owner: ResponseOwner, *, shows_sealed_thoughts: bool
    ) -> list[ItemGroup]:
        """Returns the input of a response in the background that has no turn yet, read from its request."""
        stored = await self.finder.background.find_request(run)
        if stored is None:
            return []
        request = StoredResponseRequest.decode(stored).read()
        messages = request.sent_messages
        groups: list[ItemGroup] = []
        input_items = ItemList()
        previous_name = parse_turn_name(request.echo["previous_response_id"] or "")
        previous = None
        if previous_name is not None:
            previous = await self.finder.find_turn(owner, previous_name)
        if previous is not None:
            groups += await self._group_path(
                previous, owner, has_last_reply=True, shows_sealed_thoughts=shows_sealed_thoughts
            )
            input_items.record_calls(previous.turn.reply)
        inputs = [message for message in messages if not is_system(message)]
        input_items.add_inputs(run.uid, [*enumerate(inputs)], list_directions(messages), request.forms)
        groups += await self._group_system(request.conversation_id, owner)
        return [*groups, ItemGroup(lambda: input_items.items, run.uid)]

    async def _group_path(
        self,
        location: TurnLocation,
        owner: ResponseOwner,
        *,
        has_last_reply: bool,
        shows_sealed_thoughts: bool,
    ) -> list[ItemGroup]:
        """Returns the system messages of a turn's conversation, then the turns up to this one, oldest first.

        has_last_reply: True if the reply of this turn is among the items; the replies of earlier turns always are.
        shows_sealed_thoughts: the value of `ResponseTerms.shows_sealed_thoughts`.
        """
        stored = self.finder.stored
        groups = await self._group_system(await stored.find_conversation_id(location), owner)
        response = read_stored_response(location.turn.reply)
        # The directions of a turn are the system and developer messages that its request sent among its input. In a
        # conversation they hold for that request's response alone; a response that names the one before it inherits the
        # directions of all turns.
        inherits_directions = response is None or response.full_echo.get("conversation") is None

        def render(turn: NamedTurn, previous_turn: NamedTurn | None) -> list[Json]:
            is_last = turn is location.turn
            return render_turn(
                turn,
                previous_turn,
                directions=turn.directions if is_last or inherits_directions else (),
                includes_reply=has_last_reply or not is_last,
                shows_sealed_thoughts=shows_sealed_thoughts,
            )

        # The path ends with this turn, too, but only the turn of `location` has the name by which the client asks.
        earlier_turns = (await stored.list_path(location))[:-1]
        return [*groups, *group_turns([*earlier_turns, location.turn], render)]

    async def _group_system(self, conversation_id: str | None, owner: ResponseOwner) -> list[ItemGroup]:
        """Returns the system messages of a conversation; none if the gateway does not store the conversation."""
        if is_gateway_id(conversation_id):
            with suppress(UnknownId):
                conversation = await self.conversations.get(owner, conversation_id)
                return [ItemGroup(lambda: choose_system_items(conversation.items))]
        return []
