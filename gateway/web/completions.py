"""POST /v1/chat/completions, as a plain ASGI callable before the router, since time counts most for this path.

Clients that were made for Letta's server use two more paths: `_AGENT_PATH` names the agent, and `_DOUBLED_PATH` ends
twice in `/chat/completions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from starlette.types import Receive, Scope, Send

from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.request_headers import RawHeaders
from gateway.core.turn.client_view import ViewFactory
from gateway.dialects.chat.parse import parse
from gateway.dialects.chat.render import ChatView
from gateway.run.chat import Chat
from gateway.run.native_chat import NativeChat
from gateway.run.native_request import NativeRequest
from gateway.run.receipt import Receipt
from gateway.run.request_log import RequestLog
from gateway.run.response_conversations import ContinuedConversation
from gateway.run.upstream.route import Route
from gateway.settings import ServerSettings
from gateway.web.body import BodyReader, parse_off_loop
from gateway.web.client_reply import ClientReply
from gateway.web.incoming import Incoming

CHAT_PATH = "/v1/chat/completions"
# LiveKit's `with_letta` takes a base URL that ends in this path, and OpenAI's SDK appends it once more.
_DOUBLED_PATH = f"{CHAT_PATH}/chat/completions"
_AGENT_PATH = re.compile(r"/v1/voice-beta/([^/]+)/chat/completions")
LETTA_CHAT_PATHS = (_DOUBLED_PATH, "/v1/voice-beta/{agent_id}/chat/completions")


def is_chat_of_agent(path: str) -> bool:
    """Returns whether a POST to this path is a chat completion of the agent that it names."""
    return _AGENT_PATH.fullmatch(path) is not None


@dataclass(eq=False)
class ChatRoute:
    """The route of chat completions. Routes of other dialects answer through it, with their own views."""

    # The table `server` of the settings.
    settings: ServerSettings
    # Answers chat completions.
    chat: Chat
    # Answers requests in their own dialect.
    native_chat: NativeChat
    # Reads bodies within their limits.
    bodies: BodyReader
    # The seconds after which a client that accepts no byte of the reply is disconnected.
    send_timeout_s: float
    # The log of requests for the page.
    requests: RequestLog

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = Incoming(scope, receive, send)
        info = incoming.info
        info.route = "chat"
        async with self.bodies.read(scope, receive) as body:
            agent = None
            if scope["path"] != CHAT_PATH and (match := _AGENT_PATH.fullmatch(scope["path"])):
                agent = match[1]
            request = await parse_off_loop(body, partial(parse, body, self.settings.max_messages, agent))
            if agent is None:
                request.query = incoming.query
            info.note_model(request.model, is_streamed=request.stream)
            receipt = info.begin_receipt()
            await self.answer(incoming, request, incoming.headers, ChatView, receipt)

    async def answer(
        self,
        incoming: Incoming,
        request: ChatRequest,
        headers: RawHeaders,
        make_view: ViewFactory,
        receipt: Receipt,
        continued_conversation: ContinuedConversation | None = None,
    ) -> None:
        """Answers a request that was read.

        headers: the request's headers, perhaps with others added or left out.
        make_view: a function that makes the view of the dialect in which the request came.
        continued_conversation: the value for `continued` of `Chat.answer`.
        """
        info = incoming.info
        with self._begin_reply(incoming, request, receipt) as reply:
            request_context = info.caller.make_context(headers)
            info.memory = await self.chat.answer(
                request, request_context, reply, receipt, make_view, continued=continued_conversation
            )

    async def answer_native(
        self, incoming: Incoming, native: NativeRequest, route: Route, headers: RawHeaders
    ) -> None:
        """Answers a request that its upstream gets in its own dialect.

        route: the route to the upstream that answers.
        headers: the request's headers, perhaps with others added or left out.
        """
        info = incoming.info
        receipt = info.begin_receipt()
        with self._begin_reply(incoming, native.chat, receipt) as reply:
            request_context = info.caller.make_context(headers)
            info.memory = await self.native_chat.answer(native, route, request_context, reply, receipt)

    def _begin_reply(self, incoming: Incoming, request: ChatRequest, receipt: Receipt) -> ClientReply:
        """Notes a request as being answered, and returns its reply."""
        project = incoming.info.caller.project
        self.requests.begin(receipt, project, request.model, is_streamed=request.stream)
        return incoming.begin_reply(self.send_timeout_s)
