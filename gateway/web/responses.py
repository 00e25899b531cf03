"""POST /v1/responses: passed on where the model's upstream has such an endpoint, else a chat completion with memory.

Agents answer it too. A conversation that the request names is one in which the gateway keeps the history.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.types import Receive, Scope, Send

from gateway.core.request.headers import RawHeaders
from gateway.dialects.responses.parse import parse
from gateway.dialects.responses.render import MakesResponses
from gateway.errors import BadRequest
from gateway.run.receipt import Receipt
from gateway.web.chat import ChatRoute
from gateway.web.forwarding import ForwardedHead, ForwardedPath
from gateway.web.middleware import trace_of
from gateway.web.model_field import NamedRequest

_log = logging.getLogger("mnemogate")
RESPONSES_PATH: Final = "/v1/responses"


@dataclass(eq=False)
class ResponsesPath(ForwardedPath):
    """The route of that path. chats: answers chat completions."""

    chats: ChatRoute
    _has_said: bool = field(default=False, init=False)

    async def answer(
        self, head: ForwardedHead, asked: NamedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if not self.forwarding.is_by_chat(head.path, asked.model, head.named):
            self._say_that_it_passes()
            await super().answer(head, asked, scope, receive, send)
            return
        trace = trace_of(scope)
        trace.memory = None
        request = parse(bytes(asked.raw), self.chats.settings.max_messages)
        request.chat.query = scope["query_string"].decode("latin-1")
        receipt = Receipt(trace.begun)
        headers = _headers(scope["headers"], request.conversation)
        view = MakesResponses(request.echo, partial(_turn, receipt))
        await self.chats.answer(request.chat, headers, view, receipt, scope, receive, send)

    def _reads(self, head: ForwardedHead) -> bool:
        """Returns True for JSON under any type, as chat completions have it, and for what is refused as compressed.

        A compressed body can only be passed on where no model's requests are answered here.
        """
        return not head.is_encoded or self.forwarding.answers_by_chat(head.path)

    def _say_that_it_passes(self) -> None:
        """Logs once that such requests have no memory, since nothing else shows it to who expects it."""
        if not self._has_said:
            self._has_said = True
            _log.warning(
                "requests to /v1/responses are passed on without memory; `takes = { responses = false }` of an "
                "upstream has them answered with it (this is said once)"
            )


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
    rest = [each for each in headers if each[0] != named[0]]
    return [*rest, named, (b"x-mnemogate-history", b"append")]
