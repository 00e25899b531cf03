"""The request of a chat completion as one endpoint gets it, whichever that will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Capabilities, ModelRequest
from gateway.core.agent import AgentSpec
from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.kind import ConversationKind
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.envelope import asks_to_think, consumed, developer_places, untranslatable
from gateway.core.request.identity import Identity
from gateway.core.request.native_body import NO_ADDITIONS, NativeBody, UpstreamBody
from gateway.core.turn.client_view import MakesUnseen, MakesView
from gateway.core.turn.guide import ANYTHING, Offer
from gateway.core.upstream.policy import Target
from gateway.run.memory.fit import counted_usage, fit
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.run.memory.stored_turns import turn_name
from gateway.run.native_request import NativeRequest
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.upstream.failover import Endpoint
from gateway.run.upstream.route import Route

# Claude thinks at the temperature 1 alone (build-with-claude/extended-thinking).
_NOT_WHEN_THINKING = frozenset({"temperature"})
_NOTHING_REFUSED: frozenset[str] = frozenset()
_BETA = "anthropic-beta"
NATIVE_FORM = EndpointForm()  # nothing of such a request is read here


class Passes(Struct, frozen=True):
    """The parts of a caller's request that may go upstream with what is made of it."""

    headers: tuple[tuple[str, str], ...] = ()
    credential: str | None = None


@dataclass(slots=True)
class ChatCall:
    """A chat completion, or a step of a run: the request, its agent and route, and where the reply goes."""

    request: ChatRequest
    passes: Passes
    identity: Identity
    spec: AgentSpec
    route: Route
    # The kind of its conversation.
    kind: ConversationKind
    # That of the dialect in which the reply is shown.
    view: MakesView
    sink: Sink
    receipt: Receipt
    # As in its reply's header, once it is known: on, read, off, none or unavailable.
    memory_state: str = ""
    # The request in its own dialect, in which it goes upstream.
    native: NativeRequest | None = None

    async def request_as_it_came(self, target: Target, endpoint: Endpoint) -> ModelRequest:
        """Returns the request as it came, where the gateway adds nothing."""
        if self.native is not None:
            self.receipt.headers["x-mnemogate-memory"] = self.memory_state
            return self._of_native_request(self.native, target, self.spec.system)
        native = self.request.native
        if native is not None and endpoint.provider.capabilities.speaks_messages:
            self.fill_receipt(NATIVE_FORM)
            additions = replace(NO_ADDITIONS, is_fallback=self._is_fallback(target))
            return self._of_native_body(target, native, native.render(target.model, additions))
        form = form_for(self.request, endpoint, target.model)
        if target.context_window is not None:
            prompt = Prompt(self.request, target, form)
            prompt = replace(prompt, window=await fit(prompt))
            self.fill_receipt(form, prompt)
            return self._with_credential(target, prompt.body())
        self.fill_receipt(form)
        body = self.request.raw
        is_changed = form.consumed or form.as_system or target.model != self.request.model
        self.receipt.hides_usage = hides_usage = (
            form.asks_usage and self.request.stream and not self.request.wants_usage
        )
        if is_changed or hides_usage or self.request.added_fields & form.refused:
            body = Prompt(self.request, target, form).body()
        return self._with_credential(target, body)

    def request_of(
        self,
        target: Target,
        endpoint: Endpoint,
        prompt: Prompt,
        more: Sequence[WireMessage] = (),
        budget_tokens: int | None = None,
        offer: Offer = ANYTHING,
    ) -> ModelRequest:
        """Returns the request for a prompt, in the dialect of its endpoint.

        The parameters are those of `Prompt.body`.
        """
        if self.native is not None:
            return self._of_native_request(self.native, target, prompt.system, prompt.composition.notes)
        native = self.request.native
        if native is None or not endpoint.provider.capabilities.speaks_messages:
            return self._with_credential(target, prompt.body(more, budget_tokens, offer))
        additions = prompt.additions(more, budget_tokens, offer)
        made = native.render(target.model, replace(additions, is_fallback=self._is_fallback(target)))
        return self._of_native_body(target, native, made)._replace(native_first_block=made.first_block)

    def _is_fallback(self, target: Target) -> bool:
        """Returns whether another model answers than the one that was asked."""
        return target.rank > 0 and target.model != self.route.model

    def _of_native_request(
        self, native: NativeRequest, target: Target, system: str, notes: Mapping[int, str] | None = None
    ) -> ModelRequest:
        body = native.body(target.model, system, notes)
        return self._with_credential(target, body)._replace(path=native.path, query="")

    def _of_native_body(self, target: Target, native: NativeBody, made: UpstreamBody) -> ModelRequest:
        request = self._with_credential(target, made.body)
        headers = request.headers
        if made.betas:
            asked = [value for name, value in headers if name == _BETA]
            headers = (
                *(each for each in headers if each[0] != _BETA),
                (_BETA, ",".join((*asked, *made.betas))),
            )
        return request._replace(path=native.path, query="", headers=headers)

    def _with_credential(self, target: Target, body: bytes) -> ModelRequest:
        """Returns the request with the credential and the query that this target may see."""
        passes, request = self.passes, self.request
        if not target.gets_credential(self.route.upstream):
            return ModelRequest(body, passes.headers, wants_stream=request.stream)
        return ModelRequest(body, passes.headers, passes.credential, request.query, request.stream)

    def fill_receipt(
        self, form: EndpointForm, prompt: Prompt | None = None, context: MemoryContext | None = None
    ) -> None:
        """Fills the receipt: the memory, the conversation, and the changes to the request, for this endpoint.

        prompt: None where the request goes as it came.
        context: None where memory has no part in it.
        """
        headers = self.receipt.headers
        headers["x-mnemogate-memory"] = self.memory_state
        headers["x-mnemogate-consumed"] = (
            ",".join((*self.request.consumed, *form.consumed, *form.untranslatable)) or None
        )
        headers["x-mnemogate-adapted"] = "developer_role" if form.as_system else None
        self.receipt.prompt_tokens = self.receipt.injected_tokens = 0
        if prompt is not None:
            self.receipt.prompt_tokens, self.receipt.injected_tokens = (
                prompt.window.tokens,
                prompt.injected_tokens,
            )
            headers["x-mnemogate-evicted-tokens"] = str(prompt.window.evicted_tokens)
            self.receipt.count_tokens = partial(counted_usage, prompt)
        if self.receipt.trace is not None:
            self.receipt.max_tokens = self.request.max_tokens
            self.receipt.is_compacted = prompt is not None and bool(prompt.window.summary)
        if context is not None and prompt is not None:
            if not self.view.speaks_chat:
                self.receipt.turn = turn_name(context)
            sought = prompt.recall.sought
            if sought is not None:
                self.receipt.recalled = len(sought.chosen)
            self.receipt.memory_row = context.agent.id
            headers["x-mnemogate-agent"] = context.agent.uid
            headers["x-mnemogate-conversation"] = context.conversation_uid
            headers["x-mnemogate-recalled-tokens"] = str(prompt.recall.tokens)
            headers["x-mnemogate-injected-tokens"] = str(self.receipt.injected_tokens)
            headers["x-mnemogate-recall"] = "unavailable" if prompt.recall.has_failed else None


def native_call(
    native: NativeRequest,
    passes: Passes,
    identity: Identity,
    spec: AgentSpec,
    route: Route,
    sink: Sink,
    receipt: Receipt,
) -> ChatCall:
    """Returns a native request with everything that decides how it is answered."""
    kind = ConversationKind.CLIENT
    if native.conversation is not None and identity.append:
        kind = ConversationKind.APPENDED
    if native.conversation is None:
        spec = replace(spec, history="client")
    return ChatCall(
        native.chat, passes, identity, spec, route, kind, MakesUnseen(), sink, receipt, native=native
    )


def form_for(request: ChatRequest, endpoint: Endpoint, model: str) -> EndpointForm:
    """Returns how the request has to look for an endpoint and its model, by what they are known to take."""
    known = endpoint.provider.capabilities
    if request.native is not None and known.speaks_messages:
        return replace(NATIVE_FORM, binds=True) if known.binds_thoughts(model) else NATIVE_FORM
    names = consumed(request.json, known.metadata)
    takes_developer = known.developer_role is not False
    return _form(
        names,
        tuple(each for each in untranslatable(request.json, known.untranslatable_fields) if each not in names)
        if known.untranslatable_fields
        else (),
        () if takes_developer else developer_places(request.messages),
        known.stream_usage,
        (known.can_force_when_thinking or not asks_to_think(request.json)) and known.can_force(model),
        _refused(request, known, model) if request.added_fields else _NOTHING_REFUSED,
        endpoint.asks_usage,
        request.shows_thoughts and known.thinks_when_asked(model),
    )


def _refused(request: ChatRequest, known: Capabilities, model: str) -> frozenset[str]:
    """Returns the fields that the model does not take with this request."""
    refused = known.refused_fields(model)
    return refused | _NOT_WHEN_THINKING if asks_to_think(request.json) else refused


@lru_cache(maxsize=256)  # nearly all requests share a few
def _form(
    consumed: tuple[str, ...],
    untranslatable: tuple[str, ...],
    as_system: tuple[int, ...],
    takes_usage: bool | None,
    can_force: bool,
    refused: frozenset[str],
    asks_usage: bool,
    thinks_on_request: bool,
) -> EndpointForm:
    return EndpointForm(
        consumed, untranslatable, as_system, takes_usage, can_force, refused,
        asks_usage=asks_usage, thinks_on_request=thinks_on_request,
    )  # fmt: skip
