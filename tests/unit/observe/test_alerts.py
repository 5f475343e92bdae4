"""Do the dashboard and the alert rules speak of metrics that there are, by labels that they have, and does Prometheus' own tool agree?"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.observe.catalogue import CATALOGUE
from app.settings import Settings

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/penstock.json"
RULES: dict[str, Any] = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
CASES = ("rules_test.yaml", "rules_slow_test.yaml")
TARGETS_OWN = {"job", "instance"}  # Prometheus adds them
SERIES = re.compile(r"\b(penstock_[a-z0-9_]+|penstock:[a-z0-9_:]+)(?:\{([^}]*)\})?")


def rules(kind: str) -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


RECORDED = {each["record"] for each in rules("record")}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def in_prometheus(query: str) -> str:
    """With Grafana's variables filled in."""
    return query.replace("$__rate_interval", "5m").replace("$model", ".*")


def faults(query: str) -> list[str]:
    """Series and labels of the query that there are not."""
    found = []
    for name, matchers in SERIES.findall(query):
        if name in RECORDED:
            continue
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        metric = CATALOGUE.get(base) or CATALOGUE.get(name)
        if metric is None or (metric.kind == "histogram") == (base == name):
            found.append(name)
            continue
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", matchers))
        found += [f"{name}{{{label}}}" for label in labels - set(metric.labels) - TARGETS_OWN - {"le"}]
    known = {label for metric in CATALOGUE.values() for label in metric.labels} | TARGETS_OWN | {"le"}
    grouped = {label for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in labels.split(", ")}
    return found + [f"by ({label})" for label in sorted(grouped - known)]


def anchor_of(alert: str) -> str:
    return "alert-" + re.sub(r"(?<!^)([A-Z])", r"-\1", alert).lower()


def test_each_metric_and_label_of_the_rules_exists() -> None:
    assert [fault for rule in [*rules("alert"), *rules("record")] for fault in faults(rule["expr"])] == []


def test_each_metric_and_label_of_the_dashboard_exists() -> None:
    assert len(queries()) > 30
    assert [fault for query in queries() for fault in faults(query)] == []


def test_each_metric_is_on_the_dashboard() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in queries() for name, _ in SERIES.findall(query)}
    assert set(CATALOGUE) - shown == set()


def test_a_metric_or_label_that_there_is_not_is_found() -> None:
    query = 'sum by (nobody) (rate(penstock_jobs_total{tenant="a"}[5m])) / penstock_nothing + penstock_e2e_seconds'
    assert faults(query) == [
        "penstock_jobs_total{tenant}", "penstock_nothing", "penstock_e2e_seconds", "by (nobody)",
    ]  # fmt: skip


def test_each_alert_links_to_its_own_part_of_the_runbook() -> None:
    for rule in rules("alert"):
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{anchor_of(rule['alert'])}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_each_alert_is_shown_firing_and_not_firing() -> None:
    tests = [
        test for name in CASES for test in yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))["tests"]
    ]
    seen = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert seen == {(rule["alert"], fires) for rule in rules("alert") for fires in (True, False)}


def test_the_objectives_of_the_rules_are_the_settings_defaults_and_bounds_of_the_histogram() -> None:
    bounds = {str(float(each)) for each in CATALOGUE["penstock_queue_wait_seconds"].buckets}
    for tier in ("interactive", "standard", "batch"):
        objective = float(Settings.model_fields[f"objective_{tier}_s"].default)
        for rule in rules("record"):
            assert f'tier="{tier}",le="{objective}"' in rule["expr"]
        assert str(objective) in bounds
        (predicted,) = [rule["expr"] for rule in rules("alert") if rule["alert"] == "PenstockPredictedWaitTooLong"]
        assert f'tier="{tier}"}}) > {objective:g}\n' in predicted


def test_panels_do_not_lie_on_each_other_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool isn't installed: Debian's package prometheus has it")
    return found


def checked(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_the_rules_and_the_scrape_config(promtool: str) -> None:
    checked(promtool, "check", "rules", "rules.yaml")
    checked(promtool, "check", "config", "prometheus.yml")


def test_promtool_sees_each_alert_fire_and_not_fire(promtool: str) -> None:
    checked(promtool, "test", "rules", *CASES)


def test_promtool_can_read_each_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    group = {
        "name": "all",
        "rules": [{"record": f"x:q{i}", "expr": in_prometheus(each)} for i, each in enumerate(queries())],
    }
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [group]}), encoding="utf-8")
    checked(promtool, "check", "rules", str(path))
