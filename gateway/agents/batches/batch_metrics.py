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
        """count_open: counts the batches in the store."""
        self._count_open = count_open
        # None: the store could not be read.
        self._counted: OpenBatches | None = None
        self.tokens = metrics.add_counter("batch_tokens", "Tokens that batches used.")
        metrics.add_gauge("batches", "Batches by their state.", self._by_state, "state")
        items_help = "Items of batches that have not ended, by their state."
        metrics.add_gauge("batch_items", items_help, self._items_by_state, "state")
        metrics.refresh_with(self._refresh)

    def _by_state(self) -> dict[tuple[str, ...], int]:
        return {} if self._counted is None else {(state,): n for state, n in self._counted.states.items()}

    def _items_by_state(self) -> dict[tuple[str, ...], int]:
        return (
            {} if self._counted is None else {(state,): n for state, n in asdict(self._counted.items).items()}
        )

    async def _refresh(self) -> None:
        try:
            self._counted = await self._count_open()
        except StoreError:
            self._counted = None
