"""Metrics of batches, as a part of /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec.structs import asdict

from gateway.metrics import Metrics
from storage.batch_records import OpenBatches
from storage.errors import StoreError


class BatchMetrics:
    """Adds the figures of batches to the metrics."""

    def __init__(self, metrics: Metrics, count_open: Callable[[], Awaitable[OpenBatches]]) -> None:
        """Registers the metrics. count_open: the function that counts the open batches in the store."""
        self._count_open = count_open
        # The counts by the label `state`; empty if the store could not be read.
        self._batches: dict[tuple[str, ...], int] = {}
        self._items: dict[tuple[str, ...], int] = {}
        self.tokens = metrics.add_counter("batch_tokens", "Tokens that batches used.")
        metrics.add_gauge("batches", "Batches by their state.", lambda: self._batches, "state")
        items_help = "Items of batches that have not ended, by their state."
        metrics.add_gauge("batch_items", items_help, lambda: self._items, "state")
        metrics.add_refresher(self._refresh)

    async def _refresh(self) -> None:
        """Counts the open batches and their items again."""
        try:
            open_batches = await self._count_open()
        except StoreError:
            self._batches, self._items = {}, {}
            return
        self._batches = {(state,): count for state, count in open_batches.states.items()}
        self._items = {(state,): count for state, count in asdict(open_batches.items).items()}
