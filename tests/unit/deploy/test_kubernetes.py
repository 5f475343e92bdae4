"""Is deploy/kubernetes what a cluster would take, and does it say what the code does? By schema, and by the code itself."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from app.api.main import GRACE_S, create_app
from app.settings import Settings
from tests.support.deployment import COMMANDS, PROBE_PATHS, ROOT, setting_names
from tests.support.kustomize import build, containers, identity

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu")
SCHEMAS = json.loads((Path(__file__).parent / "schemas/kubernetes-1.32.json").read_text(encoding="utf-8"))
PLACES = {
    "v1": "core.v1",
    "apps/v1": "apps.v1",
    "batch/v1": "batch.v1",
    "policy/v1": "policy.v1",
    "networking.k8s.io/v1": "networking.v1",
}
# KEDA's own documentation, "ScaledObject specification" and "Scalers / Prometheus".
SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {"type": "object", "required": ["name"]},
                "minReplicaCount": {"type": "integer", "minimum": 0},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "fallback": {"type": "object", "required": ["failureThreshold", "replicas"]},
                "advanced": {"type": "object"},
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "prometheus"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            # Strings, every one: KEDA refuses numbers.
                            "metadata": {
                                "type": "object",
                                "additionalProperties": {"type": "string"},
                                "required": ["serverAddress", "query", "threshold"],
                            },
                        },
                    },
                },
            },
        },
    },
}


def schema_of(each: dict[str, Any]) -> dict[str, Any]:
    if each["kind"] == "ScaledObject":
        return SCALED_OBJECT
    return {"$ref": f"#/$defs/io.k8s.api.{PLACES[each['apiVersion']]}.{each['kind']}", "$defs": SCHEMAS["$defs"]}


def errors_of(each: dict[str, Any]) -> list[str]:
    found = jsonschema_rs.validator_for(schema_of(each)).iter_errors(each)
    return [f"{'/'.join(map(str, identity(each)))}: {error.message}" for error in found]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return build(FOLDER / "overlays" / request.param)


def of(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if identity(each)[:2] == (kind, name)]
    return found


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specs of all pods, by their component."""
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in objects if containers(each)}


def test_each_object_keeps_to_its_schema(objects: list[dict[str, Any]]) -> None:
    assert [error for each in objects for error in errors_of(each)] == []
    assert {each["kind"] for each in objects} == {
        "Namespace", "ServiceAccount", "ConfigMap", "Job", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ScaledObject",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Deployment", "NetworkPolicy", "ScaledObject", "Job", "PodDisruptionBudget"])
def test_the_schemas_find_a_wrong_field(kind: str) -> None:
    each = next(each for each in build(FOLDER / "overlays/cpu") if each["kind"] == kind)
    each["spec"]["replica"] = 2
    assert errors_of(each)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_itself_makes_the_same_of_it(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl")
    made = subprocess.run(
        [kubectl, "kustomize", FOLDER / "overlays" / overlay], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    theirs = {identity(each): _sorted(each) for each in yaml.safe_load_all(made.stdout)}
    assert theirs == {identity(each): _sorted(each) for each in build(FOLDER / "overlays" / overlay)}


def _sorted(value: Any) -> Any:
    """Environment variables in any order are the same, and so is what is empty."""
    if isinstance(value, dict):
        return {name: _sorted(each) for name, each in value.items() if each != {}}
    if isinstance(value, list):
        found = [_sorted(each) for each in value]
        return (
            sorted(found, key=lambda each: str(each["name"]))
            if all(isinstance(each, dict) and "name" in each for each in found)
            else found
        )
    return value


def test_no_pod_may_do_more_than_it_must(objects: list[dict[str, Any]]) -> None:
    for name, pod in pods(objects).items():
        assert pod["automountServiceAccountToken"] is False, name
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert {"/tmp", "/cache"} <= {mount["mountPath"] for mount in container["volumeMounts"]}, name
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"]["memory"], name


def test_each_image_is_of_one_version_and_each_command_exists(objects: list[dict[str, Any]]) -> None:
    for name, pod in pods(objects).items():
        (container,) = pod["containers"]
        image, _, tag = container["image"].partition(":")
        assert image.endswith("/penstock"), name
        assert tag.split("-")[0] == "0.1.0", "of this version, never latest"
        assert container["args"][0] in COMMANDS, name
        assert "command" not in container, "the image's entry point is tini"


def test_each_environment_variable_is_a_setting(objects: list[dict[str, Any]]) -> None:
    names = set(of(objects, "ConfigMap", "penstock")["data"])
    names |= {each["name"] for pod in pods(objects).values() for each in pod["containers"][0].get("env", [])}
    assert names - setting_names() == set()
    for each in (of(objects, "ConfigMap", "penstock")["data"],):
        Settings.model_validate({name.removeprefix("PENSTOCK_").lower(): value for name, value in each.items()})


def test_probes_ask_where_the_code_answers(objects: list[dict[str, Any]]) -> None:
    paths = {route.path for route in create_app().state.all_routes}
    port = int(of(objects, "ConfigMap", "penstock")["data"]["PENSTOCK_PROBE_PORT"])
    for name, pod in pods(objects).items():
        (container,) = pod["containers"]
        if name == "migrate":
            continue
        (named,) = container["ports"]
        assert named["containerPort"] == (Settings().api_port if name == "api" else port), name
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[kind]["httpGet"]
            assert asked["port"] == named["name"], name
            assert asked["path"] in (paths if name == "api" else PROBE_PATHS), name
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "Postgres away is no reason to restart"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_has_the_time_that_its_drain_takes(objects: list[dict[str, Any]]) -> None:
    settings, found = Settings(), pods(objects)
    drains = {
        "api": GRACE_S, "worker": settings.drain_grace_s, "webhooks": settings.webhook_timeout_s, "maintenance": 10, "migrate": 0,
    }  # fmt: skip
    for name, drain_s in drains.items():
        stop = (
            found[name]["containers"][0]
            .get("lifecycle", {})
            .get("preStop", {})
            .get("exec", {})
            .get("command", ["sleep", "0"])
        )
        assert stop[0] == "sleep"
        assert found[name]["terminationGracePeriodSeconds"] >= drain_s + int(stop[1]) + 10, name
    startup = found["worker"]["containers"][0]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings.engine_start_timeout_s


def test_selectors_select_what_there_is(objects: list[dict[str, Any]]) -> None:
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in objects if containers(each)
    }
    for each in objects:
        wanted = {
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
        }.get(each["kind"])
        if wanted:
            assert any(wanted(each["spec"]).items() <= found.items() for found in labels.values()), identity(each)
    assert {each["metadata"]["name"] for each in objects if each["kind"] == "PodDisruptionBudget"} == set(labels) - {
        "migrate"
    }
    assert of(objects, "ScaledObject", "worker")["spec"]["scaleTargetRef"]["name"] in labels
    assert "replicas" not in of(objects, "Deployment", "worker")["spec"], "KEDA says how many"


def test_the_scaler_asks_for_a_metric_that_there_is(objects: list[dict[str, Any]]) -> None:
    (trigger,) = of(objects, "ScaledObject", "worker")["spec"]["triggers"]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "app").rglob("*.py"))
    assert '"penstock_desired_replicas"' in source
    assert 'penstock_desired_replicas{pool="' in trigger["metadata"]["query"]


def test_nobody_talks_to_anybody_but_as_it_is_said(objects: list[dict[str, Any]]) -> None:
    nobody = of(objects, "NetworkPolicy", "nobody")["spec"]
    assert nobody["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in nobody
    assert "egress" not in nobody
    (rule,) = of(objects, "NetworkPolicy", "webhooks")["spec"]["egress"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(
        rule["to"][0]["ipBlock"]["except"]
    )
    traces = of(objects, "NetworkPolicy", "traces")["spec"]
    assert set(traces["podSelector"]["matchExpressions"][0]["values"]) == {"api", "worker", "webhooks"}
    assert [port["port"] for rule in traces["egress"] for port in rule["ports"]] == [4318]
    assert all(rule["to"] for rule in traces["egress"]), "to a collector, not to anybody"


def test_a_gpu_is_asked_for_by_the_overlay_that_needs_one() -> None:
    cpu, gpu = [pods(build(FOLDER / "overlays" / each))["worker"]["containers"][0] for each in OVERLAYS]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (cpu["image"].rpartition("-")[2], gpu["image"].rpartition("-")[2]) == ("cpu", "cuda")
