"""Metrics of background work, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from gateway.metrics import Metrics
from gateway.run.background.budget import CallOutcome
from storage.errors import StoreError
from storage.records import JobState


class JobMetrics:
    """Adds its figures to the process's. count: how many jobs there are by state."""

    def __init__(self, metrics: Metrics, count: Callable[[], Awaitable[Mapping[JobState, int]]]) -> None:
        self._count = count
        self._counts: Mapping[JobState, int] = {}
        # outcome: finished, retrying, dead, dropped, lost, unwritten.
        attempts = "Attempts of jobs by what became of them."
        self.attempts = metrics.add_counter("job_attempts", attempts, "kind", "outcome")
        metrics.add_gauge(
            "jobs", "Jobs by their state.", lambda: {(s,): n for s, n in self._counts.items()}, "state"
        )
        self._calls = metrics.add_counter("background_calls", "Calls of the background model.", "outcome")
        self._tokens = metrics.add_counter("background_tokens", "Tokens that background calls used.")
        metrics.refresh_with(self._refresh)

    def call(self, outcome: CallOutcome, tokens: int) -> None:
        """Counts a call of a model or embedder."""
        self._calls.inc(outcome)
        self._tokens.inc(by=tokens)

    async def _refresh(self) -> None:
        try:
            self._counts = await self._count()
        except StoreError:
            # No figure is better than a wrong one.
            self._counts = {}
