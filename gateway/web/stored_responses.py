"""The requests below `/v1/responses/{id}` for responses that the gateway itself has answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from gateway.dialects.responses.items import Items, page_of
from gateway.dialects.responses.parse import SEALED_THOUGHTS
from gateway.dialects.responses.render import stored_response
from gateway.dialects.responses.response_ids import turn_of
from gateway.errors import BadRequest, UnknownId, UnknownPath
from gateway.run.response_conversations import ResponseConversations
from gateway.run.stored_responses import FoundResponse, ResponseOwner, StoredResponses
from gateway.web.body import BodyReader
from gateway.web.middleware import trace_of
from gateway.web.response_conversations import CONVERSATIONS_PATH, OwnConversations

ITEMS: Final = "input_items"


def unknown_response(id: str) -> UnknownId:
    return UnknownId(f"Response with id '{id[:120]}' not found.")


@dataclass(eq=False)
class OwnResponses:
    """Answers requests about them. rules: returns those of a project."""

    stored: StoredResponses
    rules: Callable[[str], IdentityRules]
    conversations: ResponseConversations
    bodies: BodyReader

    def __post_init__(self) -> None:
        self._conversations = OwnConversations(self.conversations, self.bodies, self.owner)
        # A request that names no user is not one of the default user: the id is enough.
        self._rules = cache(lambda project: replace(self.rules(project), default_user=None))

    def owner(self, scope: Scope) -> ResponseOwner:
        """Returns who asks. Raises: BadRequest, NotAuthenticated."""
        project, headers = trace_of(scope).caller.project, scope["headers"]
        return ResponseOwner(project, self.user(headers, project, {}))

    def user(self, headers: RawHeaders, project: str, body: Json) -> str | None:
        return identify(headers, body, self._rules(project), project, time.time()).user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(CONVERSATIONS_PATH):
            await answer_json(await self._conversations(scope, receive, send), scope, receive, send)
            return
        _, _, _, id, *rest = scope["path"].split("/")
        query: str = scope["query_string"].decode("latin-1")
        match scope["method"], rest:
            case "GET", []:
                found = await self._find(scope, id)
                answer = self._show(found, id, query)
            case "GET", ["input_items"]:
                answer = await self._list(await self._find(scope, id), query)
            case "DELETE", []:
                await self.stored.delete(await self._find(scope, id))
                answer = {"id": id, "object": "response", "deleted": True}
            case "POST", ["cancel"]:
                await self._find(scope, id)
                raise BadRequest("Cannot cancel a synchronous response.")
            case _, [] | ["input_items"] | ["cancel"]:
                raise HTTPException(405)
            case _:
                raise UnknownPath(f"Unknown path: {scope['method']} {scope['path']}")
        await answer_json(answer, scope, receive, send)

    async def _find(self, scope: Scope, id: str) -> FoundResponse:
        """Returns a response that is there. Raises: UnknownId."""
        found = await self.stored.find(self.owner(scope), turn_of(id), id)
        if stored_response(found.turn.name, found.reply) is None:
            raise unknown_response(id)
        return found

    def _show(self, found: FoundResponse, id: str, query: str) -> Json:
        asked = parse_qs(query)
        if asked.get("stream", ["false"])[-1].lower() == "true":
            raise BadRequest(
                "Only a response that was made in the background can be streamed.", param="stream"
            )
        included = [*asked.get("include", ()), *asked.get("include[]", ())]
        shown = stored_response(found.turn.name, found.reply, shows_sealed=SEALED_THOUGHTS in included)
        assert shown is not None
        return shown

    async def _list(self, found: FoundResponse, query: str) -> Json:
        items, path = Items(), await self.stored.path(found)
        for turn in path:
            items.add_inputs("".join(turn.name), turn.inputs)
            if turn.exchange.id != found.exchange.id and turn.reply:
                items.add_reply(turn.name, turn.reply)
        return page_of(items.found, query)


async def answer_json(value: Json | Sequence[Json], scope: Scope, receive: Receive, send: Send) -> None:
    await Response(orjson.dumps(value), media_type="application/json")(scope, receive, send)
