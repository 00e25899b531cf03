"""The record of a request's attempts: the receipt, the metrics and the headers of the reply show them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from adapters.types import ModelRequest
from gateway.core.usage.estimate import estimate_prompt_tokens
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.upstream.candidates import Candidate
from gateway.run.upstream.provider_errors import get_error_kind
from gateway.run.upstream_call import FailedTry, UpstreamCall


@dataclass(slots=True)
class AttemptOutcomes:
    """The outcomes of the attempts of one request, each counted once."""

    # The metrics of the process.
    metrics: Metrics
    # The endpoint's name and the outcome of each attempt. An outcome is a status, or the kind of failure.
    _outcomes: list[tuple[str, str]] = field(default_factory=list, init=False)
    # True: the next outcome may take the place of the last one, which the metrics do not count yet.
    _is_provisional: bool = field(default=False, init=False)

    def add(self, endpoint: str, outcome: str, *, is_error: bool, is_provisional: bool = False) -> None:
        """Adds an attempt. If the last outcome is provisional, this is the final outcome of the same attempt.

        endpoint: the endpoint's name.
        is_provisional: True: the reply is a stream that another reply may replace until its first event.
        """
        if self._is_provisional:
            self._outcomes.pop()
        self._outcomes.append((endpoint, outcome))
        self._is_provisional = is_provisional
        if not is_provisional:
            self.metrics.upstream_tries.inc(endpoint, outcome)
        if is_error:
            self.metrics.upstream_errors.inc(endpoint, outcome)

    def settle(self) -> None:
        """Counts a provisional outcome as final, since its stream has ended. Idempotent."""
        if self._is_provisional:
            self._is_provisional = False
            self.metrics.upstream_tries.inc(*self._outcomes[-1])

    def render_tries(self) -> str | None:
        """Returns the value of `x-mnemogate-tries`, or None if there was one attempt."""
        return ";".join(map(":".join, self._outcomes)) if len(self._outcomes) > 1 else None


@dataclass(slots=True)
class AttemptRecord:
    """The record of the attempts of one request, for each call of an upstream."""

    # The receipt of the request.
    receipt: Receipt
    # The metrics of the process.
    metrics: Metrics
    # The call of the receipt that is under way, or was the last one.
    call: UpstreamCall = field(init=False)
    # True: the last attempt had a reply, and no failure of the reply is noted yet.
    is_answered: bool = field(default=False, init=False)
    # The outcomes of the attempts.
    _outcomes: AttemptOutcomes = field(init=False)

    def __post_init__(self) -> None:
        self._outcomes = AttemptOutcomes(self.metrics)

    @property
    def has_success(self) -> bool:
        """True if the last attempt had a reply with a status of success."""
        return self.is_answered and self.call.status < 300

    def begin_call(self) -> None:
        """Begins the next call of the receipt."""
        self.call = self.receipt.begin_call()

    def begin_attempt(self, candidate: Candidate, request: ModelRequest) -> None:
        """Notes in the call that a request goes to a candidate."""
        self.is_answered = False
        call = self.call
        call.upstream = candidate.endpoint.upstream
        call.provider = candidate.endpoint.kind
        call.model = candidate.target.model
        call.path = request.path
        call.method = request.method
        call.sent_tokens = estimate_prompt_tokens(request.body)
        call.prompt = self.receipt.prompt
        call.hides_usage = self.receipt.hides_usage

    def note_refused_content(self, endpoint: str, outcome: str) -> None:
        """Notes an attempt that is made again without the content that the endpoint has refused."""
        self._outcomes.add(endpoint, outcome, is_error=True)

    def note_try(self, endpoint: str, kind: str) -> None:
        """Notes a failed attempt after which another one is made. kind: the kind of the failure."""
        self._outcomes.add(endpoint, kind, is_error=True)
        self.call.tries.append(FailedTry(endpoint, kind, time.perf_counter()))

    def note_reply(
        self, endpoint: str, outcome: str, status: int, *, is_error: bool, is_provisional: bool = False
    ) -> None:
        """Notes the reply that the client gets. is_provisional: the value for `AttemptOutcomes.add`."""
        self.is_answered = True
        self.call.status = status
        self._note_last_outcome(endpoint, outcome, is_error=is_error, is_provisional=is_provisional)

    def note_failure(self, endpoint: str, kind: str) -> None:
        """Notes the failure of the last attempt, which has no reply for the client."""
        self.note_failed_reply(kind)
        self._note_last_outcome(endpoint, kind, is_error=True)

    def note_failed_reply(self, kind: str) -> None:
        """Notes that the reply is an error or has broken off. It is counted elsewhere, or not at all."""
        self.is_answered = False
        self.call.failure = kind

    def note_break(self, endpoint: str, error: GatewayError) -> None:
        """Notes that a reply which had begun broke off."""
        kind = get_error_kind(error)
        self.note_failed_reply(kind)
        if self.call.status < 400:  # an error status is counted already
            self.metrics.upstream_errors.inc(endpoint, kind)

    def end_reply(self) -> None:
        """Notes that the last reply has ended, so that no other reply takes its place. Idempotent."""
        self._outcomes.settle()

    def _note_last_outcome(
        self, endpoint: str, outcome: str, *, is_error: bool, is_provisional: bool = False
    ) -> None:
        """Adds the outcome of the attempt that answers the client, and sets the headers of the reply."""
        self._outcomes.add(endpoint, outcome, is_error=is_error, is_provisional=is_provisional)
        self.receipt.headers["x-mnemogate-upstream"] = endpoint
        if (tries := self._outcomes.render_tries()) is not None:
            self.receipt.headers["x-mnemogate-tries"] = tries
