"""The requests below `/v1/responses/{id}` for responses that the gateway itself has answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from adapters.types import EVENT_STREAM_HEADER, Header, Json
from gateway.dialects.responses.render import rebuild_response
from gateway.dialects.responses.request_fields import asks_for_sealed_thoughts
from gateway.errors import BadRequest, MethodNotAllowed, UnknownPath
from gateway.run.response_conversations import ResponseConversations
from gateway.run.responses.background_responses import BackgroundResponses
from gateway.run.sink import Sink
from gateway.run.stored_responses import ResponseOwner, StoredResponses
from gateway.web.body import BodyReader
from gateway.web.incoming import Incoming
from gateway.web.json_response import JsonResponse
from gateway.web.responses.conversation_requests import CONVERSATIONS_PATH, ConversationRequests
from gateway.web.responses.response_finder import LocatedResponse, ResponseFinder, make_unknown_response_error
from gateway.web.responses.response_input import ResponseInput
from gateway.web.responses.response_owners import ResponseOwners
from storage.run_records import Run

# The methods of each path, by its segments after the response's id.
_METHODS: Final = {(): ("GET", "DELETE"), ("input_items",): ("GET",), ("cancel",): ("POST",)}
_NUMBER: Final = re.compile(r"-?[0-9]{1,10}")

_Query = Mapping[str, Sequence[str]]


class ShownResponse(NamedTuple):
    """A response in its present state."""

    # The response, as its client sees it.
    json: Json
    # The run in the background that makes the response, or has made it; None: the response has no run.
    run: Run | None


class GatewayResponses:
    """Answers requests about responses and conversations that the gateway itself has stored."""

    def __init__(
        self,
        stored: StoredResponses,
        background: BackgroundResponses,
        conversations: ResponseConversations,
        owners: ResponseOwners,
        bodies: BodyReader,
        send_timeout_s: float,
    ) -> None:
        """Makes the answers.

        send_timeout_s: the seconds after which a client that accepts no byte of a stream is disconnected.
        """
        self.owners = owners
        self.background = background
        self._stored = stored
        self._finder = ResponseFinder(stored, background)
        self._input = ResponseInput(self._finder, conversations)
        self._conversations = ConversationRequests(conversations, bodies, owners.read_owner)
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(CONVERSATIONS_PATH):
            answer = await self._conversations(scope, receive, send)
            await JsonResponse(answer)(scope, receive, send)
            return
        response_id, *segments = scope["path"].removeprefix("/v1/responses/").split("/")
        query_string: str = scope["query_string"].decode("latin-1")
        query = parse_qs(query_string)
        owner = self.owners.read_owner(scope)
        response = await self._finder.get(owner, response_id)
        match scope["method"], segments:
            case "GET", [] if query.get("stream", ["false"])[-1].lower() == "true":
                await self._stream_events(Incoming(scope, receive, send), response, query)
                return
            case "GET", []:
                answer = await self._render(response, query)
            case "GET", ["input_items"]:
                answer = await self._input.read_page(owner, response, query_string)
            case "DELETE", []:
                await self._delete(response)
                answer = {"id": response_id, "object": "response", "deleted": True}
            case "POST", ["cancel"]:
                if response.run is None:
                    raise BadRequest("Cannot cancel a synchronous response.", param="response_id")
                await self.background.cancel(response.run)
                answer = (await self.show(owner, response_id)).json
            case method, _:
                if (methods := _METHODS.get(tuple(segments))) is not None:
                    raise MethodNotAllowed(method, scope["path"], methods)
                raise UnknownPath(f"Unknown path: {method} {scope['path']}")
        await JsonResponse(answer)(scope, receive, send)

    async def show(self, owner: ResponseOwner, response_id: str) -> ShownResponse:
        """Returns a response that the gateway stores, in its present state. Raises: UnknownId."""
        response = await self._finder.get(owner, response_id)
        return ShownResponse(await self._render(response, {}), response.run)

    async def send_events(
        self, reply: Sink, run: Run, response: Json, after: int = -1, headers: Sequence[Header] = ()
    ) -> None:
        """Sends the events of a response after a number, up to its end.

        response: the response in its present state.
        headers: the headers of the reply.
        """
        reply.start(200, [EVENT_STREAM_HEADER, *headers])
        async with aclosing(self.background.follow_events(run, after, response)) as events:
            async for event in events:
                await reply.write(event)
        await reply.end()

    async def _delete(self, response: LocatedResponse) -> None:
        location = response.location
        if response.run is not None:
            rows = location.rows if location is not None else ()
            await self.background.remove(response.run, rows)
        elif location is not None:
            await self._stored.delete(location)

    async def _render(self, response: LocatedResponse, query: _Query) -> Json:
        """Returns a response as its client sees it. Raises: UnknownId: it was forgotten meanwhile."""
        shows_sealed_thoughts = asks_for_sealed_thoughts(query)
        rendered: Json | None = None
        if response.location is not None:
            turn = response.location.turn
            rendered = rebuild_response(
                turn.name.tag, turn.reply, shows_sealed_thoughts=shows_sealed_thoughts
            )
        elif response.run is not None:
            rendered = await self.background.find_response(response.run)
        if rendered is None:
            raise make_unknown_response_error(response.id)
        return rendered

    async def _stream_events(self, incoming: Incoming, response: LocatedResponse, query: _Query) -> None:
        """Sends the events of a response after the number that the query names, up to its end."""
        if response.run is None:
            raise BadRequest(
                "Only a response that was made in the background can be streamed.", param="stream"
            )
        starting_after = query.get("starting_after", ["-1"])[-1]
        if _NUMBER.fullmatch(starting_after) is None:
            raise BadRequest("Invalid 'starting_after': expected a number.", param="starting_after")
        current_response = await self._render(response, query)
        with incoming.begin_reply(self._send_timeout_s) as reply, reply.cancel_on_leave():
            await self.send_events(reply, response.run, current_response, int(starting_after))
