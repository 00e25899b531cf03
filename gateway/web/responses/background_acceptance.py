"""Accepts responses that are made in the background, and answers their requests."""

from __future__ import annotations

from hashlib import blake2b

import orjson
from starlette.types import Scope

from adapters.types import JSON_HEADER
from gateway.dialects.responses.background import StoredResponseRequest, make_queued_response
from gateway.dialects.responses.response_ids import TAG_BYTES, make_tag
from gateway.run.chat import AdmittedResponse
from gateway.run.responses.response_runs import NewResponse
from gateway.web.completions import ChatRoute
from gateway.web.resent_request import digest_request, has_idempotency_key, is_retry
from gateway.web.responses.gateway_responses import GatewayResponses, ShownResponse
from gateway.web.responses.response_call import ResponseCall


async def answer_in_background(
    call: ResponseCall, chat_route: ChatRoute, gateway_responses: GatewayResponses
) -> None:
    """Accepts a response that is made in the background. The reply shows it as queued, or streams its events."""
    accepted = await _accept(call, chat_route, gateway_responses)
    chat = call.request.chat
    call.incoming.info.memory = "on"
    headers = [("x-mnemogate-memory", "on")]
    if chat.consumed:  # more may be left out for the upstream that answers
        headers.append(("x-mnemogate-consumed", ",".join(chat.consumed)))
    with call.incoming.begin_reply(chat_route.send_timeout_s) as reply, reply.cancel_on_leave():
        if not chat.stream or accepted.run is None:
            await reply.send_body(200, [JSON_HEADER, *headers], orjson.dumps(accepted.json))
            return
        await gateway_responses.send_events(reply, accepted.run, accepted.json, headers=headers)


async def _accept(
    call: ResponseCall, chat_route: ChatRoute, gateway_responses: GatewayResponses
) -> ShownResponse:
    """Accepts a response in the background. A request that is sent again is accepted once."""
    scope = call.incoming.scope
    background = gateway_responses.background
    digest = digest_request(scope, chat_route.chat.resolver.rules, call.request.body)
    tag = background.find_accepted_tag(digest) if is_retry(scope) else None
    if tag is None:
        info = call.incoming.info
        request_context = info.caller.make_context(call.headers)
        receipt = info.begin_receipt()
        admitted = await chat_route.chat.admit_background(
            call.request.chat, request_context, call.conversation, receipt
        )
        tag = _make_response_tag(scope, digest, admitted.agent.secret)
        response = _make_new_response(
            call, chat_route, admitted, tag=tag, digest=digest, created_at=background.services.now()
        )
        accepted = await background.accept(
            response, admitted.agent, admitted.identity, request_context, receipt
        )
        receipt.asks_model = False  # the job asks the model, with a receipt of its own
        if accepted.is_new:
            return ShownResponse(response.shown, accepted.run)
    return await gateway_responses.show(
        gateway_responses.owners.read_owner(scope, call.request.chat.json), f"resp_{tag}"
    )


def _make_new_response(
    call: ResponseCall,
    chat_route: ChatRoute,
    admitted: AdmittedResponse,
    tag: str,
    digest: bytes,
    created_at: float,
) -> NewResponse:
    """Returns the response as it is stored until its job makes it. digest: the digest of the request."""
    request, conversation = call.request, call.conversation
    stored_request = StoredResponseRequest(
        body=request.body.decode(),
        identity=admitted.identity,
        upstream_tools=request.upstream_tools,
        max_messages=chat_route.settings.max_messages,
        waiting_items=conversation.items if conversation is not None else [],
        key_id=call.incoming.info.caller.key_id,
        found_tools=[*request.found_tools],
    )
    queued = make_queued_response(request, tag, created_at)
    return NewResponse(
        tag=tag, created_at=created_at, request=stored_request.encode(), shown=queued, digest=digest
    )


def _make_response_tag(scope: Scope, digest: bytes, secret: bytes) -> str:
    """Returns the id of a new response in the background, without its prefix. secret: the secret of the memory."""
    if not has_idempotency_key(scope):
        return make_tag(None)
    # The same request has the same id in any process, and no one can guess it without the secret.
    return blake2b(digest, key=secret, digest_size=TAG_BYTES).hexdigest()
