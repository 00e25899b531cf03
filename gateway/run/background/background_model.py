"""Background calls of models: few at a time, within a budget of tokens for each project and day.

They have connections of their own, so that they never stand in the way of a live turn. Jobs call here, and requests for
a summary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from msgspec import Struct

from adapters.base import Provider
from adapters.errors import ProviderError
from adapters.reply_headers import read_retry_after
from adapters.token_counts import BYTES_PER_TOKEN
from adapters.types import ModelRequest
from gateway.core.dates import DAY_S
from gateway.core.finish_reasons import read_finish_reason
from gateway.core.turn.refusal import is_account_refusal
from gateway.core.turn.upstream_error import find_error_in_success_body, read_retry_delay
from gateway.core.usage.reported import find_reported_counts
from gateway.errors import UnknownModel
from gateway.run.background.budget import CallOutcome, DailyBudget
from gateway.run.background.job_context import JobFailed, JobPostponed
from gateway.run.background.memory_call import open_memory_call
from gateway.run.receipts import find_current_receipt
from gateway.run.upstream.propagation import choose_propagation, with_trace_headers
from gateway.run.upstream.provider_errors import FAILURE_WORDS, classify_failure
from gateway.run.upstream.route import Route, make_unknown_model_error, resolve_route
from gateway.run.upstream_call import PromptFacts, UpstreamCall
from gateway.settings import Settings, UpstreamSettings
from storage.run_records import TokenCounts

# The statuses of refusals for which the request is at fault, so that it would be refused each time.
REFUSAL_STATUSES = (400, 413, 422)
# The longest time of one call. Chosen: a model on a machine of its own may need a minute for a summary.
CALL_S = 120.0
# The pause after an upstream was busy and gave no Retry-After.
BUSY_S = 30.0
# The most bytes of a reply, far above any: a model writes some hundred kB. It bounds the memory that a faulty upstream
# can take.
_MAX_REPLY_BYTES = 8 * 1024 * 1024


class RequestRefused(JobFailed):
    """The model refuses this request, for its content or its form."""


class _UnreadableReply(JobFailed):
    """A reply of status 200 is no chat completion."""

    def __init__(self, model: str, counts: TokenCounts) -> None:
        """Makes the error.

        model: `BackgroundModel.full_name`.
        counts: the tokens that the reply reports.
        """
        super().__init__(f"{model} answered with something that is no chat completion")
        self.counts = counts


class ModelAnswer(Struct, frozen=True):
    """A whole reply."""

    # The message of the model, as the upstream gave it.
    message: dict[str, Any]
    # The finish_reason, as `read_finish_reason` returns it.
    finish_reason: str
    # The tokens of the call, as the upstream has counted them, or estimated.
    counts: TokenCounts

    @property
    def tokens(self) -> int:
        """The tokens of the prompt and the reply together."""
        return self.counts.prompt + self.counts.completion

    @property
    def text(self) -> str:
        content = self.message.get("content")
        return content if isinstance(content, str) else ""


def find_background_route(settings: Settings) -> Route | None:
    """Returns the route of background calls; None: no model is named, and nothing that needs one is done.

    Raises: SettingsError: no upstream answers to the name.
    """
    model = settings.background_model
    if model is None:
        return None
    try:
        return resolve_route(settings, model, is_named_by_operator=True)
    except UnknownModel as error:
        raise make_unknown_model_error(settings, "memory.background_model", error) from error


@dataclass(eq=False)
class BackgroundModel:
    """Calls one model of one provider, within bounds."""

    # Sends the calls.
    provider: Provider
    # The name of the model at its upstream.
    model: str
    # The upstream in the settings.
    upstream: UpstreamSettings
    # The tokens that background work may use in a day.
    budget: DailyBudget
    # The slots of the upstream's calls, which its models share. Each call holds one.
    slots: asyncio.Semaphore
    # The longest time of a whole call.
    timeout_s: float = CALL_S

    @property
    def full_name(self) -> str:
        """The name of the model in errors, with its upstream, since an operator looks for the key or the server."""
        return f"the background model {self.model} of the upstream {self.upstream.name}"

    def with_model(self, model: str) -> BackgroundModel:
        """Returns another model of the provider, which shares its connections and the bound on calls at a time."""
        return replace(self, model=model)

    async def ask(
        self,
        project: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
        agent_row: int = 0,
        is_background: bool = True,
    ) -> ModelAnswer:
        """Asks for one whole reply.

        max_tokens: the most tokens of the reply, sent under the name that the upstream takes; None: no limit is sent.
        agent_row: the row of the memory for which the model is asked; 0: no memory.
        is_background: True: the call counts for the day's budget; False: it counts as a call of the client's request.

        Raises:
            JobPostponed: the day's budget is used up, or the upstream is busy.
            RequestRefused: the upstream refuses the request.
            JobFailed: any other failure.
        """
        request = self._make_request(messages, tools, max_tokens)

        def count(outcome: CallOutcome, counts: TokenCounts) -> None:
            if is_background:
                self.budget.spend(project, agent_row, self.upstream.name, self.model, counts, outcome=outcome)

        async with self.slots:
            if is_background:
                await self.budget.check(project)
            try:
                with open_memory_call(
                    request, self.upstream.name, self.upstream.kind, self.model, is_background=is_background
                ) as call:
                    call.prompt = PromptFacts(max_tokens=max_tokens)
                    async with asyncio.timeout(self.timeout_s):
                        raw = await self._send_request(request, call)
                    answer = _read_answer(raw, len(request.body), call, self.full_name)
            except JobFailed as error:
                count("failed", error.counts if isinstance(error, _UnreadableReply) else TokenCounts())
                raise
            except TimeoutError:
                count("failed", TokenCounts())
                raise JobFailed(f"{self.full_name} gave no answer in {self.timeout_s:g} s") from None
            except ProviderError as error:
                count("failed", TokenCounts())
                failure = FAILURE_WORDS[classify_failure(error).kind]
                raise JobFailed(f"{self.full_name} {failure}") from error
            count("ok", answer.counts)
            return answer

    def _make_request(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        max_tokens: int | None,
    ) -> ModelRequest:
        """Returns the request for a whole reply, in the fields that the model takes."""
        capabilities = self.provider.capabilities
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        if max_tokens is not None:
            # Some of the models that know the newer name refuse the older one.
            body["max_completion_tokens" if capabilities.max_completion_tokens else "max_tokens"] = max_tokens
        if tools:
            body["tools"] = list(tools)
            if effort := capabilities.effort_with_tools(self.model):
                body["reasoning_effort"] = effort
        return ModelRequest(orjson.dumps(body))

    async def aclose(self) -> None:
        await self.provider.aclose()

    async def _send_request(self, request: ModelRequest, call: UpstreamCall) -> bytes:
        """Returns the body of a reply of status 200.

        Raises: JobFailed: its message holds nothing of the request; ProviderError.
        """
        propagates = choose_propagation(self.upstream, self.provider)
        traced_request = with_trace_headers(request, find_current_receipt(), call, propagates=propagates)
        reply = await self.provider.send(traced_request)
        call.status = reply.status
        try:
            body = await reply.read(_MAX_REPLY_BYTES)
            call.note_piece(body)
            call.received_chars = len(body)
        finally:
            await reply.aclose()
        if reply.status == 200 and (error := find_error_in_success_body(body)) is not None:
            call.status, body = error.status, error.body
        if call.status == 429:
            wait_s = read_retry_after(reply.headers, self.budget.now()) or read_retry_delay(body)
            # "At once", or a date that is over by this clock, would be a loop.
            raise JobPostponed(f"{self.full_name} is busy (429)", min(wait_s or BUSY_S, DAY_S))
        if call.status != 200:
            is_refused = call.status in REFUSAL_STATUSES and not is_account_refusal(call.status, body)
            failure = RequestRefused if is_refused else JobFailed
            raise failure(f"{self.full_name} answered {call.status}")
        return body


@dataclass(eq=False)
class BackgroundModels:
    """The models that are called in the background. The models of one upstream share its provider and bounds.

    Callers name the models of their agents' summaries, so the number of models has no bound, and a model has no
    provider of its own.
    """

    # The settings of the process.
    settings: Settings
    # Returns a provider for a route, with connections of its own.
    make_provider: Callable[[Route], Provider]
    # The daily budget that all models share.
    budget: DailyBudget
    # The most calls of an upstream at a time.
    concurrency: int
    # One model of each upstream, by the upstream's name.
    _by_upstream: dict[str, BackgroundModel] = field(default_factory=dict, init=False)

    def get_model(self, route: Route) -> BackgroundModel:
        """Returns the model that a route names first. Raises: SettingsError."""
        model = self._by_upstream.get(route.upstream)
        if model is None:
            model = self._by_upstream[route.upstream] = BackgroundModel(
                provider=self.make_provider(route),
                model=route.model,
                upstream=self.settings.get_upstream(route.upstream),
                budget=self.budget,
                slots=asyncio.Semaphore(self.concurrency),
            )
        return model.with_model(route.model)

    async def aclose(self) -> None:
        for each in self._by_upstream.values():
            await each.aclose()


def _read_answer(raw: bytes, request_bytes: int, call: UpstreamCall, model: str) -> ModelAnswer:
    """Returns the answer in a chat completion, and notes the reported tokens in its call.

    model: `BackgroundModel.full_name`.

    Raises: _UnreadableReply.
    """
    try:
        body = orjson.loads(raw)
        call.counts = counts = find_reported_counts(body.get("usage"))
        choice = body["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError
        if counts is None:
            counts = TokenCounts(request_bytes // BYTES_PER_TOKEN, len(raw) // BYTES_PER_TOKEN)
        return ModelAnswer(message, read_finish_reason(choice.get("finish_reason")), counts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        call.failure = "broke"
        raise _UnreadableReply(model, call.counts or TokenCounts()) from None
