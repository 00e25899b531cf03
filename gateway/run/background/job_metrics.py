"""Metrics of background work, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from gateway.metrics import Metrics
from gateway.run.background.budget import CallOutcome
from storage.errors import StoreError
from storage.job_records import JobState


class JobMetrics:
    """Counters and a gauge of background work."""

    def __init__(self, metrics: Metrics, count_jobs: Callable[[], Awaitable[Mapping[JobState, int]]]) -> None:
        """Adds the metrics. count_jobs: the function that returns the number of jobs by their state."""
        self._count_jobs = count_jobs
        # The number of jobs by their state, as it was read last.
        self._counts: Mapping[JobState, int] = {}
        # Counts attempts by the kind of job and the outcome.
        self._attempts = metrics.add_counter(
            "job_attempts", "Attempts of jobs by what became of them.", "kind", "outcome"
        )
        metrics.add_gauge(
            "jobs",
            "Jobs by their state.",
            lambda: {(state,): count for state, count in self._counts.items()},
            "state",
        )
        # Counts calls by their outcome.
        self._calls = metrics.add_counter("background_calls", "Calls of the background model.", "outcome")
        # Counts the tokens of calls.
        self._tokens = metrics.add_counter("background_tokens", "Tokens that background calls used.")
        metrics.add_refresher(self._refresh)

    def count_attempt(self, kind: str, outcome: str) -> None:
        """Counts an attempt of a job. outcome: finished, retrying, dead, dropped, lost, unwritten."""
        self._attempts.inc(kind, outcome)

    def count_call(self, outcome: CallOutcome, tokens: int) -> None:
        """Counts a call of a model or embedder."""
        self._calls.inc(outcome)
        self._tokens.inc(by=tokens)

    async def _refresh(self) -> None:
        """Reads the number of jobs by their state."""
        try:
            self._counts = await self._count_jobs()
        except StoreError:
            # No figure is better than a wrong one.
            self._counts = {}
