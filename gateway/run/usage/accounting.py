"""Connects the meter, which counts usage, to the limiter, which refuses requests over limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.metrics import Metrics
from gateway.run.receipt import Receipt
from gateway.run.receipts import Receipts, RequestTracer
from gateway.run.usage.gen_ai_metrics import GenAIMetrics
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.meter import Meter
from gateway.run.usage.pending_usage import PendingUsage
from gateway.settings import Settings
from storage.sql.store import Store


class Accounting:
    """Counts what each request uses and holds requests to limits. One for the process.

    `receipts` publishes each receipt after the last byte of its request.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        now: Callable[[], float],
        metrics: Metrics,
        limit_read_s: float,
        tracer: RequestTracer | None = None,
        *,
        takes_requests: bool = True,
    ) -> None:
        """Makes the parts, and registers their listeners for receipts, forgettings and writes of usage.

        now: returns the seconds since the epoch.
        limit_read_s: the most seconds that a request waits for its limits and their use to be read.
        tracer: the tracer of requests; None: nothing is traced.
        takes_requests: True: the process answers requests; False: it performs jobs alone.
        """
        # Publishes each receipt.
        self.receipts = Receipts(tracer)
        # Counts the usage.
        self.meter = Meter(store.usage, store.agents.find_by_id, now, settings)
        aliases = frozenset(each.alias for each in settings.models)
        # Holds requests to limits.
        self.limiter = Limiter(
            store=store,
            meter=self.meter,
            now=now,
            metrics=metrics,
            aliases=aliases,
            write_s=settings.usage.write_s,
            read_s=limit_read_s,
            takes_requests=takes_requests,
        )
        # Counts the usage of responses that upstreams make in the background.
        self.pending_usage = PendingUsage(self.meter, self.limiter)
        store.usage.add_forget_listener(self.pending_usage.forget)
        for listener in (self.count, GenAIMetrics(metrics, settings).count, self.pending_usage.note):
            self.receipts.add_listener(listener)
        self.meter.add_write_listener(self.limiter.refresh)

    def count(self, receipt: Receipt) -> None:
        """Counts a request or work that has ended, and settles its reservation."""
        self.limiter.settle(receipt, self.meter.count(receipt))

    def start(self) -> list[asyncio.Task[None]]:
        """Starts the tasks that write counts and read limits.

        A cancelled task leaves the counts that are not written yet to `meter.write`.
        """
        return [asyncio.create_task(self.meter.run()), asyncio.create_task(self.limiter.limits.run())]
