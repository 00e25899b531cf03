"""A chat completion that is being answered, and its request in the form that an endpoint takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import ModelRequest
from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import MemoryState
from gateway.core.request.native_body import NO_CHANGES, UpstreamBody
from gateway.core.request.request_headers import number_idempotency_keys
from gateway.core.turn.client_view import UnseenView, ViewFactory
from gateway.core.turn.guide import FREE_OFFER, Offer
from gateway.core.turn_name import TurnName
from gateway.core.upstream.endpoint_form import NO_ALTERED_MESSAGES, EndpointForm
from gateway.core.upstream.policy import Target
from gateway.run.memory.fit import fit_prompt
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.named_turns import make_turn_name
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_body import make_native_changes, render_body
from gateway.run.memory.prompt_tokens import estimate_usage
from gateway.run.memory.queue import QueueTicket
from gateway.run.native_request import NativeRequest
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.tools.call_journal import CallJournal
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.form_choice import NATIVE_FORM, choose_endpoint_form, choose_native_body
from gateway.run.upstream.route import Route
from gateway.run.upstream_call import PromptFacts

_BETA_HEADER = "anthropic-beta"


class Forwarded(Struct, frozen=True):
    """The headers, the credential and the bounds of a caller, which hold for all calls that its request leads to."""

    # The request's headers that an upstream may see.
    headers: tuple[tuple[str, str], ...] = ()
    # The caller's own credential, for an upstream without a key of its own; None: the caller has none.
    credential: str | None = None
    # Patterns of the models that the caller's key may ask for; None: all.
    models: tuple[str, ...] | None = None
    # The id of the caller's key; 0: the caller has no key.
    key_id: int = 0
    # The upstream that the caller's own request asked, for which the credential is; "": not known yet.
    upstream: str = ""


class TurnRecord(Struct, frozen=True):
    """The record of a turn from which another process goes on if this process ends."""

    # Takes the name of the turn, before anything of the turn is written.
    note_turn: Callable[[TurnName], Awaitable[None]]
    # The journal of the calls that leave the gateway.
    journal: CallJournal
    # The replies that earlier attempts have written down, in their order.
    replies: Sequence[bytes] = ()


@dataclass(slots=True)
class ChatCall:
    """A chat completion or a step of a run, with all that decides how it is answered."""

    # The request as a chat completion.
    request: ChatRequest
    # The parts of the caller's request that go upstream with each call.
    forwarded: Forwarded
    # The user, the memory and its mode.
    identity: Identity
    # The agent that answers.
    spec: AgentSpec
    # The model and the upstreams that may answer.
    route: Route
    # The kind of the conversation.
    kind: ConversationKind
    # Returns the view of the dialect in which the reply is shown.
    make_view: ViewFactory
    # The client of the reply.
    sink: Sink
    # The receipt of the request.
    receipt: Receipt
    # The time at which the request arrived, in seconds since the epoch; None: not known.
    arrived_at: float | None = None
    # The ticket of the queue in which requests in append mode arrive: it orders them until their conversation's queue
    # does. None: the request does not queue.
    arrival_ticket: QueueTicket | None = None
    # The value of the reply's header for memory; "": not known yet.
    memory_state: Literal[""] | MemoryState = ""
    # Is awaited if the upstream refuses the messages, before the client gets the error.
    when_refused: Callable[[], Awaitable[None]] | None = field(default=None, init=False)
    # The request in its own dialect, if it goes upstream in its dialect whatever the endpoint is. (The `native_body` of
    # a `ChatRequest` goes only to endpoints that speak its dialect.)
    native_request: NativeRequest | None = None
    # The record of the turn, if the turn has to be stored and may go on in another process.
    record: TurnRecord | None = field(default=None, init=False)
    # The parts of the prompt that were left out because the upstream refuses them, as `x-mnemogate-adapted` names them.
    left_out_parts: tuple[str, ...] = field(default=(), init=False)
    # The number of requests that were made. A request that is only sent again counts once.
    request_count: int = field(default=0, init=False)

    @property
    def may_have_had_memory(self) -> bool:
        """True: earlier replies of the conversation may have been made with memory, even if this one is not."""
        return self.identity.scope is not None

    async def make_request_without_memory(self, target: Target, endpoint: Endpoint) -> ModelRequest:
        """Returns the request without memory: as it came, as far as the endpoint takes it."""
        self.receipt.hides_usage = False
        if self.native_request is not None:
            self.receipt.headers["x-mnemogate-memory"] = self.memory_state
            return self._make_native_request(self.native_request, target, self.spec.system)
        native_body = choose_native_body(self.request, endpoint)
        if native_body is not None:
            self.fill_receipt(NATIVE_FORM)
            changes = replace(
                NO_CHANGES, is_fallback=self._is_fallback(target), changes_prefix=self.may_have_had_memory
            )
            rendered = native_body.render(target.model, changes)
            return self._make_native_body_request(target, native_body.upstream_path, rendered)
        return await self._make_chat_request(target, endpoint)

    async def _make_chat_request(self, target: Target, endpoint: Endpoint) -> ModelRequest:
        """Returns the request as a chat completion without memory: in the client's bytes if nothing changes."""
        form = choose_endpoint_form(self.request, endpoint, target.model)
        prompt = Prompt(self.request, target, form)
        is_cut = target.context_window is not None
        if is_cut:
            prompt = replace(prompt, window=await fit_prompt(prompt))
        self.fill_receipt(form, prompt if is_cut else None)
        self.receipt.hides_usage = prompt.adds_usage and not self.request.wants_usage
        is_changed = (
            is_cut
            or form.consumed_fields
            or form.altered_messages != NO_ALTERED_MESSAGES
            or target.model != self.request.model
            or prompt.adds_usage
            or self.request.gateway_fields & form.refused_settings
            or prompt.has_tools_in_place_of_thoughts
        )
        return self._make_model_request(target, render_body(prompt) if is_changed else self.request.raw)

    def make_request_with_prompt(
        self,
        target: Target,
        endpoint: Endpoint,
        prompt: Prompt,
        hidden_rounds: Sequence[WireMessage] = (),
        budget_tokens: int | None = None,
        offer: Offer = FREE_OFFER,
    ) -> ModelRequest:
        """Returns the request for a prompt, in the dialect of its endpoint. `render_body` has the other parameters."""
        if self.native_request is not None:
            system = prompt.section.name_tools(prompt.system, ())
            return self._make_native_request(self.native_request, target, system, prompt.composition.notes)
        native_body = choose_native_body(self.request, endpoint)
        if native_body is None:
            return self._make_model_request(target, render_body(prompt, hidden_rounds, budget_tokens, offer))
        changes = make_native_changes(prompt, hidden_rounds, budget_tokens, offer)
        rendered = native_body.render(target.model, replace(changes, is_fallback=self._is_fallback(target)))
        request = self._make_native_body_request(target, native_body.upstream_path, rendered)
        return request._replace(native_first_block_index=rendered.first_block_index)

    def _is_fallback(self, target: Target) -> bool:
        """Returns whether the target is a fallback with another model than the request names."""
        return target.rank > 0 and target.model != self.route.original.model

    def _make_native_request(
        self, native: NativeRequest, target: Target, system: str, notes: Mapping[int, str] | None = None
    ) -> ModelRequest:
        body = native.render_body(target.model, system, notes)
        return self._make_model_request(target, body)._replace(path=native.upstream_path, query="")

    def _make_native_body_request(self, target: Target, path: str, rendered: UpstreamBody) -> ModelRequest:
        """Returns a request in the client's own dialect."""
        request = self._make_model_request(target, rendered.body)
        headers = request.headers
        if rendered.consumed:
            self.receipt.headers["x-mnemogate-consumed"] = ",".join(rendered.consumed)
        if rendered.anthropic_betas:
            client_betas = [value for name, value in headers if name == _BETA_HEADER]
            headers = (
                *(each for each in headers if each[0] != _BETA_HEADER),
                (_BETA_HEADER, ",".join((*client_betas, *rendered.anthropic_betas))),
            )
        return request._replace(path=path, query="", headers=headers)

    def _make_model_request(self, target: Target, body: bytes) -> ModelRequest:
        """Returns a request with this body, and with the credential and the query if this target may see them."""
        forwarded = self.forwarded
        headers = forwarded.headers
        self.request_count += 1
        if self.request_count > 1:
            headers = number_idempotency_keys(headers, self.request_count)
        upstream = self.route.original.upstream
        if forwarded.upstream != upstream or not target.gets_credential(upstream):
            return ModelRequest(body, headers, wants_stream=self.request.stream)
        return ModelRequest(
            body=body,
            headers=headers,
            credential=forwarded.credential,
            query=self.request.query,
            wants_stream=self.request.stream,
        )

    def fill_receipt(
        self, form: EndpointForm, prompt: Prompt | None = None, context: MemoryContext | None = None
    ) -> None:
        """Fills the receipt: the memory, the conversation, and the changes to the request, for this endpoint.

        prompt: the prompt of the request; None: the request goes upstream as it came.
        context: the context of the request's memory; None: the request has no memory.
        """
        headers = self.receipt.headers
        headers["x-mnemogate-memory"] = self.memory_state
        headers["x-mnemogate-consumed"] = (
            ",".join((*self.request.consumed, *form.consumed_fields, *form.untranslatable_fields)) or None
        )
        adapted = (
            *(("developer_role",) if form.altered_messages.developer else ()),
            *(("temperature",) if form.lowers_temperature else ()),
            *self.left_out_parts,
        )
        headers["x-mnemogate-adapted"] = ",".join(adapted) or None
        self.receipt.prompt = PromptFacts(max_tokens=self.request.max_tokens)
        if prompt is not None:
            window = prompt.window
            self.receipt.prompt = PromptFacts(
                window.tokens,
                prompt.injected_tokens,
                window.evicted_tokens,
                is_compacted=bool(window.summary),
                max_tokens=self.request.max_tokens,
            )
            headers["x-mnemogate-evicted-tokens"] = str(window.evicted_tokens)
            self.receipt.usage_counter = partial(estimate_usage, prompt)
        if context is not None and prompt is not None:
            self._note_memory(context, prompt)

    def _note_memory(self, context: MemoryContext, prompt: Prompt) -> None:
        """Notes the memory of the request, its conversation and its recall in the receipt."""
        headers = self.receipt.headers
        if not self.make_view.speaks_chat and self.identity.stored_scope is not None:
            self.receipt.memory.turn_name = make_turn_name(context)
            self.receipt.memory.is_off_record = context.plan.is_off_record
        search = prompt.recall.search
        if search is not None:
            self.receipt.memory.recalled = len(search.choice.hits)
        self.receipt.memory.agent_row = context.agent.id
        headers["x-mnemogate-agent"] = context.agent.uid
        headers["x-mnemogate-conversation"] = context.conversation_uid
        headers["x-mnemogate-recalled-tokens"] = str(prompt.recall.note_tokens)
        headers["x-mnemogate-injected-tokens"] = str(self.receipt.prompt.injected_tokens)
        headers["x-mnemogate-recall"] = "unavailable" if prompt.recall.failure else None


def note_identity(receipt: Receipt, identity: Identity) -> None:
    """Notes the user of a request, and whether an application makes the request for itself."""
    receipt.user = identity.user or ""
    if identity.side_request is not None:
        # A name of the settings may have any letters.
        receipt.headers["x-mnemogate-side-request"] = quote(identity.side_request, safe=" ")


def make_native_call(
    native: NativeRequest,
    *,
    forwarded: Forwarded,
    identity: Identity,
    spec: AgentSpec,
    route: Route,
    sink: Sink,
    receipt: Receipt,
) -> ChatCall:
    """Returns the call of a request that goes upstream in its own dialect, whatever the endpoint is."""
    kind = ConversationKind.CLIENT
    if native.conversation_id is not None and identity.sends_new_only:
        kind = ConversationKind.APPENDED
    if native.conversation_id is None:
        spec = replace(spec, history="client")
    return ChatCall(
        request=native.chat,
        forwarded=forwarded,
        identity=identity,
        spec=spec,
        route=route,
        kind=kind,
        make_view=UnseenView,
        sink=sink,
        receipt=receipt,
        native_request=native,
    )
