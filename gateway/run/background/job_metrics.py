"""Metrics of background work, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from msgspec.structs import asdict

from gateway.metrics import Metrics
from storage.batch_records import BatchCounts, BatchState
from storage.errors import StoreError
from storage.records import JobState


class BatchMetrics:
    """Adds the figures of batches. read: batches by state, and the items of those that have not ended."""

    def __init__(
        self,
        metrics: Metrics,
        read: Callable[[], Awaitable[tuple[Mapping[BatchState, int], BatchCounts]]],
    ) -> None:
        self._read = read
        self._states: Mapping[BatchState, int] = {}
        self._items: BatchCounts | None = None
        self.tokens = metrics.add_counter("batch_tokens", "Tokens that batches used.")
        states = "Batches by their state."
        metrics.add_gauge("batches", states, lambda: {(s,): n for s, n in self._states.items()}, "state")
        items = "Items of batches that have not ended, by their state."
        metrics.add_gauge("batch_items", items, self._by_state, "state")
        metrics.refresh_with(self._refresh)

    def _by_state(self) -> dict[tuple[str, ...], int]:
        return {} if self._items is None else {(s,): n for s, n in asdict(self._items).items()}

    async def _refresh(self) -> None:
        try:
            self._states, self._items = await self._read()
        except StoreError:
            self._states, self._items = {}, None


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

    def call(self, outcome: str, tokens: int) -> None:
        """Counts a call of a model or embedder. outcome: ok, failed, refused (over the budget)."""
        self._calls.inc(outcome)
        self._tokens.inc(by=tokens)

    async def _refresh(self) -> None:
        try:
            self._counts = await self._count()
        except StoreError:
            # No figure is better than a wrong one.
            self._counts = {}
