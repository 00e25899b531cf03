"""Reads requests of the Responses API that are answered by way of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import ClassVar, Final

from starlette.types import Scope

from adapters.types import Json
from gateway.core.request.chat_request import MemoryChoice
from gateway.core.request.identity import HISTORY_HEADER
from gateway.core.request.memory_mode import MEMORY_HEADER
from gateway.core.request.request_headers import RawHeaders
from gateway.core.request.requested_agent import AGENT_HEADER
from gateway.dialects.fields import refuse_unknown_fields
from gateway.dialects.responses.call_form import FUNCTIONS_ALONE, UpstreamTools
from gateway.dialects.responses.parse import ResponsesRequest, parse
from gateway.dialects.responses.request_fields import KNOWN_FIELDS
from gateway.dialects.responses.response_ids import (
    continues_gateway_response,
    is_gateway_id,
    is_openai_conversation,
)
from gateway.dialects.responses.tools import list_found_tools
from gateway.dialects.responses.unsealed import without_sealed_items
from gateway.errors import BadRequest
from gateway.run.chat import Chat
from gateway.run.memory.queue import QueueTicket
from gateway.run.response_conversations import ResponseConversation, make_unknown_conversation_error
from gateway.run.stored_responses import UNNAMED_PREFIX, ResponseOwner
from gateway.web.body import parse_off_loop
from gateway.web.completions import ChatRoute
from gateway.web.forwarding import ForwardedHead, ForwardedRoute
from gateway.web.incoming import Incoming, read_memories
from gateway.web.raw_headers import find_header
from gateway.web.request_body import RequestBody, read_request_body
from gateway.web.request_info import get_request_info
from gateway.web.resent_request import digest_request, has_idempotency_key
from gateway.web.responses.gateway_responses import GatewayResponses
from storage.errors import StoreError

_CONVERSATION_HEADER: Final = b"x-mnemogate-conversation"


@dataclass(eq=False)
class ResponseCall:
    """A request that was read, which is answered by way of chat completions."""

    # The request as it was parsed.
    request: ResponsesRequest
    # The conversation, stored by the gateway, that the request continues; None: the request continues none.
    conversation: ResponseConversation | None
    # The request's headers, with one for the conversation that its body names.
    headers: RawHeaders
    # The request as it came, and its client.
    incoming: Incoming


@dataclass(eq=False)
class ResponseCallRoute(ForwardedRoute):
    """A route of the Responses API whose requests are answered by way of chat completions, or by an upstream."""

    # The route of chat completions, which answers the requests.
    chat_route: ChatRoute
    # Answers for the responses and conversations that the gateway itself stores.
    gateway_responses: GatewayResponses
    # True: a request without input is refused.
    needs_input: ClassVar[bool] = False
    # True: the upstream gets the fields that this API does not have, and judges them. False: they are refused.
    passes_unknown_fields: ClassVar[bool] = False

    @property
    def chat(self) -> Chat:
        return self.chat_route.chat

    async def respond(self, call: ResponseCall) -> None:
        """Answers a request by way of chat completions."""
        raise NotImplementedError

    def reads_body(self, head: ForwardedHead) -> bool:
        """Returns whether a body is read. Its content type does not count, as for chat completions.

        A compressed body passes as a stream, unless chat completions may answer: then it is read, and refused.
        """
        return not head.is_encoded or self.parts.forwarder.routes.has_upstream_without(head.upstream_path)

    async def answer_with_body(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody
    ) -> None:
        """Answers a request by way of chat completions, or sends it upstream."""
        if self._is_answered_by_chat(head, request_body, incoming.scope):
            incoming.info.memory = None  # "off" holds for a forwarded request only
            with QueueTicket() as ticket:
                await self.respond(await self._read_call(incoming, head, request_body, ticket))
            return
        if (
            not head.is_encoded
            and (unsealed := without_sealed_items(request_body.raw)) is not request_body.raw
        ):
            request_body = read_request_body(unsealed)
        await self.forward_with_body(incoming, head, request_body)

    async def forward_with_body(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody
    ) -> None:
        """Sends a request to an upstream that answers in this dialect."""
        # A request without a memory is answered while the store is down.
        with suppress(StoreError):
            await self.chat.keeper.check_history(read_memories(incoming.scope))
        await super().answer_with_body(incoming, head, request_body)

    async def get_conversation(
        self, owner: ResponseOwner, conversation_id: str, request: ResponsesRequest, ticket: QueueTicket
    ) -> ResponseConversation:
        """Returns a conversation that the gateway stores, with the items that wait in it. Raises: GatewayError.

        request: the request that continues the conversation.
        ticket: a ticket in the queue of the conversation's waiting items.
        """
        return await self.chat.conversations.get(owner, conversation_id)

    async def _read_call(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody, ticket: QueueTicket
    ) -> ResponseCall:
        """Reads a request, and the conversation that it continues. Raises: GatewayError.

        ticket: holds the queue of the conversation's waiting items until the request is answered.
        """
        scope = incoming.scope
        self._check_fields(request_body, scope)
        parse_body = partial(
            parse,
            bytes(request_body.raw),
            self.chat_route.settings.max_messages,
            self._collect_upstream_tools(head, request_body, scope),
            needs_input=self.needs_input,
            repeated_keys=request_body.repeated_keys,
        )
        request = await parse_off_loop(request_body.raw, parse_body)
        headers = with_conversation_header(incoming.headers, request.conversation_id)
        found_tools = await self._load_found_tools(request, headers, scope)
        conversation = await self._find_conversation(request, ticket, scope)
        waiting_items = () if conversation is None else conversation.items
        if found_tools or waiting_items:
            # Parsed once more: only the parsed request names the conversation and the messages that have them.
            parse_body = partial(parse_body, waiting_items, found_tools=found_tools)
            request = await parse_off_loop(request_body.raw, parse_body)
        request.chat.memory_choice = self._choose_memory(request, conversation, scope)
        request.chat.query = incoming.query
        request.chat.memories = read_memories(scope)
        return ResponseCall(request, conversation, headers, incoming)

    def _check_fields(self, request_body: RequestBody, scope: Scope) -> None:
        """Refuses fields that neither this API nor the project's sources of identity have. Raises: BadRequest."""
        if not self.passes_unknown_fields:
            rules = self.chat.resolver.rules(get_request_info(scope).caller.project)
            refuse_unknown_fields(request_body.members, KNOWN_FIELDS | rules.source_fields)

    async def _find_conversation(
        self, request: ResponsesRequest, ticket: QueueTicket, scope: Scope
    ) -> ResponseConversation | None:
        """Returns the conversation that a request continues; None: the gateway stores no such conversation."""
        if not is_gateway_id(request.conversation_id):
            return None
        owner = self.gateway_responses.owners.read_owner(scope, request.chat.json)
        return await self.get_conversation(owner, request.conversation_id, request, ticket)

    async def _load_found_tools(
        self, request: ResponsesRequest, headers: RawHeaders, scope: Scope
    ) -> Sequence[Json]:
        """Returns the tools that searches have found in messages to which the request only refers."""
        if not request.may_have_found_tools:
            return ()
        request_context = get_request_info(scope).caller.make_context(headers)
        chat = await self.chat.resolver.resolve_references(request.chat, request_context)
        return list_found_tools(chat.messages)

    def _choose_memory(
        self, request: ResponsesRequest, conversation: ResponseConversation | None, scope: Scope
    ) -> MemoryChoice | None:
        """Returns the conversation in which the turn is stored, or None if the headers decide. Raises: UnknownId."""
        if conversation is not None:
            return MemoryChoice(conversation.id, conversation.scope)
        conversation_id = request.conversation_id
        if (
            conversation_id is not None
            and is_openai_conversation(conversation_id)
            and self.parts.forwarder.routes.has_endpoint("/conversations")
        ):
            # The conversation lies at an upstream, and this model would answer without its messages.
            raise make_unknown_conversation_error(conversation_id)
        if not request.is_retrievable:
            return None
        return MemoryChoice(
            UNNAMED_PREFIX + self._make_conversation_name(request, scope),
            asks_to_be_stored=request.asks_to_be_stored,
        )

    def _make_conversation_name(self, request: ResponsesRequest, scope: Scope) -> str:
        """Returns a name for the conversation of a request that names none."""
        if request.is_for_background and has_idempotency_key(scope):
            # A request that is sent again gets the same conversation, and so the same memory.
            return digest_request(scope, self.chat.resolver.rules, request.body).hex()
        return token_hex(16)

    def _collect_upstream_tools(
        self, head: ForwardedHead, request_body: RequestBody, scope: Scope
    ) -> UpstreamTools:
        """Returns the kinds of tools that every upstream takes that may answer the request.

        For a request to an agent these upstreams are not known yet, so it may have functions only.
        """
        if find_header(scope["headers"], AGENT_HEADER) is not None:
            return FUNCTIONS_ALONE
        capabilities = self.parts.forwarder.routes.list_capabilities(
            head.upstream_path, request_body.model, head.upstream_name
        )
        if not capabilities:
            return FUNCTIONS_ALONE
        return UpstreamTools(
            takes_custom_tools=all(upstream.custom_tools for upstream in capabilities),
            takes_web_search=all(upstream.web_search for upstream in capabilities),
        )

    def _is_answered_by_chat(self, head: ForwardedHead, request_body: RequestBody, scope: Scope) -> bool:
        """Returns whether a request is answered by way of chat completions, and not by its upstream's responses."""
        continues_here = continues_gateway_response(
            request_body.read_value("previous_response_id"), request_body.read_value("conversation")
        )
        if self.parts.forwarder.routes.is_translated_to_chat(
            head.upstream_path, request_body.model, head.upstream_name, continues_here=continues_here
        ):
            return True
        headers = scope["headers"]
        caller = get_request_info(scope).caller
        names_agent = request_body.model is not None and find_header(headers, AGENT_HEADER) is not None
        return names_agent and self.chat.resolver.is_for_agent(
            request_body.model or "", caller.make_context(headers)
        )


def without_memory(headers: RawHeaders) -> RawHeaders:
    """Returns a copy of a request's headers with memory off."""
    return [*((name, value) for name, value in headers if name != MEMORY_HEADER), (MEMORY_HEADER, b"off")]


def with_conversation_header(headers: RawHeaders, conversation_id: str | None) -> RawHeaders:
    """Returns a copy of a request's headers with the conversation of its body, in append mode. Raises: BadRequest."""
    if conversation_id is None:
        return headers
    value_in_body = conversation_id.encode()
    if any(
        name == _CONVERSATION_HEADER and value.strip() not in (b"", value_in_body) for name, value in headers
    ):
        raise BadRequest(
            "`conversation` and `x-mnemogate-conversation` name two different conversations.",
            param="conversation",
        )
    other_headers = [
        (name, value)
        for name, value in headers
        if name != _CONVERSATION_HEADER and (name, value) != (HISTORY_HEADER, b"")
    ]
    # A mode that the client names stays, and is checked where headers are read.
    names_mode = any(name == HISTORY_HEADER for name, _ in other_headers)
    append_mode = () if names_mode else ((HISTORY_HEADER, b"append"),)
    return [*other_headers, (_CONVERSATION_HEADER, value_in_body), *append_mode]
