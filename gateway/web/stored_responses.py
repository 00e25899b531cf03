"""The requests below `/v1/responses/{id}` for responses that the gateway itself has answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qs

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.types import Json
from gateway.core.conversation.canonical import is_system
from gateway.core.conversation.directions import directions_in
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.request.request_headers import refuse_misspelt
from gateway.core.turn_name import TurnName
from gateway.dialects.responses.items import ItemGroup, ItemList, paginate
from gateway.dialects.responses.native import read_native
from gateway.dialects.responses.render import rebuild_response
from gateway.dialects.responses.request_fields import asks_for_sealed_thoughts
from gateway.dialects.responses.response_ids import is_gateway_id, parse_turn_name
from gateway.dialects.responses.stored_response import read_stored_response
from gateway.errors import BadRequest, UnknownId, UnknownPath
from gateway.run.background_responses import BackgroundResponses
from gateway.run.deferred_replies import DeferredReply
from gateway.run.memory.named_turns import FoundTurn, NamedTurn, turn_begun
from gateway.run.native_chat import NativeChat
from gateway.run.native_request import NativeRequest
from gateway.run.response_conversations import ResponseConversations
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import ResponseOwner, StoredResponses
from gateway.run.usage.pending_usage import PendingUsage
from gateway.web.body import BodyReader
from gateway.web.incoming import Incoming
from gateway.web.middleware import info_of
from gateway.web.response_conversations import (
    CONVERSATIONS_PATH,
    GatewayConversations,
    group_turns,
    render_turn,
    system_items,
)
from storage.records import Run

EVENT_STREAM: Final = [("content-type", "text/event-stream; charset=utf-8")]
JSON_TYPE: Final = [("content-type", "application/json")]
_NUMBER: Final = re.compile(r"-?[0-9]{1,10}")


def unknown_response(id: str) -> UnknownId:
    return UnknownId(f"Response with id '{id[:120]}' not found.")


class _LocatedResponse(NamedTuple):
    """A response by its id: its turn, its run in the background, or both; with neither there is no such response."""

    id: str
    turn: FoundTurn | None
    run: Run | None


@dataclass(eq=False)
class GatewayResponses:
    """Answers requests about responses that the gateway itself has answered."""

    stored: StoredResponses
    # Returns the rules of a project.
    rules: Callable[[str], IdentityRules]
    conversations: ResponseConversations
    bodies: BodyReader
    background: BackgroundResponses
    native_chat: NativeChat
    pending_usage: PendingUsage
    # The limit of the messages in a request.
    max_messages: int
    send_timeout_s: float

    def __post_init__(self) -> None:
        self._conversations = GatewayConversations(self.conversations, self.bodies, self.owner)
        # A request that names no user may name a response of any user: whoever knows its id may read it.
        self._rules = lru_cache(maxsize=256)(lambda project: replace(self.rules(project), default_user=None))
        # As those of chats they hold the last system prompt of the project.
        self.stored.store.forgetting.when_gone(self._rules.cache_clear)

    def owner(self, scope: Scope, body: Json | None = None) -> ResponseOwner:
        """Returns who asks. body: may name the user. Raises: BadRequest, NotAuthenticated."""
        project = info_of(scope).caller.project
        refuse_misspelt(scope["headers"])  # a user in one would be taken for none
        identity = identify(scope["headers"], body or {}, self._rules(project), project, time.time())
        return ResponseOwner(project, identity.user)

    async def forget_deleted(self, scope: Scope, id: str) -> None:
        """Forgets the turn of a response that its upstream has just deleted."""
        owner = self.owner(scope)
        deferred = self.native_chat.deferred
        with map_store_errors():
            row = await deferred.find(owner.project, id)
            if row is not None and owner.may_read(row.agent):
                await deferred.forget(row)
        await self.stored.forget_upstreams(owner, id)

    async def save_ended(self, scope: Scope, id: str, response: bytes) -> None:
        """Counts a response that its upstream has made in the background, and writes its turn, if it is not written."""
        project = info_of(scope).caller.project
        self.pending_usage.count(project, id, response)
        await self.native_chat.save_deferred(project, id, response, self._read_request)

    def _read_request(self, reply: DeferredReply) -> NativeRequest | None:
        """Returns the request of a deferred reply; None: memory cannot read it."""
        return read_native(reply.body.encode(), reply.path, self.max_messages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(CONVERSATIONS_PATH):
            await answer_json(await self._conversations(scope, receive, send), scope, receive, send)
            return
        _, _, _, id, *rest = scope["path"].split("/")  # /v1/responses/{id}, and what follows
        query_string: str = scope["query_string"].decode("latin-1")
        query = parse_qs(query_string)
        owner = self.owner(scope)
        located = await self._find(owner, id)
        if located.turn is None and located.run is None:
            raise unknown_response(id)
        if (scope["method"], rest) == ("GET", []) and query.get("stream", ["false"])[-1].lower() == "true":
            await self._stream_events(Incoming(scope, receive, send), located, query)
            return
        match scope["method"], rest:
            case "GET", []:
                answer = await self._render(located, query)
            case "GET", ["input_items"]:
                answer = await self._list_input_items(owner, located, query_string)
            case "DELETE", []:
                await self._delete(owner, located)
                answer = {"id": id, "object": "response", "deleted": True}
            case "POST", ["cancel"]:
                if located.run is None:
                    raise BadRequest("Cannot cancel a synchronous response.")
                await self.background.cancel(located.run)
                answer, _ = await self.show(owner, id)
            case _, [] | ["input_items"] | ["cancel"]:
                raise HTTPException(405)
            case _:
                raise UnknownPath(f"Unknown path: {scope['method']} {scope['path']}")
        await answer_json(answer, scope, receive, send)

    async def _delete(self, owner: ResponseOwner, located: _LocatedResponse) -> None:
        if located.run is not None:
            await self.background.remove(located.run, () if located.turn is None else located.turn.rows)
        elif located.turn is not None:
            await self.stored.delete(located.turn)

    async def show(self, owner: ResponseOwner, id: str) -> tuple[Json, Run | None]:
        """Returns a response of the gateway's own as it is now, and its run, if it has one. Raises: UnknownId."""
        located = await self._find(owner, id)
        return await self._render(located, {}), located.run

    async def _find(self, owner: ResponseOwner, id: str) -> _LocatedResponse:
        name = parse_turn_name(id)
        if name is None:
            raise unknown_response(id)
        turn = await self._find_turn(owner, name)
        # The id of a response that was made in the foreground has the time at which its turn began.
        may_have_run = turn is None or turn_begun(name.turn) != turn.exchange.begun
        run = await self.background.find(owner, name.tag) if may_have_run else None
        return _LocatedResponse(id, turn, run)

    async def _find_turn(self, owner: ResponseOwner, name: TurnName) -> FoundTurn | None:
        """Returns the turn of a response; None: there is none, or its reply is not one of a response."""
        found = await self.stored.find(owner, name)
        if found is None or rebuild_response(found.turn.name.tag, found.turn.reply) is None:
            return None
        return found

    async def _render(self, located: _LocatedResponse, query: Mapping[str, Sequence[str]]) -> Json:
        sealed = asks_for_sealed_thoughts(query)
        shown: Json | None = None
        if located.turn is not None:
            turn = located.turn.turn
            shown = rebuild_response(turn.name.tag, turn.reply, shows_sealed_thoughts=sealed)
        elif located.run is not None:
            shown = await self.background.runs.shown(located.run)
        if shown is None:
            raise unknown_response(located.id)
        return shown

    async def _stream_events(
        self, incoming: Incoming, located: _LocatedResponse, query: Mapping[str, Sequence[str]]
    ) -> None:
        """Sends the events of a response after the number that the query names, up to its end."""
        if located.run is None:
            raise BadRequest(
                "Only a response that was made in the background can be streamed.", param="stream"
            )
        starting_after = query.get("starting_after", ["-1"])[-1]
        if _NUMBER.fullmatch(starting_after) is None:
            raise BadRequest("Invalid 'starting_after': expected a number.", param="starting_after")
        shown = await self._render(located, query)
        with incoming.begin_reply(self.send_timeout_s) as reply:
            reply.start(200, EVENT_STREAM)
            with reply.while_here():
                async with aclosing(
                    self.background.events(located.run, int(starting_after), shown)
                ) as events:
                    async for event in events:
                        await reply.write(event)
                await reply.end()

    async def _list_input_items(self, owner: ResponseOwner, located: _LocatedResponse, query: str) -> Json:
        """Returns a page of the items before a response."""
        groups: list[ItemGroup] = []
        run = located.run
        sealed = asks_for_sealed_thoughts(parse_qs(query))
        if located.turn is not None:
            groups = await self._group_path(located.turn, owner, sealed)
        elif run is not None and (request := await self.background.runs.request(run)) is not None:
            # Without a turn, its input is in its request.
            previous = request.previous
            name = None if previous is None else parse_turn_name(previous)
            before = None if name is None else await self._find_turn(owner, name)
            items = ItemList()
            if before is not None:
                groups = await self._group_path(before, owner, sealed, is_answered=True)
                items.record_calls(before.turn.reply)
            own = [message for message in request.messages if not is_system(message)]
            items.add_inputs(run.uid, [*enumerate(own)], directions_in(request.messages), request.forms)
            groups += await self._group_system(request.conversation, owner)
            groups.append(ItemGroup(lambda: items.items, run.uid))
        return await asyncio.to_thread(paginate, groups, query)

    async def _group_path(
        self, response: FoundTurn, owner: ResponseOwner, sealed: bool, *, is_answered: bool = False
    ) -> list[ItemGroup]:
        """Returns what comes before a response's reply, first what each response of its conversation has.

        sealed: thoughts have the form in which they are sent back.
        is_answered: also the reply.
        """
        groups = await self._group_system(await self.stored.conversation_id(response), owner)
        stored = read_stored_response(response.turn.reply)
        # Directions in the input of a conversation's response hold for that response alone.
        has_all_directions = stored is None or stored.full_echo.get("conversation") is None

        def render(turn: NamedTurn, before: NamedTurn | None) -> list[Json]:
            is_own = turn is response.turn
            directions = turn.directions if is_own or has_all_directions else ()
            return render_turn(
                turn,
                before,
                directions=directions,
                is_answered=is_answered or not is_own,
                shows_sealed_thoughts=sealed,
            )

        # Its own turn has the name in the response's id, which of one in the background is that of its run.
        before = (await self.stored.path(response))[:-1]
        return [*groups, *group_turns([*before, response.turn], render)]

    async def _group_system(self, conversation_id: str | None, owner: ResponseOwner) -> list[ItemGroup]:
        """Returns what each response of a conversation has; none: the gateway has made no such conversation."""
        if is_gateway_id(conversation_id):
            with suppress(UnknownId):
                conversation = await self.conversations.find(owner, conversation_id)
                return [ItemGroup(lambda: system_items(conversation.items))]
        return []


async def answer_json(value: Json | Sequence[Json], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(orjson.dumps(value), media_type="application/json")(scope, receive, send)
