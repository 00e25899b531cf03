"""The attempts of one request: its endpoints are asked one after the other until one answers.

`gateway.core.upstream.policy` decides the next step; this module sends, waits and counts. `Attempts` belongs to one
request, and the code that relays the reply need not know how many endpoints were asked. A request is not sent again
once its reply has begun, so no client gets anything twice. The first answer settles the endpoint, to which further
rounds of the turn go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Protocol, assert_never

from msgspec import Struct

from adapters.base import ModelReply
from adapters.errors import ProviderError
from adapters.reply_headers import read_retry_after
from adapters.types import CHAT_PATH, ModelRequest
from gateway.core.turn.refusal import RefusedContent, is_filter_verdict
from gateway.core.turn.upstream_error import is_empty_completion, read_retry_delay
from gateway.core.upstream.context_window import ContextWindows, make_model_key
from gateway.core.upstream.policy import (
    TRANSIENT_STATUSES,
    Failure,
    NextAttempt,
    NextStep,
    Target,
    choose_next,
)
from gateway.errors import ContextExceeded, GatewayError, UpstreamError, UpstreamRefused, UpstreamTooLarge
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.upstream.attempt_record import AttemptRecord
from gateway.run.upstream.candidates import Candidate, Candidates
from gateway.run.upstream.endpoint import Endpoint, RepairedRequest, RequestMaker, RequestRepairer
from gateway.run.upstream.error_replies import (
    BegunReply,
    begin_reply,
    discard_reply,
    read_whole_error,
)
from gateway.run.upstream.propagation import with_trace_headers
from gateway.run.upstream.provider_errors import classify_failure
from gateway.run.upstream.request_repair import RequestRepair, RequestSource
from gateway.run.upstream.unbegun_stream import UnbegunStream
from gateway.run.upstream_call import UpstreamCall

# The statuses of refusals that may concern the content of a request.
_REFUSAL_STATUSES: Final = frozenset((400, 403, 413, 422, 451))
_log = logging.getLogger("mnemogate")


def no_caller_error() -> None:
    """Returns None: the caller had sent its whole request before an upstream was called."""


class AttemptServices(Protocol):
    """The part of `Failover` that all attempts of the process share."""

    # Returns the seconds of a monotonic clock.
    now: Callable[[], float]
    # Returns the seconds since the epoch.
    wall_clock: Callable[[], float]
    # Waits for a number of seconds.
    sleep: Callable[[float], Awaitable[None]]
    # Returns a random number from 0 to 1.
    chance: Callable[[], float]
    # The metrics of the process.
    metrics: Metrics
    # True: the first event of a stream is read before its status is passed on.
    may_peek: bool
    # The windows of models, as far as they are known.
    context_windows: ContextWindows


class _Answer(Struct, frozen=True):
    """The result of an attempt with a reply that goes to the client."""

    reply: ModelReply


class _FailedAttempt(Struct, frozen=True):
    """The result of an attempt that failed."""

    # The kind of the failure.
    failure: Failure
    # The reply of the upstream, which has an error; None: the upstream has not answered.
    reply: ModelReply | None = None
    # The error in place of a reply; None: the upstream has answered.
    error: ProviderError | None = None


class _PreparedAttempt(Struct, frozen=True):
    """The attempt after a failed one, before it is made."""

    # The request that is sent.
    request: ModelRequest
    # The candidate that is asked; None: the current candidate is asked again.
    candidate: Candidate | None = None
    # The seconds to wait before the attempt.
    wait_s: float = 0.0


@dataclass(slots=True)
class Attempts:
    """The attempts of one request, within a `with` block that ends when the request is over."""

    # The clocks, metrics and windows of the process.
    _services: AttemptServices
    # The endpoints that may be asked.
    _candidates: Candidates
    # The receipt of the request.
    _receipt: Receipt
    # True: a request that may have had an effect is not sent again (a request that got a 429 had none).
    sends_once: bool = False
    # Returns the error of a caller that broke its request off, else None. No upstream is to blame for such a request.
    caller_error: Callable[[], Exception | None] = no_caller_error
    # Notes each attempt.
    _record: AttemptRecord = field(init=False)
    # The number of the endpoint's failures in this round.
    _failure_count: int = field(default=0, init=False)
    # True: an endpoint has answered; further rounds of the turn go to it.
    _is_settled: bool = field(default=False, init=False)
    # Repairs the requests that endpoints refuse.
    _repair: RequestRepair = field(init=False)

    def __post_init__(self) -> None:
        self._record = AttemptRecord(self._receipt, self._services.metrics)
        self._repair = RequestRepair(self._services.context_windows, self._receipt)

    def __enter__(self) -> Attempts:
        self._candidates.begin_request()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the request. An upstream's error gets the headers of the receipt."""
        self._record.end_reply()
        if error is None:
            self._record_success()
        elif isinstance(error, UpstreamError):
            self.note_broken(error)
            error.headers = tuple(self._receipt.note_head())
        self._candidates.end_request()
        if (last_call := self._receipt.last_call) is not None:
            last_call.end()

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the next attempt; after an answer, the endpoint that answered."""
        return self._candidates.current.endpoint

    @property
    def target(self) -> Target:
        """The target at that endpoint."""
        return self._candidates.current.target

    @property
    def call(self) -> UpstreamCall:
        """The call of the receipt that is under way, or was the last one."""
        return self._record.call

    @property
    def may_ask_usage(self) -> bool:
        """True if an endpoint that is asked for the usage of its streams may answer."""
        return self._candidates.may_ask_usage

    async def send(self, make: RequestMaker, repairer: RequestRepairer | None = None) -> ModelReply:
        """Returns the first reply that is no failure, or else the reply of the last failure, as `ModelSource.send`."""
        if self._is_settled:  # the reply of the round before has ended
            self._record.end_reply()
            self._record_success()
        self._record.begin_call()
        self._failure_count = 0
        source = RequestSource(make, repairer)
        return await self._send_until_answered(await self._make_first_request(make), source)

    def skip_fallback(self) -> bool:
        """Leaves out a fallback that would be asked first: its window is too small for the request.

        Returns False as `Candidates.skip_fallback` does. It may be called before the `with` block, and within.
        """
        return self._candidates.skip_fallback()

    def note_prompt_tokens(self, estimated: int, actual: int, max_tokens: int) -> None:
        """Notes the number of a prompt's tokens, as `ModelSource.note_prompt_tokens`."""
        self._services.context_windows.note_count(make_model_key(self.target), estimated, actual, max_tokens)

    def note_broken(self, error: GatewayError) -> None:
        """Notes that a reply which had begun broke off. An error before a reply is noted already."""
        if not self._record.is_answered:
            return
        self._record.note_break(self.endpoint.name, error)
        # All replies share the gateway's bounds, and one caller's requests must not open the circuit for all.
        if not isinstance(error, UpstreamTooLarge | UpstreamRefused):
            self.endpoint.health.record_break(self.endpoint.policy, self._services.now())

    async def _make_first_request(self, make: RequestMaker) -> ModelRequest:
        """Returns the request for the current candidate, or for the next one if it is a fallback with a small window.

        Raises: ContextExceeded: no window is large enough.
        """
        while True:
            try:
                return await make(self.target, self.endpoint)
            except ContextExceeded:
                # Hidden rounds of one turn stay at the endpoint that answered the first round.
                if self._is_settled or not self.skip_fallback():
                    raise

    async def _send_until_answered(self, request: ModelRequest, source: RequestSource) -> ModelReply:
        """Sends a request, and those that follow from its failures. Returns and raises as `send` does."""
        while True:
            match await self._make_attempt(request, source):
                case _Answer(reply=reply):
                    return reply
                case RepairedRequest() as repaired_request:
                    self._candidates.set_target(repaired_request.target)
                    request = repaired_request.request
                case _FailedAttempt() as failed_attempt:
                    next_request = await self._make_request_after(failed_attempt, request, source.make)
                    if next_request is None:
                        return self._give_up(failed_attempt)
                    request = next_request
                case unknown:
                    assert_never(unknown)

    async def _make_request_after(
        self, failed_attempt: _FailedAttempt, request: ModelRequest, make: RequestMaker
    ) -> ModelRequest | None:
        """Waits for the attempt after a failed one. Returns its request, or None if there is no further attempt."""
        self._failure_count += 1
        try:
            prepared = await self._prepare_attempt(failed_attempt.failure, request, make)
        except BaseException:
            if failed_attempt.reply is not None:
                await failed_attempt.reply.aclose()
            raise
        if prepared is None:
            return None
        self._record.note_try(self.endpoint.name, failed_attempt.failure.kind)
        # The error is dropped only now, because the error of the last attempt goes to the client.
        if failed_attempt.reply is not None:
            await discard_reply(failed_attempt.reply)
        if prepared.wait_s:
            await self._services.sleep(prepared.wait_s)
        if prepared.candidate is not None:
            self._move_to(prepared.candidate)
        return prepared.request

    async def _prepare_attempt(
        self, failure: Failure, request: ModelRequest, make: RequestMaker
    ) -> _PreparedAttempt | None:
        """Prepares the attempt after a failed one. Returns None if there is no further attempt.

        A candidate is taken off the list, and its request is made. If the candidate's window is too small for a request
        of which nothing may be left out, the step is chosen again without the candidate.
        """
        while True:
            next_attempt, wait_s = self._choose_next_step(failure, request)
            if next_attempt is NextAttempt.STOP:
                return None
            if next_attempt is NextAttempt.RETRY:
                return _PreparedAttempt(request, wait_s=wait_s)
            candidate = self._candidates.pop_next()
            with suppress(ContextExceeded):
                next_request = await make(candidate.target, candidate.endpoint)
                return _PreparedAttempt(next_request, candidate, wait_s)

    def _move_to(self, candidate: Candidate) -> None:
        """Makes a candidate the current one."""
        self._candidates.move_to(candidate)
        self._failure_count = 0
        self._repair.begin_endpoint()

    async def _make_attempt(
        self, request: ModelRequest, source: RequestSource
    ) -> _Answer | RepairedRequest | _FailedAttempt:
        """Sends a request once. Returns the result of the attempt."""
        self._record.begin_attempt(self._candidates.current, request)
        with self.endpoint.health.begin_attempt(self.endpoint.policy):
            try:
                begun_reply = await self._send_once(request)
                failure = self._find_failure(begun_reply, request)
                if failure is not None:
                    return self._record_failure(_FailedAttempt(failure, begun_reply.reply))
                # Any other status is an answer, even if it refuses the request.
                self.endpoint.health.record_answer(self.target.model)
                return await self._judge_answer(begun_reply, request, source)
            except ProviderError as error:
                # An upload that the caller broke off is no failure of the upstream.
                if (caller_error := self.caller_error()) is not None:
                    raise caller_error from error
                return self._record_failure(_FailedAttempt(classify_failure(error), error=error))

    async def _send_once(self, request: ModelRequest) -> BegunReply:
        """Sends a request to the current endpoint. Returns its reply as `begin_reply` does."""
        if self.sends_once:
            request = request._replace(sends_once=True)
        propagates = self.endpoint.propagates
        if self._receipt.trace is not None or propagates is False:
            request = with_trace_headers(request, self._receipt, self.call, propagates=propagates)
        reply = await self.endpoint.provider.send(request)
        return await begin_reply(reply, request, may_peek=self._services.may_peek)

    def _find_failure(self, begun_reply: BegunReply, request: ModelRequest) -> Failure | None:
        """Returns the failure for which another attempt may be made, or None if the reply is an answer."""
        reply = begun_reply.reply
        if reply.status in TRANSIENT_STATUSES:
            retry_after_s = read_retry_after(reply.headers, self._services.wall_clock())
            if retry_after_s is None:
                retry_after_s = read_retry_delay(begun_reply.begin)
            # OpenAI and Anthropic say so of an error that a retry does not avoid. Their SDKs do not retry then.
            is_repeatable = ("x-should-retry", "false") not in reply.headers
            return Failure(str(reply.status), is_repeatable=is_repeatable, retry_after_s=retry_after_s)
        may_fail_over = request.path == CHAT_PATH and self._candidates.following and not self._is_settled
        # If no other endpoint can be asked, the client gets the empty reply.
        if (
            may_fail_over
            and begun_reply.is_whole
            and reply.status == 200
            and is_empty_completion(begun_reply.begin)
        ):
            return Failure("broke")
        return None

    async def _judge_answer(
        self, begun_reply: BegunReply, request: ModelRequest, source: RequestSource
    ) -> _Answer | RepairedRequest:
        """Returns an answer that goes to the client, or the request without the content that the answer refuses."""
        reply = begun_reply.reply
        candidate = self._candidates.current
        repairer = source.repairer
        repaired_request = None
        outcome = str(reply.status)
        if reply.status in _REFUSAL_STATUSES and (repairer is not None or request.path == CHAT_PATH):
            reply = error = await read_whole_error(reply)
            repaired_request = await self._repair.repair(error, request, source, candidate)
        elif repairer is not None and is_filter_verdict(begun_reply.begin):
            outcome = "filtered"
            try:
                repaired_request = await self._repair.leave_out(RefusedContent.FILTERED, repairer, candidate)
            except BaseException:
                await reply.aclose()
                raise
        if repaired_request is not None:
            self._record.note_refused_content(self.endpoint.name, outcome)
            await discard_reply(reply)
            return repaired_request
        may_follow = bool(self._candidates.following) or self.endpoint.policy.retries > 0
        is_provisional = begun_reply.is_replaceable and request.path == CHAT_PATH and may_follow
        was_settled = self._is_settled
        self._accept(reply, repairer, is_provisional=is_provisional)
        if is_provisional:
            return _Answer(UnbegunStream(reply, partial(self._replace, request, source, was_settled)))
        return _Answer(reply)

    def _accept(self, reply: ModelReply, repairer: RequestRepairer | None, *, is_provisional: bool) -> None:
        """Notes an answer that goes to the client. is_provisional: the value for `AttemptOutcomes.add`."""
        if reply.status < 400:
            self._repair.note_answer(self.target, repairer)
        self.call.is_streamed = reply.is_stream
        self._record.note_reply(
            self.endpoint.name,
            str(reply.status),
            reply.status,
            is_error=reply.status >= 400,
            is_provisional=is_provisional,
        )
        self._is_settled = True
        if reply.status == 401 and self.endpoint.has_key:
            # The caller gets the answer, but cannot change the key.
            _log.warning(
                "The upstream %s refuses the key of the settings (401). Set another `api_key` for it.",
                self.endpoint.name,
            )

    async def _replace(
        self,
        request: ModelRequest,
        source: RequestSource,
        was_settled: bool,
        failure: Failure,
    ) -> ModelReply | None:
        """Returns the reply in place of a stream that failed before its first event, or None after the last attempt.

        request: the request of the stream.
        source: the source of the stream's request.
        was_settled: True if an endpoint had answered before the stream.

        Raises: ProviderError: the error of the last attempt after the stream.
        """
        self._is_settled = was_settled
        failed_attempt = self._record_failure(_FailedAttempt(failure))
        next_request = await self._make_request_after(failed_attempt, request, source.make)
        if next_request is None:
            self._record.note_failure(self.endpoint.name, failure.kind)
            self._is_settled = True
            return None
        reply = await self._send_until_answered(next_request, source)
        if reply.status >= 400:
            # The head has left, so the client gets the error as an event, which is no break.
            self._record.note_failed_reply(str(reply.status))
        return reply

    def _record_success(self) -> None:
        """Records that the last reply, if there was one, has come to its end."""
        if self._record.has_success:
            self.endpoint.health.record_success(self.target.model)

    def _record_failure(self, failed_attempt: _FailedAttempt) -> _FailedAttempt:
        """Records a failure of the endpoint. Returns the attempt."""
        self.endpoint.record_failure(self.target.model, failed_attempt.failure, self._services.now())
        return failed_attempt

    def _choose_next_step(self, failure: Failure, request: ModelRequest) -> NextStep:
        """Returns the step after a failed attempt. A retry uses up a part of the retry budget."""
        # An upload was read once and cannot be sent again.
        if request.upload is not None:
            return NextStep(NextAttempt.STOP)
        # A request that got a 429 had no effect, so it may be sent again.
        if self.sends_once and failure.was_sent and failure.kind != "429":
            return NextStep(NextAttempt.STOP)
        # Hidden rounds of one turn stay at the endpoint that answered the first round.
        candidates = [] if self._is_settled else self._candidates.following
        health = self.endpoint.health
        step = choose_next(
            failure,
            self.endpoint.policy,
            failure_count=self._failure_count,
            has_peer=any(each.target.rank == self.target.rank for each in candidates[:1]),
            has_fallback=bool(candidates),
            may_retry=health.may_retry,
            chance=self._services.chance(),
        )
        if step.attempt is NextAttempt.RETRY:
            health.retries_left -= 1
        return step

    def _give_up(self, failed_attempt: _FailedAttempt) -> ModelReply:
        """Returns the upstream's own error, which the client gets. Raises: ProviderError: there was no reply."""
        self._is_settled = True
        kind = failed_attempt.failure.kind
        if failed_attempt.reply is None:
            self._record.note_failure(self.endpoint.name, kind)
            assert failed_attempt.error is not None  # an attempt without a reply has an error
            raise failed_attempt.error
        self._record.note_reply(self.endpoint.name, kind, failed_attempt.reply.status, is_error=True)
        return failed_attempt.reply
