"""Does each alert lead to a page that says what to do?"""

import re
from typing import Any

import pytest
import yaml

from tests.support.deployment import ROOT
from tests.unit.test_docs import anchors

PAGE = ROOT / "docs/operations.md"


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


def kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_each_alert_has_its_section(alert: dict[str, Any]) -> None:
    anchor = f"alert-{kebab(alert['alert'])}"
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{anchor}"
    text = PAGE.read_text(encoding="utf-8")
    assert anchor in anchors(text)
    heading = next(line for line in text.splitlines() if line.startswith("### ") and anchor in anchors(line))
    section = text.split(heading)[1].split("\n#")[0]
    for part in ("**Means.**", "**Look.**", "**Act.**"):
        assert part in section, f"{alert['alert']}: {part}"


def test_no_section_is_of_an_alert_that_there_is_not() -> None:
    sections = {anchor for anchor in anchors(PAGE.read_text(encoding="utf-8")) if anchor.startswith("alert-")}
    assert sections == {f"alert-{kebab(alert['alert'])}" for alert in alerts()}
