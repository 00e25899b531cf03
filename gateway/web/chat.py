"""POST /v1/chat/completions, as a plain ASGI callable in front of the router, since here time counts most."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.dialects.chat.parse import parse
from gateway.dialects.chat.render import ChatView
from gateway.run.chat import Chat
from gateway.run.receipt import Receipt
from gateway.settings import ServerSettings
from gateway.web.body import BodyReader
from gateway.web.middleware import trace_of
from gateway.web.sse import ClientReply

CHAT_PATH = "/v1/chat/completions"


@dataclass(eq=False)
class ChatRoute:
    """The route names the dialect: how a request is read, and the view in which it is answered."""

    settings: ServerSettings
    chat: Chat
    bodies: BodyReader
    send_timeout_s: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        trace.route = "chat"
        async with self.bodies.read(scope, receive) as body:
            trace.bytes_in = len(body)
            request = parse(bytes(body), self.settings.max_messages)
            trace.model, trace.stream = request.model, request.stream
            receipt = Receipt(trace.begun)
            caller = trace.caller
            connection = scope["state"].get("connection")
            async with ClientReply(receive, send, self.send_timeout_s, connection) as reply:
                try:
                    served = await self.chat.answer(
                        request,
                        scope["headers"],
                        caller.project,
                        caller.credential,
                        reply,
                        receipt,
                        ChatView,
                        caller.memory,
                    )
                    trace.memory = served.memory
                finally:
                    trace.added_ms = receipt.added_ms
