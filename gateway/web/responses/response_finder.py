"""Finds responses that the gateway itself has answered, by their ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gateway.core.conversation.turn_hex import parse_turn_begin
from gateway.core.turn_name import TurnName
from gateway.dialects.responses.render import rebuild_response
from gateway.dialects.responses.response_ids import parse_turn_name
from gateway.errors import UnknownId
from gateway.run.memory.named_turns import TurnLocation
from gateway.run.responses.background_responses import BackgroundResponses
from gateway.run.stored_responses import ResponseOwner, StoredResponses
from storage.run_records import Run


class LocatedResponse(NamedTuple):
    """A response that the gateway has answered. It has a turn, a run in the background, or both."""

    # The id of the response.
    id: str
    # The location of the turn; None: the turn is not written yet, or it was forgotten.
    location: TurnLocation | None
    # The run; None: the response was not made in the background, or its run was removed.
    run: Run | None


def make_unknown_response_error(response_id: str) -> UnknownId:
    """Returns the error for an id that names no response that the caller may read."""
    return UnknownId.for_id("Response", response_id)


@dataclass(eq=False)
class ResponseFinder:
    """Finds responses for callers that may read them."""

    # Finds the turns of responses.
    stored: StoredResponses
    # Finds the runs of responses.
    background: BackgroundResponses

    async def get(self, owner: ResponseOwner, response_id: str) -> LocatedResponse:
        """Returns a response.

        Raises: UnknownId: there is no response with this id that the caller may read; MemoryUnavailable.
        """
        name = parse_turn_name(response_id)
        if name is None:
            raise make_unknown_response_error(response_id)
        location = await self.find_turn(owner, name)
        # The id of a response made in the foreground has the time at which its turn began. The id of a response made in
        # the background has another time.
        may_have_run = location is None or parse_turn_begin(name.turn) != location.exchange.begun
        run = await self.background.find(owner, name.tag) if may_have_run else None
        if location is None and run is None:
            raise make_unknown_response_error(response_id)
        return LocatedResponse(response_id, location, run)

    async def find_turn(self, owner: ResponseOwner, name: TurnName) -> TurnLocation | None:
        """Returns the turn of a response, or None if there is no such turn or its reply was not shown as a response.

        Raises: MemoryUnavailable.
        """
        location = await self.stored.find(owner, name)
        if location is None or rebuild_response(location.turn.name.tag, location.turn.reply) is None:
            return None
        return location
