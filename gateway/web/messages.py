"""POST /v1/messages and what belongs to it: Anthropic's Messages API, answered by any upstream.

The path below it is also the agents API's, whose requests bear no `anthropic-version`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapters.types import BYTES_PER_TOKEN
from gateway.dialects.messages.errors import MessagesErrors
from gateway.dialects.messages.read import MessagesRequest, read, refuse_thread
from gateway.dialects.messages.render import MakesMessages
from gateway.errors import ErrorForm
from gateway.run.receipt import Receipt
from gateway.web.completions import ChatRoute
from gateway.web.event_stream import ClientReply
from gateway.web.middleware import trace_of
from gateway.web.model_field import parse_named
from gateway.web.raw_headers import header_of

MESSAGES_PATH: Final = "/v1/messages"
COUNT_PATH: Final = "/v1/messages/count_tokens"
_MODELS_PATH: Final = "/v1/models"
_VERSION: Final = b"anthropic-version"
_ERRORS: Final = MessagesErrors()


def speaks_messages(scope: Scope) -> bool:
    """Returns whether a request to a path of several APIs comes from a client of Anthropic's."""
    return header_of(scope["headers"], _VERSION) is not None


def messages_errors(scope: Scope) -> ErrorForm | None:
    """Returns the form of errors for Anthropic's clients; None: this request is of another API."""
    path = scope["path"]
    if path in (MESSAGES_PATH, COUNT_PATH):
        return _ERRORS
    is_shared = path.startswith((f"{MESSAGES_PATH}/", _MODELS_PATH))
    return _ERRORS if is_shared and speaks_messages(scope) else None


def is_unknown(scope: Scope) -> bool:
    """Returns whether a path below that of messages is asked for in Anthropic's dialect, and not served in it."""
    path = scope["path"]
    return path.startswith(f"{MESSAGES_PATH}/") and path != COUNT_PATH and speaks_messages(scope)


def messages_routes(chats: ChatRoute) -> list[Route]:
    return [
        Route(MESSAGES_PATH, MessagesPath(chats), methods=["POST"]),
        Route(COUNT_PATH, CountPath(chats), methods=["POST"]),
    ]


@dataclass(eq=False)
class MessagesPath:
    """The route of messages. chats: answers chat completions."""

    chats: ChatRoute
    has_limit: ClassVar[bool] = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        trace.route = "messages"
        # Anthropic's API takes the key of this header where both come.
        caller = trace.caller
        trace.caller = caller._replace(credential=caller.api_key or caller.credential)
        async with self.chats.bodies.read(scope, receive) as body:
            trace.bytes_in = len(body)
            named = parse_named(body)
            trace.model, trace.stream = named.model, named.stream
            refuse_thread(named.raw)
            request = read(
                bytes(named.raw),
                scope["headers"],
                self.chats.settings.max_messages,
                is_read_only=False,
                has_limit=self.has_limit,
            )
            await self._answer(request, scope, receive, send)

    async def _answer(self, request: MessagesRequest, scope: Scope, receive: Receive, send: Send) -> None:
        view = MakesMessages(request.chat.model, len(request.raw) // BYTES_PER_TOKEN)
        receipt = Receipt(trace_of(scope).begun)
        await self.chats.answer(request.chat, scope["headers"], view, receipt, scope, receive, send)


class CountPath(MessagesPath):
    """The route that counts the tokens of a request. It leaves nothing in memory."""

    has_limit = False

    async def _answer(self, request: MessagesRequest, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        caller, receipt = trace.caller, Receipt(trace.begun)
        connection = scope["state"].get("connection")
        with ClientReply(receive, send, self.chats.send_timeout_s, connection) as reply:
            tokens = await self.chats.chat.count(
                request.chat,
                scope["headers"],
                caller.project,
                caller.credential,
                reply,
                receipt,
                caller.memory,
            )
            body = orjson.dumps({"input_tokens": tokens})
            await reply.whole(200, [("content-type", "application/json"), *receipt.close()], body)
