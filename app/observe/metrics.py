"""How does a process count? Metrics of the catalogue, and of nothing else, in a registry of its own."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from app.observe.catalogue import CATALOGUE, Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
Family = CounterMetricFamily | GaugeMetricFamily

# Each counter and histogram would bring a second series, with the time of its birth.
disable_created_metrics()  # type: ignore[no-untyped-call]


def counter(name: str, registry: CollectorRegistry) -> Counter:
    """A counter of the catalogue."""
    metric = _of(name, "counter")
    return Counter(name, metric.help, metric.labels, registry=registry)


def gauge(name: str, registry: CollectorRegistry) -> Gauge:
    """A gauge of the catalogue."""
    metric = _of(name, "gauge")
    return Gauge(name, metric.help, metric.labels, registry=registry)


def histogram(name: str, registry: CollectorRegistry) -> Histogram:
    """A histogram of the catalogue."""
    metric = _of(name, "histogram")
    return Histogram(name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)


def family(name: str) -> Family:
    """The values of one scrape, of a gauge or a counter of the catalogue."""
    metric = CATALOGUE[name]
    assert metric.kind != "histogram"
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(name, metric.help, labels=metric.labels)


class AtScrape(Collector):
    """Metrics that are read when somebody asks."""

    def __init__(self, read: Callable[[], Iterable[Family]], registry: CollectorRegistry) -> None:
        self._read = read
        registry.register(self)

    def describe(self) -> Iterator[Family]:
        """Nothing: a registry asks for it to find names that are taken, which ours can't be."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        """The values now."""
        return iter(self._read())


class Tally(Collector):
    """A histogram of the catalogue for values that come by the thousand: many equal ones are one addition, and none takes a lock.

    For one thread.
    """

    def __init__(self, name: str, registry: CollectorRegistry) -> None:
        self._metric = _of(name, "histogram")
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def labels(self, *values: str) -> None:
        """Let this series be there, at 0."""
        assert len(values) == len(self._metric.labels)
        self._counts.setdefault(values, [0] * (len(self._metric.buckets) + 1))
        self._sums.setdefault(values, 0.0)

    def add(self, labels: tuple[str, ...], value: float, times: int = 1) -> None:
        """Count `value` so many times."""
        if labels not in self._counts:
            self.labels(*labels)
        self._counts[labels][bisect_left(self._metric.buckets, value)] += times
        self._sums[labels] += value * times

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Nothing, as `AtScrape`."""
        return iter(())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The values now."""
        found = HistogramMetricFamily(self._metric.name, self._metric.help, labels=self._metric.labels)
        for labels, counts in list(self._counts.items()):
            buckets, total = [], 0
            for bound, count in zip((*self._metric.buckets, math.inf), counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == math.inf else str(float(bound)), total))
            found.add_metric(labels, buckets, self._sums[labels])
        yield found


def exposition(registry: CollectorRegistry) -> bytes:
    """All that the process has to tell, in Prometheus' text format; `TEXT` is its content type."""
    return generate_latest(registry)


def _of(name: str, kind: str) -> Metric:
    metric = CATALOGUE[name]
    assert metric.kind == kind
    return metric


def preset(metric: Any, *values: Iterable[str]) -> None:
    """Let the series of every combination of these label values be there from the start, at 0."""
    combinations: list[tuple[str, ...]] = [()]
    for each in values:
        combinations = [(*before, value) for before in combinations for value in each]
    for combination in combinations:
        metric.labels(*combination)
