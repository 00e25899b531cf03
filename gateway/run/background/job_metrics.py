"""What is counted of work beside the conversations, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from storage.errors import StoreError
from storage.records import JobState

__all__ = ["JobMetrics"]


class JobMetrics(Collector):
    """Belongs to the loop's thread. count: how many jobs there are by state."""

    def __init__(self, count: Callable[[], Awaitable[Mapping[JobState, int]]]) -> None:
        self._count = count
        self._counts: Mapping[JobState, int] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._calls: dict[str, int] = {}
        self._tokens = 0

    def attempt(self, kind: str, outcome: str) -> None:
        """outcome: finished, retrying, dead, dropped, lost, unwritten."""
        self._attempts[kind, outcome] = self._attempts.get((kind, outcome), 0) + 1

    def call(self, outcome: str, tokens: int) -> None:
        """outcome: ok, failed, refused (over the budget)."""
        self._calls[outcome] = self._calls.get(outcome, 0) + 1
        self._tokens += tokens

    def collect(self) -> Iterator[Metric]:
        attempts = CounterMetricFamily(
            "mnemogate_job_attempts",
            "Attempts of jobs by what became of them.",
            labels=("kind", "outcome"),
        )
        for labels, count in self._attempts.items():
            attempts.add_metric(labels, count)
        yield attempts
        jobs = GaugeMetricFamily("mnemogate_jobs", "Jobs by their state.", labels=("state",))
        for state, count in self._counts.items():
            jobs.add_metric((state,), count)
        yield jobs
        calls = CounterMetricFamily(
            "mnemogate_background_calls", "Calls of the background model.", labels=("outcome",)
        )
        for outcome, count in self._calls.items():
            calls.add_metric((outcome,), count)
        yield calls
        yield CounterMetricFamily(
            "mnemogate_background_tokens", "Tokens that background calls used.", value=self._tokens
        )

    async def refresh(self) -> None:
        """Counts the jobs anew; to be awaited before each scrape."""
        try:
            self._counts = await self._count()
        except StoreError:  # no figure rather than a wrong one
            self._counts = {}
