"""A whole day on a real Redis, small: all jobs end once, and the seed decides what happens."""

import argparse
from typing import Any

from benchmarks import simulate

JOBS = 800


def live_through(seed: int, *days: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    args = parser.parse_args(
        ["--jobs", str(JOBS), "--workers", "12", "--tenants", "30", "--seed", str(seed), "--day", *days]
    )
    result = simulate.run(args)
    assert not [bar.name for bar in result.bars if "once" in bar.name and not bar.is_met]
    assert not [bar.name for bar in result.bars if "left over" in bar.name and not bar.is_met]
    result.show()
    return {
        day: {name: each for name, each in figures.items() if name != "run"} for day, figures in result.figures.items()
    }


def test_a_lost_zone_loses_no_job_and_the_seed_decides_the_rest():
    one = live_through(1, "plain", "lost-zone")
    lost = one["lost-zone"]["lost"]
    assert lost["jobs"] > 0
    assert lost["again after p50 s"] >= 17.0
    for figures in one.values():
        tiers = figures["tiers"].values()
        assert sum(each["offered"] for each in tiers) == JOBS
        assert figures["jobs ended"] == JOBS - sum(each["given up"] for each in tiers)
    again = live_through(1, "lost-zone")
    assert repr(again["lost-zone"]) == repr(one["lost-zone"])  # by repr: NaN isn't itself
    assert repr(live_through(2, "lost-zone")) != repr(again)
