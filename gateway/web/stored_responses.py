"""The requests below `/v1/responses/{id}` for responses that the gateway itself has answered."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache
from typing import Final
from urllib.parse import parse_qs

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.types import Json
from gateway.core.request.identity import IdentityRules, identify
from gateway.core.request.request_headers import RawHeaders
from gateway.dialects.chat.parse import MAX_MESSAGES
from gateway.dialects.responses.background import ShownResponses
from gateway.dialects.responses.items import Items, paginate
from gateway.dialects.responses.native import read_native
from gateway.dialects.responses.parse import SEALED_THOUGHTS, check_included
from gateway.dialects.responses.render import rebuild_response
from gateway.dialects.responses.response_ids import parse_turn_names
from gateway.dialects.responses.stored_response import read_call_forms
from gateway.errors import BadRequest, UnknownId, UnknownPath
from gateway.run.background_responses import BackgroundResponses
from gateway.run.later_replies import LaterReply
from gateway.run.memory.stored_turns import FoundTurn, turn_begun
from gateway.run.native_chat import NativeChat
from gateway.run.native_request import NativeRequest
from gateway.run.response_conversations import ResponseConversations
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import ResponseOwner, StoredResponses
from gateway.web.body import BodyReader
from gateway.web.client_reply import ClientReply
from gateway.web.middleware import info_of
from gateway.web.response_conversations import CONVERSATIONS_PATH, OwnConversations
from storage.records import Run, RunState

EVENT_STREAM: Final = [("content-type", "text/event-stream; charset=utf-8")]
JSON_TYPE: Final = [("content-type", "application/json")]
_NUMBER: Final = re.compile(r"-?[0-9]{1,10}")
_SHOWS: Final = ShownResponses()


def unknown_response(id: str) -> UnknownId:
    return UnknownId(f"Response with id '{id[:120]}' not found.")


@dataclass(eq=False)
class OwnResponses:
    """Answers requests about them. rules: returns those of a project."""

    stored: StoredResponses
    rules: Callable[[str], IdentityRules]
    conversations: ResponseConversations
    bodies: BodyReader
    background: BackgroundResponses
    native_chat: NativeChat
    send_timeout_s: float

    def __post_init__(self) -> None:
        self._conversations = OwnConversations(self.conversations, self.bodies, self.owner)
        # A request that names no user is not one of the default user: the id is enough.
        self._rules = cache(lambda project: replace(self.rules(project), default_user=None))

    def owner(self, scope: Scope) -> ResponseOwner:
        """Returns who asks. Raises: BadRequest, NotAuthenticated."""
        project, headers = info_of(scope).caller.project, scope["headers"]
        return ResponseOwner(project, self.user(headers, project, {}))

    def user(self, headers: RawHeaders, project: str, body: Json) -> str | None:
        return identify(headers, body, self._rules(project), project, time.time()).user

    async def forget_upstreams(self, scope: Scope, id: str) -> None:
        """Forgets what memory has of a response that its upstream has just deleted."""
        owner, later = self.owner(scope), self.native_chat.later
        with map_store_errors():
            noted = await later.find(owner.project, id)
            if noted is not None and owner.may_read(noted.agent):
                await later.forget(noted)
        await self.stored.forget_upstreams(owner, id)

    async def save_upstreams(self, scope: Scope, id: str, response: bytes) -> None:
        """Writes the turn of a response that its upstream has made in the background, unless it is written."""
        project = info_of(scope).caller.project
        await self.native_chat.save_later(project, id, response, _read_again)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(CONVERSATIONS_PATH):
            await answer_json(await self._conversations(scope, receive, send), scope, receive, send)
            return
        _, _, _, id, *rest = scope["path"].split("/")
        query: str = scope["query_string"].decode("latin-1")
        asked = parse_qs(query)
        owner, name = self.owner(scope), parse_turn_names(id)
        if not name[0]:
            raise unknown_response(id)
        found = await self._find(owner, name, id)
        # In a turn a response was made in the foreground, or its run is found by its id.
        run = await self.background.find(owner, "".join(name)) if _may_be_run(found, name) else None
        if found is None and run is None:
            raise unknown_response(id)
        match scope["method"], rest:
            case "GET", []:
                if asked.get("stream", ["false"])[-1].lower() == "true":
                    await self._stream(found, run, id, asked, scope, receive, send)
                    return
                answer = await self._show(found, run, id, asked)
            case "GET", ["input_items"]:
                answer = await self._list(owner, found, run, query)
            case "DELETE", []:
                if run is not None:
                    await self.background.remove(run)
                if found is not None:
                    await self.stored.delete(found)
                answer = {"id": id, "object": "response", "deleted": True}
            case "POST", ["cancel"]:
                if run is None:
                    raise BadRequest("Cannot cancel a synchronous response.")
                await self.background.cancel(run)
                answer = await self._cancelled(owner, id)
            case _, [] | ["input_items"] | ["cancel"]:
                raise HTTPException(405)
            case _:
                raise UnknownPath(f"Unknown path: {scope['method']} {scope['path']}")
        await answer_json(answer, scope, receive, send)

    async def resource(self, owner: ResponseOwner, id: str) -> tuple[Json, Run | None]:
        """Returns a response of the gateway's own as it is now, and its run, if it has one. Raises: UnknownId."""
        name = parse_turn_names(id)
        found = await self._find(owner, name, id)
        run = await self.background.find(owner, "".join(name)) if _may_be_run(found, name) else None
        return await self._show(found, run, id, {}), run

    async def _find(self, owner: ResponseOwner, name: tuple[str, str], id: str) -> FoundTurn | None:
        """Returns a response that lies in a turn."""
        try:
            found = await self.stored.find(owner, name, id)
        except UnknownId:
            return None
        return None if rebuild_response(found.turn.name, found.turn.reply) is None else found

    async def _show(
        self, response: FoundTurn | None, run: Run | None, id: str, query: Mapping[str, Sequence[str]]
    ) -> Json:
        included = check_included([*query.get("include", ()), *query.get("include[]", ())])
        shown: Json | None = None
        if response is not None:
            sealed = SEALED_THOUGHTS in included
            shown = rebuild_response(response.turn.name, response.turn.reply, shows_sealed_thoughts=sealed)
        elif run is not None:
            shown = await self.background.shown(run)
        if shown is None:
            raise unknown_response(id)
        return shown

    async def _cancelled(self, owner: ResponseOwner, id: str) -> Json:
        """Returns a response after its cancel: as it has ended, or as it will end."""
        shown, run = await self.resource(owner, id)
        if run is not None and run.state is RunState.CANCELLED:
            return {**shown, "status": "cancelled"}
        return shown

    async def _stream(
        self,
        response: FoundTurn | None,
        run: Run | None,
        id: str,
        query: Mapping[str, Sequence[str]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Sends the events of a response after a number, and those that follow."""
        if run is None:
            raise BadRequest(
                "Only a response that was made in the background can be streamed.", param="stream"
            )
        given = query.get("starting_after", ["-1"])[-1]
        if _NUMBER.fullmatch(given) is None:
            raise BadRequest("Invalid 'starting_after': expected a number.", param="starting_after")
        after, count = int(given), 0
        with ClientReply(scope, receive, send, self.send_timeout_s) as reply:
            reply.start(200, EVENT_STREAM)
            with reply.while_here():
                async with aclosing(self.background.events(run, after)) as events:
                    async for event in events:
                        await reply.write(event)
                        count += 1
                if not count:
                    # Its events are not stored any more.
                    shown = await self._show(response, run, id, query)
                    whole = _SHOWS.whole_events(shown) if after < 0 else _SHOWS.events_of(shown, after + 1)
                    await reply.write(whole)
                await reply.end()

    async def _list(
        self, owner: ResponseOwner, response: FoundTurn | None, run: Run | None, query: str
    ) -> Json:
        """Returns a page of the items before a response."""
        items = Items()
        if response is not None:
            await self._add_path(items, response)
        elif run is not None and (request := await self.background.request(run)) is not None:
            # It lies in no turn, or not yet: its request has its input.
            previous = request.previous
            before = (
                None if previous is None else await self._find(owner, parse_turn_names(previous), previous)
            )
            if before is not None:
                await self._add_path(items, before)
                items.add_reply(before.turn.name, before.turn.reply)
            items.add_inputs(run.uid, request.inputs, forms=request.forms)
        return paginate(items.found, query)

    async def _add_path(self, items: Items, response: FoundTurn) -> None:
        """Adds what comes before a response's reply."""
        for turn in await self.stored.path(response):
            items.add_inputs("".join(turn.name), turn.inputs, turn.directions, read_call_forms(turn.reply))
            if turn.exchange.id != response.exchange.id and turn.reply:
                items.add_reply(turn.name, turn.reply)


def _read_again(reply: LaterReply) -> NativeRequest | None:
    """Returns a request whose reply its upstream has made since; None: memory cannot read it."""
    return read_native(reply.body.encode(), reply.path, MAX_MESSAGES)


def _may_be_run(response: FoundTurn | None, name: tuple[str, str]) -> bool:
    """Returns whether a response may be one in the background: the id names its run, and not its turn."""
    return response is None or turn_begun(name[1]) != response.exchange.begun


async def answer_json(value: Json | Sequence[Json], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(orjson.dumps(value), media_type="application/json")(scope, receive, send)
