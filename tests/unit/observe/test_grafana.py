"""Would Grafana show what the dashboard means? Its JSON held against Grafana's schema, its queries run by Prometheus' own tool."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.observe.catalogue import CATALOGUE, Metric

ROOT = Path(__file__).parents[3]
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/penstock.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES = {each["name"] for each in BOARD["templating"]["list"]}
BUILT_IN = {"__rate_interval"}
# Of Grafana's own, by their ids: an id that it doesn't know is shown as a word behind the figure.
UNITS = {"short", "s", "percentunit", "reqps", "ops", "rowsps"}
MOST_SCHEMA = 41  # what the Grafana of compose.yaml writes; older ones it migrates as it loads
# What `PANELS` may say, by type of panel.
OPTIONS = {
    "stat": {"colorMode", "graphMode", "justifyMode", "orientation", "reduceOptions", "textMode", "wideLayout"},
    "timeseries": {"legend", "tooltip"},
}
CHOICES = {
    "colorMode": {"none", "value", "background", "background_solid"}, "graphMode": {"none", "area"},
    "textMode": {"auto", "value", "value_and_name", "name", "none"},
}  # fmt: skip
AT = "20m"


def title(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def targets() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(panel, target) for panel in PANELS for target in panel["targets"]]


def test_the_board_is_of_a_schema_that_the_pinned_grafana_reads() -> None:
    image = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["grafana"]["image"]
    assert image.startswith("grafana/grafana:12.")
    assert 36 <= BOARD["schemaVersion"] <= MOST_SCHEMA
    assert BOARD["graphTooltip"] in {0, 1, 2}
    assert 8 <= len(BOARD["uid"]) <= 40
    for variable in BOARD["templating"]["list"]:
        assert variable["type"] in {"datasource", "query"}
        assert variable.get("hide", 0) in {0, 1, 2}


def test_each_panel_says_what_grafana_understands() -> None:
    for panel in PANELS:
        defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
        assert set(options) <= OPTIONS[panel["type"]], title(panel)
        for name, known in CHOICES.items():
            assert options.get(name, "none") in known, title(panel)
        assert defaults["unit"] in UNITS, title(panel)
        steps = [step["value"] for step in defaults.get("thresholds", {"steps": [{"value": None}]})["steps"]]
        assert steps[0] is None, "the first one is minus infinity"
        assert steps[1:] == sorted(steps[1:]), title(panel)
        assert panel["description"], title(panel)
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), title(panel)


def test_rows_begin_at_the_left_and_their_panels_stand_below_them() -> None:
    top = -1
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        if panel["type"] == "row":
            assert (at["x"], at["w"], at["h"], panel["collapsed"], panel["panels"]) == (0, 24, 1, False, [])
            assert at["y"] > top
            top = at["y"]
        assert at["y"] >= top, title(panel)


def test_whoever_opens_it_chooses_the_prometheus_and_the_model() -> None:
    assert {"datasource", "model"} == VARIABLES
    for panel, target in targets():
        assert (panel["datasource"], target["datasource"]) == (SOURCE, SOURCE), title(panel)
    queries = [target["expr"] for _, target in targets()]
    used = {name for query in queries for name in re.findall(r"\$\{?(\w+)", query)}
    assert used == {"model"} | BUILT_IN


def test_the_model_that_was_chosen_holds_for_each_panel_of_a_model() -> None:
    """A pool bears its model's name. What the first row says holds for all of them; forecasts' errors have no model."""
    row = next(panel["gridPos"]["y"] for panel in BOARD["panels"][1:] if panel["type"] == "row")
    for panel, target in targets():
        if panel["gridPos"]["y"] < row:
            continue
        for name, matchers in re.findall(r"(penstock_[a-z0-9_]+)(?:\{([^}]*)\})?", target["expr"]):
            metric = CATALOGUE[re.sub(r"_(bucket|sum|count)$", "", name)]
            label = next((label for label in ("model", "pool") if label in metric.labels), None)
            if label is not None:
                assert f'{label}=~"$model"' in matchers, title(panel)


def test_each_curve_has_a_name_of_its_own() -> None:
    """A legend tells all labels by which its query divides, and none that it hasn't got."""
    for panel, target in targets():
        is_one = re.match(r"(sum|max|min)\(", target["expr"])
        by = [] if is_one else re.findall(r"by \(([^)]*)\)", target["expr"])
        name = re.match(r"penstock_\w+", target["expr"])
        labels = set(by[0].split(", ")) - {"le"} if by else set()
        if not by and name and name[0] in CATALOGUE:
            labels = {*CATALOGUE[name[0]].labels, "instance"}
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert target["legendFormat"], title(panel)
        if not target["expr"].startswith("penstock:"):
            assert shown == labels, title(panel)
    for panel in PANELS:
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(legends) == len(set(legends)), title(panel)


def series_of(metric: Metric) -> list[dict[str, str]]:
    """Input of `promtool test rules`, a sample each 15 s: one series of the metric, of a histogram all of its buckets."""
    known = {"decision": "refused", "state": "open", "tier": "interactive", "model": "m", "pool": "m"}
    labels = {label: known.get(label, "x") for label in metric.labels} | {"job": "api", "instance": "a:1"}
    several = [labels | {"decision": each} for each in ("refused", "accepted")] if "decision" in labels else [labels]
    growing, constant = "0+10x80", "1+0x80"
    if metric.kind != "histogram":
        values = growing if metric.kind == "counter" else constant
        return [{"series": f"{metric.name}{{{written(each)}}}", "values": values} for each in several]
    bounds = [*(str(float(each)) for each in metric.buckets), "+Inf"]
    found = [
        {"series": f"{metric.name}_bucket{{{written(labels | {'le': le})}}}", "values": f"0+{at + 1}x80"}
        for at, le in enumerate(bounds)
    ]
    return [*found, {"series": f"{metric.name}_count{{{written(labels)}}}", "values": f"0+{len(bounds)}x80"}]


def written(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def test_each_query_gives_something_where_its_metrics_are_there(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed: Debian's package prometheus has it")
    series = [each for metric in CATALOGUE.values() for each in series_of(metric)]
    series += [{"series": 'up{job="api",instance="a:1"}', "values": "1+0x80"}]
    cases = []
    for _, target in targets():
        query = target["expr"].replace("$__rate_interval", "5m").replace("$model", "m|n")
        found = [{"labels": "{}", "value": 1}]
        cases.append({"expr": f"count({query}) > bool 0", "eval_time": AT, "exp_samples": found})
    test = {
        "rule_files": [str(ROOT / "deploy/prometheus/rules.yaml")],
        "evaluation_interval": "15s",
        "tests": [{"interval": "15s", "input_series": series, "promql_expr_test": cases}],
    }
    path = tmp_path / "test.yaml"
    path.write_text(json.dumps(test), encoding="utf-8")
    result = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
