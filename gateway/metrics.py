"""Metrics in Prometheus' form, in a registry of their own. Labels come from short closed lists.

Everything is counted in the event loop's thread, in plain numbers: prometheus-client's own counters take a lock, some
1.5 us each, and a request counts eight things. A scrape makes families of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Upper bounds of buckets, in seconds: fine where the gateway's own time lies, coarse for slow disks and upstreams.
_LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
# The prefix of metrics that OpenTelemetry's conventions name. All others get the gateway's.
_CONVENTIONS_PREFIX = "gen_ai_"
# The numbers of a metric by the values of its labels, in the order of the labels; () if it has no labels.
Readings = Mapping[tuple[str, ...], float]


class Counter:
    """A number that rises, for each combination of its labels' values."""

    __slots__ = ("values",)

    def __init__(self, labels: Sequence[str]) -> None:
        """Begins with 0, or without numbers if there are labels. labels: the names of the labels."""
        self.values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def inc(self, *labels: str, by: int = 1) -> None:
        """Adds to the number of these values of the labels, in the order of the labels."""
        self.values[labels] = self.values.get(labels, 0) + by


class _Buckets:
    """The numbers of values in each bucket of a histogram."""

    __slots__ = ("counts", "sum")

    def __init__(self, count: int) -> None:
        # The number of values in each bucket, in the order of the bounds.
        self.counts = [0] * count
        # The sum of all values.
        self.sum = 0.0


class Histogram:
    """Counts values in buckets, for each combination of its labels' values."""

    __slots__ = ("bounds", "values")

    def __init__(self, bounds: Sequence[float], labels: Sequence[str]) -> None:
        """Makes empty buckets.

        bounds: the upper bounds of the buckets, in the unit of the values; one more bucket has the larger values.
        labels: the names of the labels.
        """
        self.bounds = bounds
        self.values: dict[tuple[str, ...], _Buckets] = {} if labels else {(): _Buckets(len(bounds) + 1)}

    def observe(self, value: float, labels: tuple[str, ...] = ()) -> None:
        """Counts a value. labels: the values of the labels, in the order of the labels."""
        buckets = self.values.get(labels)
        if buckets is None:
            buckets = _Buckets(len(self.bounds) + 1)
            self.values[labels] = buckets
        buckets.counts[bisect_left(self.bounds, value)] += 1
        buckets.sum += value


class Metrics(Collector):
    """The metrics of a process, and the text of a scrape."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        # Make the families of metrics, one for each metric.
        self._make_families: list[Callable[[], Metric]] = []
        # Functions that each scrape awaits first.
        self._refreshers: list[Callable[[], Awaitable[None]]] = []
        self.requests = self.add_counter("requests", "Requests answered.", "route", "status")
        # kind: unreachable, timeout, broke, or an HTTP status. outcome: an HTTP status, or the kind if none came.
        self.upstream_errors = self.add_counter(
            "upstream_errors", "Calls an upstream failed.", "upstream", "kind"
        )
        self.upstream_tries = self.add_counter(
            "upstream_tries", "Calls of an upstream.", "upstream", "outcome"
        )
        self.memory = self.add_counter("memory", "Requests by what became of memory.", "status")
        self.not_durable = self.add_counter("not_durable", "Replies released before their turn was on disk.")
        self.prefix_breaks = self.add_counter(
            "prefix_breaks", "Turns whose prompt lacks a hidden tool round that was in it before."
        )
        self.clients_gone = self.add_counter("clients_gone", "Clients that left before the end.")
        self.added_s = self.add_histogram("added_seconds", "Our own time to first byte.", _LATENCY_BOUNDS_S)
        self.recall_s = self.add_histogram("recall_seconds", "Time recall took.", _LATENCY_BOUNDS_S)
        self.commit_s = self.add_histogram(
            "commit_seconds", "Time an end of a reply waited for its commit.", _LATENCY_BOUNDS_S
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add_counter(self, name: str, documentation: str, *labels: str) -> Counter:
        """Adds a counter. labels: the names of its labels."""
        counter = Counter(labels)
        self._add_metric(CounterMetricFamily, name, documentation, labels, lambda: counter.values)
        return counter

    def add_gauge(self, name: str, documentation: str, read: Callable[[], Readings], *labels: str) -> None:
        """Adds a gauge. read: a function that returns its numbers at each scrape."""
        self._add_metric(GaugeMetricFamily, name, documentation, labels, read)

    def add_histogram(
        self, name: str, documentation: str, bounds: Sequence[float], *labels: str
    ) -> Histogram:
        """Adds a histogram. bounds: the upper bounds of its buckets, in the unit of its values."""
        histogram = Histogram(bounds, labels)

        def make_family() -> Metric:
            family = HistogramMetricFamily(_make_full_name(name), documentation, labels=labels)
            upper_bounds = (*map(str, bounds), "+Inf")
            for label_values, buckets in histogram.values.items():
                cumulative = list(zip(upper_bounds, accumulate(buckets.counts), strict=True))
                family.add_metric(label_values, cumulative, buckets.sum)
            return family

        self._make_families.append(make_family)
        return histogram

    def add_refresher(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Adds a function that each scrape awaits first, for a gauge with numbers that have to be queried."""
        self._refreshers.append(refresh)

    async def scrape(self) -> bytes:
        """Returns all metrics as text."""
        for refresh in self._refreshers:
            await refresh()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields all families of metrics. The registry calls it at each scrape."""
        return (make_family() for make_family in self._make_families)

    def _add_metric(
        self,
        family_type: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        documentation: str,
        labels: tuple[str, ...],
        read: Callable[[], Readings],
    ) -> None:
        """Adds a family of metrics. read: a function that returns its numbers at each scrape."""

        def make_family() -> Metric:
            family = family_type(_make_full_name(name), documentation, labels=labels)
            for label_values, value in read().items():
                family.add_metric(label_values, value)
            return family

        self._make_families.append(make_family)


def _make_full_name(name: str) -> str:
    return name if name.startswith(_CONVENTIONS_PREFIX) else f"mnemogate_{name}"
