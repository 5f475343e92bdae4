"""Is compose.yaml what Compose takes, and does it say what the code does? By schema, and by the code itself."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from app.api.main import GRACE_S, create_app
from app.settings import Settings
from tests.support.deployment import COMMANDS, PROBE_PATHS, ROOT, setting_names

OURS = ("migrate", "api", "worker", "worker-gpu", "maintenance", "webhooks")
SCHEMA = json.loads((Path(__file__).parent / "schemas/compose-spec.json").read_text(encoding="utf-8"))
SCHEMA["$schema"] = "http://json-schema.org/draft-07/schema#"


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def errors_of(stack: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema_rs.validator_for(SCHEMA).iter_errors(stack)]


def seconds(span: str) -> int:
    assert span.endswith("s")
    return int(span.removesuffix("s"))


def test_it_keeps_to_the_specification(stack: dict[str, Any]) -> None:
    assert errors_of(stack) == []
    broken = {**stack, "services": {**stack["services"], "api": {**stack["services"]["api"], "comand": ["api"]}}}
    assert errors_of(broken)


def test_everything_is_there(stack: dict[str, Any]) -> None:
    assert set(stack["services"]) == {*OURS, "postgres", "redis", "prometheus", "grafana"}
    assert [name for name, each in stack["services"].items() if "profiles" in each] == ["worker-gpu"]
    assert stack["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == [
        "gpu"
    ]


def test_nothing_may_do_more_than_it_must(stack: dict[str, Any]) -> None:
    for name, each in stack["services"].items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in each
        for port in each.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: whoever opens a port to the world puts TLS before it"
    for name in OURS:
        tmpfs = {mount.partition(":")[0]: mount for mount in stack["services"][name]["tmpfs"]}
        assert set(tmpfs) == {"/tmp", "/cache"}
        assert "exec" in tmpfs["/cache"].partition(":")[2].split(","), "compiled kernels are loaded from there"


def test_images_have_versions_and_targets_exist(stack: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name, each in stack["services"].items():
        image, _, tag = each["image"].rpartition(":")
        assert image, name
        assert tag[0].isdigit() or tag[:2].strip("v").isdigit(), f"{name}: a version, never latest"
        if "build" in each:
            assert f" AS {each['build']['target']}\n" in dockerfile
            assert each["image"].endswith(f"-{each['build']['target']}")


def test_commands_and_settings_are_ours(stack: dict[str, Any]) -> None:
    for name in OURS:
        service = stack["services"][name]
        assert service["command"][0] in COMMANDS, name
        assert set(service.get("environment", {})) <= setting_names(), name
        assert service["env_file"] == ["deploy/env/penstock.env"]
    keeper = stack["services"]["maintenance"]["environment"]
    assert set(keeper) == {"PENSTOCK_PROBE_PORT", "PENSTOCK_RETENTION_DAYS"}


def test_health_is_asked_where_it_is_answered(stack: dict[str, Any]) -> None:
    paths = {route.path for route in create_app().state.all_routes}
    for name in set(OURS) - {"migrate"}:
        service = stack["services"][name]
        url = service["healthcheck"]["test"][-1]
        _, _, place = url.partition("http://127.0.0.1:")
        port, slash, path = place.partition("/")
        expected = str(Settings().api_port) if name == "api" else service["environment"]["PENSTOCK_PROBE_PORT"]
        assert port == expected, name
        assert slash + path in (paths if name == "api" else PROBE_PATHS), name
        assert service["healthcheck"]["test"][:5] == ["CMD", "python", "-P", "-m", "app.cli.health"]
    assert all("healthcheck" in each for each in stack["services"].values())


def test_nothing_begins_before_what_it_needs(stack: dict[str, Any]) -> None:
    for name in set(OURS) - {"migrate"}:
        assert stack["services"][name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
        }
    assert stack["services"]["migrate"]["restart"] == "no"


def test_each_has_the_time_that_its_drain_takes(stack: dict[str, Any]) -> None:
    settings = Settings()
    drains = {
        "api": GRACE_S, "worker": settings.drain_grace_s, "worker-gpu": settings.drain_grace_s,
        "webhooks": settings.webhook_timeout_s, "maintenance": 10,
    }  # fmt: skip
    for name, drain_s in drains.items():
        assert seconds(stack["services"][name]["stop_grace_period"]) >= drain_s + 10, name


def test_mounts_are_of_what_there_is(stack: dict[str, Any]) -> None:
    for name, each in stack["services"].items():
        for mount in each.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), f"{name}: {source}"
            else:
                assert source in stack["volumes"], f"{name}: {source}"


def test_prometheus_scrapes_services_that_there_are(stack: dict[str, Any]) -> None:
    path = ROOT / "deploy/prometheus/prometheus.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        (service,) = found["names"]
        port = 8000 if service == "api" else int(stack["services"][service]["environment"]["PENSTOCK_PROBE_PORT"])
        assert found["port"] == port, service
    aliases = stack["services"]["worker-gpu"]["networks"]["default"]["aliases"]
    assert aliases == ["worker"]
