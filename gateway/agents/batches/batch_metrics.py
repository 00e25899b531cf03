"""Metrics of batches, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from msgspec.structs import asdict

from gateway.metrics import Metrics
from storage.batch_records import BatchCounts, BatchState
from storage.errors import StoreError


class BatchMetrics:
    """Adds the figures of batches. read: batches by state, and the items of those that have not ended."""

    def __init__(
        self, metrics: Metrics, read: Callable[[], Awaitable[tuple[Mapping[BatchState, int], BatchCounts]]]
    ) -> None:
        self._read = read
        self._states: Mapping[BatchState, int] = {}
        self._items: BatchCounts | None = None
        self.tokens = metrics.add_counter("batch_tokens", "Tokens that batches used.")
        states = "Batches by their state."
        metrics.add_gauge(
            "batches", states, lambda: {(state,): n for state, n in self._states.items()}, "state"
        )
        items = "Items of batches that have not ended, by their state."
        metrics.add_gauge("batch_items", items, self._by_state, "state")
        metrics.refresh_with(self._refresh)

    def _by_state(self) -> dict[tuple[str, ...], int]:
        return {} if self._items is None else {(state,): n for state, n in asdict(self._items).items()}

    async def _refresh(self) -> None:
        try:
            self._states, self._items = await self._read()
        except StoreError:
            self._states, self._items = {}, None
