"""POST /v1/responses: goes upstream as it is if the model's upstream stores responses, else as a chat completion.

The party that stores a response also stores the history of its conversation: the upstream, or for a chat completion
the gateway. A response's id shows who stores the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from secrets import token_hex
from typing import ClassVar, Final

import orjson
from starlette.types import Scope

from adapters.types import Header
from gateway.core.request.chat_request import MemoryChoice
from gateway.core.request.identity import UNNAMED_PREFIX, IdentityRules
from gateway.core.request.request_headers import RawHeaders
from gateway.core.turn.round import EVENT_STREAM
from gateway.dialects.chat.render import ChatView
from gateway.dialects.responses.background import (
    ShownResponses,
    StoredResponseRequest,
    compaction_response,
    queued_response,
)
from gateway.dialects.responses.compaction import compaction_item, summary_of
from gateway.dialects.responses.native import NativeResponse, read_native
from gateway.dialects.responses.parse import ResponsesRequest, parse
from gateway.dialects.responses.render import MakesResponses
from gateway.dialects.responses.response_ids import (
    TAG_BYTES,
    continues_gateway_response,
    is_gateway_id,
    is_openai_conversation,
    make_tag,
)
from gateway.dialects.responses.tools import FUNCTIONS_ALONE, UpstreamTools, tools_found
from gateway.dialects.responses.unsealed import without_sealed_items
from gateway.errors import BadRequest
from gateway.run.memory.queue import QueueTicket
from gateway.run.response_compaction import Compacted, CompactionFailed, compact
from gateway.run.response_conversations import (
    ContinuedConversation,
    ResponseConversation,
    unknown_conversation,
)
from gateway.run.response_runs import NewResponse
from gateway.web.body import parse_off_loop
from gateway.web.completions import ChatRoute
from gateway.web.forwarding import ForwardedHead, ForwardedRoute
from gateway.web.incoming import Incoming, memories_of
from gateway.web.json_response import JSON_TYPE
from gateway.web.middleware import info_of
from gateway.web.raw_headers import find_header
from gateway.web.request_body import RequestBody, read_request_body
from gateway.web.stored_responses import GatewayResponses, ShownResponse
from storage.errors import StoreError

RESPONSES_PATH: Final = "/v1/responses"
_AGENT_HEADER: Final = b"x-mnemogate-agent"
_MEMORY_HEADER: Final = b"x-mnemogate-memory"
_HISTORY_HEADER: Final = b"x-mnemogate-history"
_CONVERSATION_HEADER: Final = b"x-mnemogate-conversation"
_GATEWAY_HEADER_PREFIX: Final = b"x-mnemogate-"
_IDEMPOTENCY_KEY: Final = b"idempotency-key"  # the client may send the request again
_RETRY_COUNT_HEADER: Final = b"x-stainless-retry-count"  # of OpenAI's SDKs


@dataclass(eq=False)
class ResponseCall:
    """A request that was read, which is answered by way of chat completions."""

    request: ResponsesRequest
    # The conversation, stored by the gateway, that the request continues; None: it continues no such conversation.
    conversation: ResponseConversation | None
    # The request's headers, with one for the conversation that its body names.
    headers: RawHeaders
    incoming: Incoming


@dataclass(eq=False)
class ResponsesRoute(ForwardedRoute):
    """The route of POST /v1/responses."""

    # Answers requests as chat completions.
    chats: ChatRoute
    # Answers for the responses and conversations that the gateway itself stores.
    gateway_responses: GatewayResponses
    # False: the answer is no response, so the request needs no input, and memory has no part in it.
    makes_response: ClassVar[bool] = True

    async def answer_read(self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody) -> None:
        scope = incoming.scope
        if self._is_answered_by_chat(head, request_body, scope):
            incoming.info.memory = None  # "off" holds for a forwarded request only
            with QueueTicket() as ticket:
                call = await self._read_call(incoming, head, request_body, ticket)
                call.request.chat.query = incoming.query
                call.request.chat.memories = memories_of(scope)
                await self.respond(call)
            return
        if (
            not head.is_encoded
            and (unsealed := without_sealed_items(request_body.raw)) is not request_body.raw
        ):
            request_body = read_request_body(unsealed)
        if (native := await self._read_native(head, request_body, scope)) is not None:
            incoming.info.memory = None
            native.chat.memories = memories_of(scope)
            route = self.parts.forwarder.route_for(head.upstream_path, request_body.model, head.upstream_name)
            headers = _with_conversation(incoming.headers, native.conversation_id)
            await self.chats.answer_native(incoming, native, route, headers)
        else:
            with suppress(StoreError):  # as any request without a memory, it does not need the store
                await self.chats.chat.keeper.check_history(memories_of(scope))
            await super().answer_read(incoming, head, request_body)

    async def respond(self, call: ResponseCall) -> None:
        """Answers a request that was read, by way of chat completions."""
        request = call.request
        if request.wants_compaction:
            await self.compact(call, partial(_render_compaction, request))
            return
        if request.echo["background"]:
            await self._answer_in_background(call)
            return
        receipt = call.incoming.info.begin_receipt()
        make_view = MakesResponses(
            request.echo,
            receipt.stored_turn,
            count_usage=receipt.count_usage,
            answering_model=receipt.answering_model,
            forms=request.forms,
            shows_sealed_thoughts=request.shows_sealed_thoughts,
            messages=request.turn_messages,
        )
        conversation = call.conversation
        continued_conversation = None
        if conversation is not None:
            continued_conversation = ContinuedConversation(conversation, conversation.items)
        await self.chats.answer(
            call.incoming,
            request.chat,
            call.headers,
            make_view,
            receipt,
            continued_conversation=continued_conversation,
        )

    async def compact(
        self, call: ResponseCall, render: Callable[[Compacted], tuple[Sequence[Header], bytes]]
    ) -> None:
        """Answers with a summary of the sent messages. Nothing is remembered.

        render: returns headers and body.

        Raises: BadRequest for a stored conversation.
        """
        if call.request.conversation_id is not None:
            raise BadRequest(
                "A stored conversation is not compacted: the gateway cuts it to the model's window itself.",
                param="conversation",
                code="unsupported_value",
            )
        info = call.incoming.info
        info.memory = "off"
        request_context = info.caller.context(without_memory(call.headers))
        receipt = info.begin_receipt()
        with call.incoming.begin_reply(self.chats.send_timeout_s) as reply:
            try:
                compacted = await compact(
                    self.chats.chat,
                    call.request.chat,
                    request_context,
                    reply,
                    receipt,
                    make_view=ChatView,
                    read_summary=summary_of,
                )
            except CompactionFailed as error:
                await reply.send_body(error.status, [JSON_TYPE, *receipt.note_head()], error.body)
                return
            headers, body = render(compacted)
            await reply.send_body(200, [*headers, *receipt.note_head()], body)

    async def _answer_in_background(self, call: ResponseCall) -> None:
        """Accepts a response that is made in the background. The reply shows it as queued, or streams its events."""
        accepted = await self._accept(call)
        chat = call.request.chat
        call.incoming.info.memory = "on"
        headers = [("x-mnemogate-memory", "on")]
        if chat.consumed:  # more may be left out for the upstream that answers
            headers.append(("x-mnemogate-consumed", ",".join(chat.consumed)))
        with call.incoming.begin_reply(self.chats.send_timeout_s) as reply, reply.while_here():
            if not chat.stream or accepted.run is None:
                await reply.send_body(200, [JSON_TYPE, *headers], orjson.dumps(accepted.json))
                return
            reply.start(200, [EVENT_STREAM, *headers])
            background = self.gateway_responses.background
            async with aclosing(background.events(accepted.run, -1, accepted.json)) as events:
                async for event in events:
                    await reply.write(event)
            await reply.end()

    async def _accept(self, call: ResponseCall) -> ShownResponse:
        """Accepts a response in the background. A request that is sent again is accepted once."""
        request = call.request
        conversation = call.conversation
        scope = call.incoming.scope
        background = self.gateway_responses.background
        digest = _digest_request(scope, self.chats.chat.resolver.rules, request.body)
        tag = background.find_accepted(digest) if _is_retry(scope) else None
        if tag is None:
            info = call.incoming.info
            request_context = info.caller.context(call.headers)
            receipt = info.begin_receipt()
            identity, agent = await self.chats.chat.admit_background(
                request.chat, request_context, conversation, receipt
            )
            tag = _new_tag(scope, digest, agent.secret)
            created = background.now()
            stored_request = StoredResponseRequest(
                body=request.body.decode(),
                identity=identity,
                upstream_tools=request.upstream_tools,
                max_messages=self.chats.settings.max_messages,
                waiting_items=conversation.items if conversation is not None else [],
                key_id=request_context.key_id,
                found_tools=[*request.found_tools],
            )
            queued = queued_response(request, tag, created)
            response = NewResponse(
                tag=tag, created=created, request=stored_request.encode(), shown=queued, digest=digest
            )
            accepted = await background.accept(response, agent, identity, request_context, receipt)
            receipt.asks_model = False  # the job asks the model, with a receipt of its own
            if accepted.is_new:
                return ShownResponse(queued, accepted.run)
        return await self.gateway_responses.show(
            self.gateway_responses.owners.read_owner(scope, request.chat.json), f"resp_{tag}"
        )

    async def _read_call(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody, ticket: QueueTicket
    ) -> ResponseCall:
        """Reads a request, and the conversation that it continues. Raises: GatewayError.

        ticket: holds the queue of the conversation's waiting items until the request is answered.
        """
        scope = incoming.scope
        parse_body = partial(
            parse,
            bytes(request_body.raw),
            self.chats.settings.max_messages,
            self._upstream_tools(head, request_body, scope),
            needs_input=self.makes_response,
            repeated_keys=request_body.repeated_keys,
        )
        request = await parse_off_loop(request_body.raw, parse_body)
        if request.may_have_found_tools:
            headers = _with_conversation(incoming.headers, request.conversation_id)
            resolver = self.chats.chat.resolver
            request_context = info_of(scope).caller.context(headers)
            chat = await resolver.resolve_references(request.chat, request_context)
            parse_body = partial(parse_body, found_tools=tools_found(chat.messages))
            request = await parse_off_loop(request_body.raw, parse_body)
        conversation_id = request.conversation_id
        conversation: ResponseConversation | None = None
        if is_gateway_id(conversation_id):
            conversation = await self._find_conversation(conversation_id, request, scope, ticket)
            if conversation.items:
                parse_body = partial(parse_body, conversation.items)
                request = await parse_off_loop(request_body.raw, parse_body)
            request.chat.memory_choice = MemoryChoice(conversation.id, conversation.scope)
        elif (
            conversation_id is not None
            and is_openai_conversation(conversation_id)
            and self.parts.forwarder.has_endpoint("/conversations")
        ):
            # The conversation lies at an upstream, and this model would answer without its messages.
            raise unknown_conversation(conversation_id)
        elif request.echo["store"]:
            request.chat.memory_choice = MemoryChoice(
                UNNAMED_PREFIX + self._name_conversation(request, scope),
                asks_to_be_stored=request.asks_to_be_stored,
            )
        headers = _with_conversation(incoming.headers, request.conversation_id)
        return ResponseCall(request, conversation, headers, incoming)

    async def _find_conversation(
        self, id: str, request: ResponsesRequest, scope: Scope, ticket: QueueTicket
    ) -> ResponseConversation:
        """Returns a conversation that the gateway stores, with the items that wait in it. Raises: GatewayError."""
        owner = self.gateway_responses.owners.read_owner(scope, request.chat.json)
        conversations = self.chats.chat.conversations
        # A response in the background takes the waiting items when its job begins; a count of tokens takes none.
        if request.echo["background"] or not self.makes_response:
            return await conversations.find(owner, id)
        return await conversations.reserve(owner, id, ticket)

    def _name_conversation(self, request: ResponsesRequest, scope: Scope) -> str:
        """Returns a name for the conversation of a request that names none."""
        if request.echo["background"] and find_header(scope["headers"], _IDEMPOTENCY_KEY) is not None:
            # A request that is sent again gets the same conversation, and so the same memory.
            return _digest_request(scope, self.chats.chat.resolver.rules, request.body).hex()
        return token_hex(16)

    def _upstream_tools(self, head: ForwardedHead, request_body: RequestBody, scope: Scope) -> UpstreamTools:
        """Returns the kinds of tools that all upstreams which may answer take.

        The upstreams of a request to an agent are not known yet, so only functions count.
        """
        if find_header(scope["headers"], _AGENT_HEADER) is not None:
            return FUNCTIONS_ALONE
        capabilities = self.parts.forwarder.capabilities_for(
            head.upstream_path, request_body.model, head.upstream_name
        )
        if not capabilities:
            return FUNCTIONS_ALONE
        return UpstreamTools(
            custom=all(each.custom_tools for each in capabilities),
            web_search=all(each.web_search for each in capabilities),
        )

    def _is_answered_by_chat(self, head: ForwardedHead, request_body: RequestBody, scope: Scope) -> bool:
        """Returns whether a request is answered by way of chat completions, and not by its upstream's responses."""
        continues_here = continues_gateway_response(
            request_body.value("previous_response_id"), request_body.value("conversation")
        )
        if self.parts.forwarder.is_translated_to_chat(
            head.upstream_path, request_body.model, head.upstream_name, continues_here=continues_here
        ):
            return True
        headers, caller = scope["headers"], info_of(scope).caller
        is_named = request_body.model is not None and find_header(headers, _AGENT_HEADER) is not None
        return is_named and self.chats.chat.resolver.is_for_agent(
            request_body.model or "", caller.context(headers)
        )

    async def _read_native(
        self, head: ForwardedHead, request_body: RequestBody, scope: Scope
    ) -> NativeResponse | None:
        """Returns a request that goes upstream with memory; None: it goes upstream without, as it came."""
        if head.is_encoded or not self.makes_response:
            return None
        raw = bytes(request_body.raw)
        read = partial(read_native, raw, head.upstream_path, self.chats.settings.max_messages)
        native = await parse_off_loop(raw, read)
        if native is None:
            return None
        info = info_of(scope)
        request_context = info.caller.context(_with_conversation(scope["headers"], native.conversation_id))
        info.memory = self.chats.chat.resolver.memory_state(native.chat, request_context)
        return native if info.memory == "on" else None

    def reads_body(self, head: ForwardedHead) -> bool:
        """Returns whether a body is read. Its content type does not count, as for chat completions.

        A compressed body passes as a stream, unless chat completions may answer: then it is read, and refused.
        """
        return not head.is_encoded or self.parts.forwarder.some_upstream_lacks(head.upstream_path)


def _is_retry(scope: Scope) -> bool:
    """Returns whether an SDK sends a request again because it has lost the answer to it."""
    return find_header(scope["headers"], _RETRY_COUNT_HEADER) not in (None, b"0")


def _new_tag(scope: Scope, digest: bytes, secret: bytes) -> str:
    """Returns the id of a new response in the background, without its prefix. secret: that of the response's memory."""
    if find_header(scope["headers"], _IDEMPOTENCY_KEY) is None:
        return make_tag(None)
    # The same request has the same id in any process, and no one can guess it without the secret.
    return blake2b(digest, key=secret, digest_size=TAG_BYTES).hexdigest()


def _digest_request(scope: Scope, rules: Callable[[str], IdentityRules], body: bytes) -> bytes:
    """Returns a hash of the caller and the request: the same hash means that the request was sent again.

    rules: returns the rules of a project, which name the headers that identify a user.
    """
    caller = info_of(scope).caller
    identifying = rules(caller.project).single_headers
    headers = sorted(
        name + value
        for name, value in scope["headers"]
        if name in identifying or name.startswith(_GATEWAY_HEADER_PREFIX) or name == _IDEMPOTENCY_KEY
    )
    parts = (
        caller.project.encode(),
        b"%d" % caller.key_id,
        (caller.credential or "").encode(),
        *headers,
        body,
    )
    return blake2b(b"\0".join(parts), digest_size=16).digest()


def without_memory(headers: RawHeaders) -> RawHeaders:
    """Returns a request's headers with memory off."""
    return [*(each for each in headers if each[0] != _MEMORY_HEADER), (_MEMORY_HEADER, b"off")]


def _render_compaction(request: ResponsesRequest, compacted: Compacted) -> tuple[Sequence[Header], bytes]:
    """Returns headers and body for a request that asks for a summary of its conversation in place of a reply."""
    item = compaction_item(f"cmp_{token_hex(16)}", compacted.summary)
    shown = compaction_response(request, item, compacted.usage)
    if request.chat.stream:
        return [EVENT_STREAM], ShownResponses().whole_events(shown)
    return [JSON_TYPE], orjson.dumps(shown)


def _with_conversation(headers: RawHeaders, conversation_id: str | None) -> RawHeaders:
    """Returns a request's headers with the conversation that its body names, in append mode. Raises: BadRequest."""
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
        if name != _CONVERSATION_HEADER and (name, value) != (_HISTORY_HEADER, b"")
    ]
    # A mode that the client names stays, and is checked where headers are read.
    names_mode = any(name == _HISTORY_HEADER for name, _ in other_headers)
    append_mode = () if names_mode else ((_HISTORY_HEADER, b"append"),)
    return [*other_headers, (_CONVERSATION_HEADER, value_in_body), *append_mode]
