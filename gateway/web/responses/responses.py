"""POST /v1/responses: goes upstream as it is if the model's upstream stores responses, else as a chat completion.

The party that stores a response also stores the history of its conversation: the upstream, or for a chat completion
the gateway. A response's id shows who stores the response.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from secrets import token_hex

import orjson
from starlette.types import Scope

from adapters.types import EVENT_STREAM_HEADER, JSON_HEADER
from gateway.dialects.responses.background import ShownResponses, make_compaction_response
from gateway.dialects.responses.compaction import make_compaction_item
from gateway.dialects.responses.native import NativeResponsesRequest, read_native
from gateway.dialects.responses.parse import ResponsesRequest
from gateway.dialects.responses.render import ResponsesViewFactory
from gateway.run.memory.queue import QueueTicket
from gateway.run.response_conversations import ContinuedConversation, ResponseConversation
from gateway.run.responses.response_compaction import ResponseCompaction
from gateway.run.stored_responses import ResponseOwner
from gateway.web.body import parse_off_loop
from gateway.web.forwarding import ForwardedHead
from gateway.web.incoming import Incoming, read_memories
from gateway.web.request_body import RequestBody
from gateway.web.request_info import get_request_info
from gateway.web.responses.background_acceptance import answer_in_background
from gateway.web.responses.compaction_routes import SummaryReply, answer_with_summary
from gateway.web.responses.response_call import ResponseCall, ResponseCallRoute, with_conversation_header


@dataclass(eq=False)
class ResponsesRoute(ResponseCallRoute):
    """The route of POST /v1/responses."""

    needs_input = True
    passes_unknown_fields = True

    async def forward_with_body(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody
    ) -> None:
        """Sends a request to an upstream that answers in this dialect, with memory if the request has any."""
        native = await self._read_native(head, request_body, incoming.scope)
        if native is None:
            await super().forward_with_body(incoming, head, request_body)
            return
        incoming.info.memory = None
        native.chat.memories = read_memories(incoming.scope)
        route = self.parts.forwarder.routes.get_route(
            head.upstream_path, request_body.model, head.upstream_name
        )
        headers = with_conversation_header(incoming.headers, native.conversation_id)
        await self.chat_route.answer_native(incoming, native, route, headers)

    async def get_conversation(
        self, owner: ResponseOwner, conversation_id: str, request: ResponsesRequest, ticket: QueueTicket
    ) -> ResponseConversation:
        # A response in the background takes the waiting items when its job begins.
        if request.is_for_background:
            return await super().get_conversation(owner, conversation_id, request, ticket)
        return await self.chat.conversations.reserve(owner, conversation_id, ticket)

    async def respond(self, call: ResponseCall) -> None:
        """Answers a request by way of chat completions: with a response, a response in the background or a summary."""
        request = call.request
        if request.wants_compaction:
            await answer_with_summary(call, self.chat_route, partial(_render_compaction, request))
            return
        if request.is_for_background:
            await answer_in_background(call, self.chat_route, self.gateway_responses)
            return
        receipt = call.incoming.info.begin_receipt()
        make_view = ResponsesViewFactory(
            request.echo,
            receipt.find_stored_turn_name,
            count_usage=receipt.count_usage,
            answering_model=receipt.name_answering_model,
            forms=request.forms,
            shows_sealed_thoughts=request.shows_sealed_thoughts,
            messages=request.turn_messages,
        )
        conversation = call.conversation
        continued_conversation = None
        if conversation is not None:
            continued_conversation = ContinuedConversation(conversation, conversation.items)
        await self.chat_route.answer(
            call.incoming,
            request.chat,
            call.headers,
            make_view,
            receipt,
            continued_conversation=continued_conversation,
        )

    async def _read_native(
        self, head: ForwardedHead, request_body: RequestBody, scope: Scope
    ) -> NativeResponsesRequest | None:
        """Returns the request if it goes upstream with memory, or None if it goes upstream as it came."""
        if head.is_encoded:
            return None
        raw = bytes(request_body.raw)
        read = partial(read_native, raw, head.upstream_path, self.chat_route.settings.max_messages)
        native = await parse_off_loop(raw, read)
        if native is None:
            return None
        info = get_request_info(scope)
        request_context = info.caller.make_context(
            with_conversation_header(scope["headers"], native.conversation_id)
        )
        info.memory = self.chat.resolver.choose_memory_state(native.chat, request_context)
        return native if info.memory == "on" else None


def _render_compaction(request: ResponsesRequest, compacted: ResponseCompaction) -> SummaryReply:
    """Returns the reply to a request that asks for a summary of its conversation in place of an answer."""
    item = make_compaction_item(f"cmp_{token_hex(16)}", compacted.summary)
    shown = make_compaction_response(request, item, compacted.usage)
    if request.chat.stream:
        return SummaryReply([EVENT_STREAM_HEADER], ShownResponses().render_whole_events(shown))
    return SummaryReply([JSON_HEADER], orjson.dumps(shown))
