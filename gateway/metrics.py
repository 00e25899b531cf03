"""Metrics in Prometheus' form, in a registry of their own. Labels come from short closed lists.

Everything is counted in the event loop's thread, in plain numbers: prometheus-client's own counters take a lock,
some 1.5 us each, and a request counts eight things. A scrape makes families of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Upper bounds of the buckets: fine where our own time lies, coarse where a disk or an upstream is slow.
_MS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class Count:
    """A number that rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class Spread:
    """A histogram: how many values fell into each bucket. Values are in milliseconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_MS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(_MS, value)] += 1
        self.total += value


class Metrics(Collector):
    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.added_ms, self.recall_ms, self.commit_ms = Spread(), Spread(), Spread()
        self.not_durable, self.prefix_breaks, self.clients_gone = Count(), Count(), Count()
        self._requests: dict[tuple[str, ...], int] = {}
        self._upstream_errors: dict[tuple[str, ...], int] = {}
        self._upstream_tries: dict[tuple[str, ...], int] = {}
        self._memory: dict[tuple[str, ...], int] = {}
        self._in_flight: Callable[[], float] = lambda: 0
        self._resting: Callable[[], dict[tuple[str, ...], int]] = dict
        self._queued: Callable[[], float] = lambda: 0
        self._queued_bytes: Callable[[], float] = lambda: 0
        self._refreshed: list[Callable[[], Awaitable[None]]] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def request(self, route: str, status: int) -> None:
        key = (route, str(status))
        self._requests[key] = self._requests.get(key, 0) + 1

    def upstream_error(self, upstream: str, kind: str) -> None:
        """Counts a failed call. kind: unreachable, timeout, broke, or an HTTP status."""
        key = (upstream, kind)
        self._upstream_errors[key] = self._upstream_errors.get(key, 0) + 1

    def upstream_try(self, upstream: str, outcome: str) -> None:
        """Counts a call. outcome: an HTTP status, or the kind of error that came instead of one."""
        key = (upstream, outcome)
        self._upstream_tries[key] = self._upstream_tries.get(key, 0) + 1

    def memory(self, status: str) -> None:
        key = (status,)
        self._memory[key] = self._memory.get(key, 0) + 1

    def watch_requests(self, in_flight: Callable[[], float]) -> None:
        self._in_flight = in_flight

    def watch_upstreams(self, resting: Callable[[], dict[tuple[str, ...], int]]) -> None:
        """Sets the gauge of open circuits. resting: by upstream, 1 while it is passed over."""
        self._resting = resting

    def watch_writer(self, queued: Callable[[], float], queued_bytes: Callable[[], float]) -> None:
        """Sets the gauges of the writer, which are read at each scrape."""
        self._queued, self._queued_bytes = queued, queued_bytes

    def register(self, collector: Collector, refresh: Callable[[], Awaitable[None]]) -> None:
        """Adds a collector. refresh: awaited before each scrape, for figures that have to be asked for."""
        self.registry.register(collector)
        self._refreshed.append(refresh)

    async def scrape(self) -> bytes:
        """Returns all metrics as text, after those that have to be asked for were."""
        for refresh in self._refreshed:
            await refresh()
        return self.render()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        yield counter_family("requests", "Requests answered.", ("route", "status"), self._requests)
        yield counter_family(
            "upstream_errors", "Calls an upstream failed.", ("upstream", "kind"), self._upstream_errors
        )
        yield counter_family(
            "upstream_tries", "Calls of an upstream.", ("upstream", "outcome"), self._upstream_tries
        )
        resting = GaugeMetricFamily(
            "mnemogate_upstream_resting",
            "Whether an upstream is passed over, for one model at least, while there is another.",
            labels=("upstream",),
        )
        for values, is_resting in self._resting().items():
            resting.add_metric(values, is_resting)
        yield resting
        yield counter_family("memory", "Requests by what became of memory.", ("status",), self._memory)
        yield _single("not_durable", "Replies released before their turn was on disk.", self.not_durable)
        yield _single(
            "prefix_breaks", "Turns whose prompt did not extend the one before.", self.prefix_breaks
        )
        yield _single("clients_gone", "Clients that left before the end.", self.clients_gone)
        yield _histogram("added_ms", "Our own time to first byte.", self.added_ms)
        yield _histogram("recall_ms", "Time recall took.", self.recall_ms)
        yield _histogram("commit_ms", "Time an end of a reply waited for its commit.", self.commit_ms)
        yield _gauge("requests_in_flight", "Requests being answered.", self._in_flight)
        yield _gauge("writer_queue", "Writes waiting for the store.", self._queued)
        yield _gauge("writer_queue_bytes", "Bytes waiting for the store.", self._queued_bytes)


def counter_family(
    name: str, about: str, labels: tuple[str, ...], counts: dict[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"mnemogate_{name}", about, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(values, count)
    return family


def _single(name: str, about: str, count: Count) -> CounterMetricFamily:
    return CounterMetricFamily(f"mnemogate_{name}", about, value=count.value)


def _histogram(name: str, about: str, spread: Spread) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"mnemogate_{name}", about)
    buckets, sum_ = [], 0
    for bound, count in zip((*map(str, map(float, _MS)), "+Inf"), spread.counts, strict=True):
        sum_ += count
        buckets.append((bound, sum_))
    family.add_metric((), buckets, spread.total)
    return family


def _gauge(name: str, about: str, value: Callable[[], float]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mnemogate_{name}", about, value=value())
