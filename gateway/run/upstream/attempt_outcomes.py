"""The outcomes of a request's attempts: the metrics count them, and `x-mnemogate-tries` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.metrics import Metrics


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
