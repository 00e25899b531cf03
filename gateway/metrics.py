"""Metrics in Prometheus' form, in a registry of their own. Labels come from short closed lists.

Everything is counted in the event loop's thread, in plain numbers: prometheus-client's own counters take a lock,
some 1.5 us each, and a request counts eight things. A scrape makes families of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Upper bounds of the buckets: fine where our own time lies, coarse where a disk or an upstream is slow.
_MS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
# How names of metrics begin that are the conventions' and not the gateway's.
_CONVENTIONS = "gen_ai_"
# Numbers by the values of their labels, in the metric's order; () where it has none.
Readings = Mapping[tuple[str, ...], float]


class Count:
    """A number that rises, for each combination of its labels' values."""

    __slots__ = ("values",)

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def inc(self, *labels: str, by: int = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + by


class Spread:
    """A histogram: how many values fell into each bucket. bounds: of the buckets, in the unit of the values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _MS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Spreads:
    """A histogram for each combination of its labels' values."""

    __slots__ = ("_bounds", "values")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.values: dict[tuple[str, ...], Spread] = {}

    def observe(self, value: float, labels: tuple[str, ...]) -> None:
        spread = self.values.get(labels)
        if spread is None:
            spread = self.values[labels] = Spread(self._bounds)
        spread.observe(value)


class Metrics(Collector):
    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._families: list[Callable[[], Metric]] = []
        self._refreshed: list[Callable[[], Awaitable[None]]] = []
        self.requests = self.count("requests", "Requests answered.", "route", "status")
        # kind: unreachable, timeout, broke, or an HTTP status. outcome: a status, or the kind that came instead of one.
        self.upstream_errors = self.count("upstream_errors", "Calls an upstream failed.", "upstream", "kind")
        self.upstream_tries = self.count("upstream_tries", "Calls of an upstream.", "upstream", "outcome")
        self.memory = self.count("memory", "Requests by what became of memory.", "status")
        released = "Replies released before their turn was on disk."
        self.not_durable = self.count("not_durable", released)
        broken = "Turns whose prompt lacks a hidden tool round that was in it before."
        self.prefix_breaks = self.count("prefix_breaks", broken)
        self.clients_gone = self.count("clients_gone", "Clients that left before the end.")
        self.added_ms = self._spread("added_seconds", "Our own time to first byte.")
        self.recall_ms = self._spread("recall_seconds", "Time recall took.")
        self.commit_ms = self._spread("commit_seconds", "Time an end of a reply waited for its commit.")
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, name: str, about: str, *labels: str) -> Count:
        """Adds a counter."""
        count = Count(labels)
        self._add(CounterMetricFamily, name, about, labels, lambda: count.values)
        return count

    def histogram(self, name: str, about: str, bounds: Sequence[float], *labels: str) -> Spreads:
        """Adds a histogram. bounds: of its buckets, in seconds, as its values are."""
        spreads = Spreads(bounds)
        self._add_histogram(name, about, labels, lambda: spreads.values, 1)
        return spreads

    def watch(self, name: str, about: str, read: Callable[[], Readings], *labels: str) -> None:
        """Adds a gauge, which is read at each scrape."""
        self._add(GaugeMetricFamily, name, about, labels, read)

    def refresh_with(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Awaits this before each scrape, for figures that have to be asked for."""
        self._refreshed.append(refresh)

    async def scrape(self) -> bytes:
        """Returns all metrics as text, after those that have to be asked for were."""
        for refresh in self._refreshed:
            await refresh()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        return (family() for family in self._families)

    def _add(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        about: str,
        labels: tuple[str, ...],
        read: Callable[[], Readings],
    ) -> None:
        def family() -> Metric:
            made = kind(_full(name), about, labels=labels)
            for values, value in read().items():
                made.add_metric(values, value)
            return made

        self._families.append(family)

    def _spread(self, name: str, about: str) -> Spread:
        """Adds a histogram of milliseconds, which are shown in seconds."""
        spread = Spread()
        self._add_histogram(name, about, (), lambda: {(): spread}, 1000)
        return spread

    def _add_histogram(
        self,
        name: str,
        about: str,
        labels: tuple[str, ...],
        read: Callable[[], Mapping[tuple[str, ...], Spread]],
        per_second: int,
    ) -> None:
        def family() -> Metric:
            made = HistogramMetricFamily(_full(name), about, labels=labels)
            for values, spread in read().items():
                buckets, sum_ = [], 0
                bounds = (*(str(bound / per_second) for bound in spread.bounds), "+Inf")
                for bound, count in zip(bounds, spread.counts, strict=True):
                    sum_ += count
                    buckets.append((bound, sum_))
                made.add_metric(values, buckets, spread.total / per_second)
            return made

        self._families.append(family)


def _full(name: str) -> str:
    return name if name.startswith(_CONVENTIONS) else f"mnemogate_{name}"
