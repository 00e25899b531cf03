"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, answered by any upstream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import orjson
from starlette.types import Receive, Scope, Send

from adapters.token_counts import BYTES_PER_TOKEN
from adapters.types import JSON_HEADER, Json
from gateway.core.request.requested_agent import asks_agent
from gateway.dialects.fields import check_model_name
from gateway.dialects.messages.native import NativeMessages
from gateway.dialects.messages.parse import MessagesRequest, parse, parse_body, read_names, read_thread
from gateway.dialects.messages.render import MessagesViewFactory
from gateway.errors import BadRequest, BodyTooLarge, ThreadUnsupported
from gateway.run.upstream.forward import Forwarder
from gateway.run.upstream.outgoing import OutgoingRequest
from gateway.web.body import parse_off_loop
from gateway.web.completions import ChatRoute
from gateway.web.forwarding import forward_without_memory, refuse_required_memory
from gateway.web.incoming import Incoming
from gateway.web.messages_paths import MESSAGES_ERRORS
from gateway.web.request_body import RequestBody, read_request_body


@dataclass(eq=False)
class MessagesRoute:
    """The route of messages."""

    # Answers requests that were read as chat completions.
    chat_route: ChatRoute
    # Sends requests without memory to upstreams.
    forwarder: Forwarder
    # True if a request without `max_tokens` is refused.
    needs_max_tokens: ClassVar[bool] = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = Incoming(scope, receive, send)
        info = incoming.info
        info.route = "messages"
        info.error_form = MESSAGES_ERRORS
        # If a request has both headers, Anthropic's API takes the key of `x-api-key`.
        caller = info.caller
        info.caller = caller._replace(credential=caller.api_key or caller.credential)
        async with self.chat_route.bodies.read(scope, receive) as body:
            request = await self._read_request(incoming, body)
            if request is None:
                await self._forward(incoming, read_request_body(body))
            else:
                await self._answer(incoming, request)

    async def _read_request(self, incoming: Incoming, body: bytes) -> MessagesRequest | None:
        """Returns the request of a body; None: memory cannot read the body, so it goes upstream without memory.

        Raises: BadRequest, BodyTooLarge.
        """
        info = incoming.info
        try:
            json = await parse_off_loop(body, partial(parse_body, body))
        except (BadRequest, BodyTooLarge):
            request_body = read_request_body(body)
            info.note_model(request_body.model, is_streamed=request_body.is_streamed)
            if not asks_agent(request_body.model or "") and self._is_for_native_upstream(
                incoming, {"model": request_body.model}
            ):
                return None
            raise
        model = json.get("model")
        is_streamed = json.get("stream") is True
        info.note_model(model if isinstance(model, str) else None, is_streamed=is_streamed)
        if self._is_for_native_upstream(incoming, json):
            return self._read_native(incoming, body, json)
        if json.get("thread") is not None:
            raise ThreadUnsupported("this model has no message threads.")
        return self._parse_request(incoming, body, json, is_lenient=False)

    def _is_for_native_upstream(self, incoming: Incoming, json: Json) -> bool:
        """Returns whether a request goes upstream in this dialect. Raises: BadRequest: no model has such a name."""
        model = json.get("model")
        if not isinstance(model, str):
            return False
        check_model_name(model)
        request_context = incoming.info.caller.make_context(incoming.headers)
        return self.chat_route.chat.is_for_native_upstream(read_names(json), request_context)

    def _parse_request(
        self, incoming: Incoming, body: bytes, json: Json, *, is_lenient: bool
    ) -> MessagesRequest:
        """Returns the request of a body. is_lenient: as for `parse`."""
        return parse(
            body,
            json,
            incoming.headers,
            self.chat_route.settings.max_messages,
            is_lenient=is_lenient,
            needs_max_tokens=self.needs_max_tokens,
        )

    def _read_native(self, incoming: Incoming, body: bytes, json: Json) -> MessagesRequest | None:
        """Returns a request for an upstream that speaks this dialect; None: memory cannot read it."""
        try:
            request = self._parse_request(incoming, body, json, is_lenient=True)
            thread = read_thread(json)
        except BadRequest:
            if asks_agent(json["model"]):  # no upstream has such a model
                raise
            return None
        if thread is not None:
            request_context = incoming.info.caller.make_context(incoming.headers)
            if self.chat_route.chat.resolver.choose_memory_state(request.chat, request_context) != "on":
                return None
        request.chat.native_body = NativeMessages(
            raw=request.raw,
            json=request.json,
            origins=request.origins,
            upstream_path=incoming.upstream_path,
            with_model=lambda model: read_request_body(body).with_model(model),
            thread=thread,
            untranslatable=request.untranslatable,
        )
        return request

    async def _forward(self, incoming: Incoming, request_body: RequestBody) -> None:
        """Answers a request that goes to its upstream without memory."""
        refuse_required_memory(incoming.headers)
        info = incoming.info
        info.memory = "off"
        caller = info.caller
        upstream_path = incoming.upstream_path
        route = self.forwarder.routes.get_route(upstream_path, request_body.model, upstream_name=None)
        outgoing = OutgoingRequest(
            method="POST",
            upstream_path=upstream_path,
            headers=incoming.headers,
            project=caller.project,
            credential=caller.credential,
            body=request_body,
            read_names=read_names,
        )
        await forward_without_memory(
            self.forwarder, incoming, route, outgoing, self.chat_route.send_timeout_s
        )

    async def _answer(self, incoming: Incoming, request: MessagesRequest) -> None:
        info = incoming.info
        stop_sequences = request.json.get("stop_sequences")
        receipt = info.begin_receipt()
        make_view = MessagesViewFactory(
            model=request.chat.model,
            input_tokens=len(request.raw) // BYTES_PER_TOKEN,
            request_id=info.request_id,
            count_usage=receipt.count_usage,
            stop_sequences=stop_sequences if isinstance(stop_sequences, list) else (),
            has_thread=request.json.get("thread") is not None,
        )
        await self.chat_route.answer(incoming, request.chat, incoming.headers, make_view, receipt)


class CountRoute(MessagesRoute):
    """The route that counts the tokens of a request. It stores nothing in memory."""

    needs_max_tokens = False

    async def _answer(self, incoming: Incoming, request: MessagesRequest) -> None:
        info = incoming.info
        request_context = info.caller.make_context(incoming.headers)
        receipt = info.begin_receipt()
        with incoming.begin_reply(self.chat_route.send_timeout_s) as reply:
            tokens = await self.chat_route.chat.count_prompt(request.chat, request_context, reply, receipt)
            if tokens is not None:
                body = orjson.dumps({"input_tokens": tokens})
                await reply.send_body(200, [JSON_HEADER, *receipt.note_head()], body)
