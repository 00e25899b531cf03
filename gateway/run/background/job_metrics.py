"""Metrics of background work, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import counter_family
from storage.errors import StoreError
from storage.records import JobState


class JobMetrics(Collector):
    """Lives in the event loop's thread. count: how many jobs there are by state."""

    def __init__(self, count: Callable[[], Awaitable[Mapping[JobState, int]]]) -> None:
        self._count = count
        self._counts: Mapping[JobState, int] = {}
        self._attempts: dict[tuple[str, ...], int] = {}
        self._calls: dict[tuple[str, ...], int] = {}
        self._tokens = 0

    def attempt(self, kind: str, outcome: str) -> None:
        """Counts an attempt of a job. outcome: finished, retrying, dead, dropped, lost, unwritten."""
        self._attempts[kind, outcome] = self._attempts.get((kind, outcome), 0) + 1

    def call(self, outcome: str, tokens: int) -> None:
        """Counts a call of a model or embedder. outcome: ok, failed, refused (over the budget)."""
        self._calls[outcome,] = self._calls.get((outcome,), 0) + 1
        self._tokens += tokens

    def collect(self) -> Iterator[Metric]:
        attempts = "Attempts of jobs by what became of them."
        yield counter_family("job_attempts", attempts, ("kind", "outcome"), self._attempts)
        jobs = GaugeMetricFamily("mnemogate_jobs", "Jobs by their state.", labels=("state",))
        for state, count in self._counts.items():
            jobs.add_metric((state,), count)
        yield jobs
        calls = "Calls of the background model."
        yield counter_family("background_calls", calls, ("outcome",), self._calls)
        yield CounterMetricFamily(
            "mnemogate_background_tokens", "Tokens that background calls used.", value=self._tokens
        )

    async def refresh(self) -> None:
        """Counts the jobs again; to be awaited before each scrape."""
        try:
            self._counts = await self._count()
        except StoreError:
            # No figure is better than a wrong one.
            self._counts = {}
