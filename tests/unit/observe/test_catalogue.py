"""Documented or red: does each metric stand in docs/metrics.md as it is, and each alert?"""

import re
from pathlib import Path

import yaml

from app.observe.catalogue import METRICS, Metric

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(penstock_\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| (.+) \|$", re.MULTILINE)


def row_of(metric: Metric) -> tuple[str, str, str, str]:
    return metric.name, metric.kind, ", ".join(metric.labels) or "-", ", ".join(metric.processes)


def documented(page: str) -> dict[str, tuple[str, str, str, str]]:
    return {name: (name, kind, labels, processes) for name, kind, labels, _, processes, _ in ROW.findall(page)}


def test_each_metric_stands_in_the_docs_with_type_labels_and_processes() -> None:
    assert documented(PAGE) == {each.name: row_of(each) for each in METRICS}


def test_each_metric_has_a_unit_and_says_in_the_docs_what_it_says_to_prometheus() -> None:
    rows = {name: (unit, meaning) for name, _, _, unit, _, meaning in ROW.findall(PAGE)}
    for each in METRICS:
        unit, linked = rows[each.name]
        meaning = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", linked)
        assert (unit == "s") == each.name.endswith("_seconds")
        first = each.help.rstrip(".").split(",")[0]
        assert first in meaning or each.kind == "counter", (each.name, first)


def test_a_metric_that_is_missing_or_has_other_labels_is_found() -> None:
    page = "| `penstock_a_total` | counter | x | jobs | api | What it counts. |\n"
    assert documented(page) == {"penstock_a_total": ("penstock_a_total", "counter", "x", "api")}
    assert documented(page) != {
        "penstock_a_total": row_of(Metric("penstock_a_total", "counter", ("y",), "h", ("api",)))
    }


def test_each_alert_stands_in_the_docs_with_its_severity() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8"))
    alerts = {
        rule["alert"]: rule["labels"]["severity"]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    rows = re.findall(r"^\| (`Penstock[^|]+) \| (page|ticket) \|", PAGE, re.MULTILINE)
    assert {name: severity for names, severity in rows for name in re.findall(r"`(\w+)`", names)} == alerts


def test_no_metric_is_made_beside_the_catalogue() -> None:
    pattern = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary|Info|Enum)\(\s*[\"']")
    files = [path for folder in ("app", "workers") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []
