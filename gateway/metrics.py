"""What is counted, in Prometheus' form, in a registry of our own. Labels come from short closed lists."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

__all__ = ["Metrics"]

_MS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Metrics:
    """`inc`-style methods look a child up once: `labels()` costs more than counting."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new = self.registry
        self._requests = Counter(
            "mnemogate_requests", "Requests answered.", ("route", "status"), registry=new
        )
        self._upstream_errors = Counter(
            "mnemogate_upstream_errors", "Calls that an upstream failed.", ("upstream", "kind"), registry=new
        )
        self._memory = Counter(
            "mnemogate_memory", "Requests by what became of memory.", ("status",), registry=new
        )
        self.added_ms = Histogram(
            "mnemogate_added_ms", "Our own time to first byte.", buckets=_MS, registry=new
        )
        self.recall_ms = Histogram("mnemogate_recall_ms", "Time recall took.", buckets=_MS, registry=new)
        self.commit_ms = Histogram(
            "mnemogate_commit_ms", "Time an end of a reply waited for its commit.", buckets=_MS, registry=new
        )
        self.in_flight = Gauge("mnemogate_requests_in_flight", "Requests being answered.", registry=new)
        self.not_durable = Counter(
            "mnemogate_not_durable", "Replies released before their turn was on disk.", registry=new
        )
        self.prefix_breaks = Counter(
            "mnemogate_prefix_breaks", "Turns whose prompt did not extend the one before.", registry=new
        )
        self.clients_gone = Counter(
            "mnemogate_clients_gone", "Clients that left before the end.", registry=new
        )
        self.writer_queue = Gauge("mnemogate_writer_queue", "Writes waiting for the store.", registry=new)
        self.writer_queue_bytes = Gauge(
            "mnemogate_writer_queue_bytes", "Bytes waiting for the store.", registry=new
        )
        self._children: dict[tuple[str, ...], Counter] = {}

    def request(self, route: str, status: int) -> None:
        self._child(self._requests, "requests", route, str(status)).inc()

    def upstream_error(self, upstream: str, kind: str) -> None:
        """kind: unreachable, timeout, broke, or an HTTP status."""
        self._child(self._upstream_errors, "upstream", upstream, kind).inc()

    def memory(self, status: str) -> None:
        self._child(self._memory, "memory", status).inc()

    def watch_writer(self, queued: Callable[[], float], queued_bytes: Callable[[], float]) -> None:
        """Let the gauges of the writer ask when somebody looks."""
        self.writer_queue.set_function(queued)
        self.writer_queue_bytes.set_function(queued_bytes)

    def register(self, collector: Collector) -> None:
        self.registry.register(collector)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _child(self, counter: Counter, name: str, *labels: str) -> Counter:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = counter.labels(*labels)
        return child
