"""Is a tally a histogram as Prometheus' own client makes it?"""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram

from app.observe.catalogue import CATALOGUE
from app.observe.metrics import Tally, exposition

NAME = "penstock_inter_token_seconds"
LABELS = ("batch", "tiny")


def test_a_tally_reads_as_the_client_librarys_own_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally, metric = Tally(NAME, ours), CATALOGUE[NAME]
    histogram = Histogram(NAME, metric.help, metric.labels, buckets=metric.buckets, registry=theirs)
    draw = random.Random(1)
    for value in [*metric.buckets, 0.0, 1e9, *(draw.expovariate(30) for _ in range(200))]:
        times = draw.randrange(1, 5)
        tally.add(LABELS, value, times)
        for _ in range(times):
            histogram.labels(*LABELS).observe(value)
    found, wanted = (
        {
            sample.name + str(sorted(sample.labels.items())): sample.value
            for each in registry.collect()
            for sample in each.samples
        }
        for registry in (ours, theirs)
    )
    assert found == pytest.approx(wanted)


def test_a_series_is_there_at_0_before_anything_was_counted() -> None:
    registry = CollectorRegistry()
    Tally(NAME, registry).labels(*LABELS)
    assert b'penstock_inter_token_seconds_count{model="tiny",tier="batch"} 0.0' in exposition(registry)
