"""POST /v1/responses: passed on with memory where the model's upstream has such an endpoint, else a chat completion.

Agents answer it too. Of a request that becomes a chat completion the gateway keeps the history of the conversation that
it names; else the upstream does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.types import Receive, Scope, Send

from gateway.core.request.headers import RawHeaders
from gateway.dialects.responses.native import NativeResponse, read_native
from gateway.dialects.responses.parse import parse
from gateway.dialects.responses.render import MakesResponses
from gateway.errors import BadRequest
from gateway.run.receipt import Receipt
from gateway.web.chat import ChatRoute
from gateway.web.forwarding import ForwardedHead, ForwardedPath
from gateway.web.middleware import trace_of
from gateway.web.model_field import NamedRequest

RESPONSES_PATH: Final = "/v1/responses"
_AGENT: Final = b"x-mnemogate-agent"
_HISTORY: Final = b"x-mnemogate-history"


@dataclass(eq=False)
class ResponsesPath(ForwardedPath):
    """The route of that path. chats: answers chat completions."""

    chats: ChatRoute

    async def answer(
        self, head: ForwardedHead, asked: NamedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not self._is_by_chat(head, asked, scope):
            if (native := self._native(head, asked, scope)) is None:
                await super().answer(head, asked, scope, receive, send)
                return
            trace_of(scope).memory = None
            route = self.forwarding.find(head.path, asked.model, head.named)
            headers = _headers(scope["headers"], native.conversation)
            await self.chats.answer_native(native, route, headers, scope, receive, send)
            return
        trace = trace_of(scope)
        trace.memory = None
        request = parse(bytes(asked.raw), self.chats.settings.max_messages)
        request.chat.query = scope["query_string"].decode("latin-1")
        receipt = Receipt(trace.begun)
        headers = _headers(scope["headers"], request.conversation)
        view = MakesResponses(request.echo, partial(_turn, receipt))
        await self.chats.answer(request.chat, headers, view, receipt, scope, receive, send)

    def _is_by_chat(self, head: ForwardedHead, asked: NamedRequest, scope: Scope) -> bool:
        if self.forwarding.is_by_chat(head.path, asked.model, head.named):
            return True
        headers, caller = scope["headers"], trace_of(scope).caller
        is_named = asked.model is not None and any(name == _AGENT for name, _ in headers)
        return is_named and self.chats.chat.is_for_agent(
            asked.model or "", headers, caller.project, caller.memory
        )

    def _native(self, head: ForwardedHead, asked: NamedRequest, scope: Scope) -> NativeResponse | None:
        """Returns a request with which memory goes upstream; None: it has no part in it."""
        if head.is_encoded:
            return None
        native = read_native(bytes(asked.raw), head.path, self.chats.settings.max_messages)
        if native is None:
            return None
        trace = trace_of(scope)
        headers = _headers(scope["headers"], native.conversation)
        project, memory = trace.caller.project, trace.caller.memory
        trace.memory = self.chats.chat.stands_for(native.chat, headers, project, memory)
        return native if trace.memory == "on" else None

    def _reads(self, head: ForwardedHead) -> bool:
        """Returns True for JSON under any type, as chat completions have it, and for what is refused as compressed.

        A compressed body can only be passed on where no model's requests are answered here.
        """
        return not head.is_encoded or self.forwarding.answers_by_chat(head.path)


def _turn(receipt: Receipt) -> tuple[str, str] | None:
    """Returns the names of conversation and turn under which a reply is kept; None: it is not."""
    conversation, turn = receipt.said.get("x-mnemogate-conversation"), receipt.turn
    is_kept = receipt.said.get("x-mnemogate-memory") == "on"
    return (conversation, turn) if is_kept and conversation is not None and turn is not None else None


def _headers(headers: RawHeaders, conversation: str | None) -> RawHeaders:
    """Returns a request's headers with what its body says of a conversation."""
    if conversation is None:
        return headers
    named = (b"x-mnemogate-conversation", conversation.encode())
    if any(name == named[0] and value.strip() not in (b"", named[1]) for name, value in headers):
        raise BadRequest(
            "`conversation` and `x-mnemogate-conversation` name two different conversations.",
            param="conversation",
        )
    rest = [each for each in headers if each[0] != named[0] and each != (_HISTORY, b"")]
    # A wish of the client's own stays, and is judged where headers are read.
    wish = () if any(name == _HISTORY for name, _ in rest) else ((_HISTORY, b"append"),)
    return [*rest, named, *wish]
