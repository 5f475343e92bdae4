"""What does a Kustomize overlay come to? The small part of Kustomize that deploy/kubernetes uses; a test holds it against the real one."""

from pathlib import Path
from typing import Any

import yaml

_KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "images", "patches"}
_POD_KINDS = {"Deployment", "Job"}
_CLUSTER_KINDS = {"Namespace"}
_MERGED_BY_NAME = {"containers", "env", "volumes"}


def build(folder: Path) -> list[dict[str, Any]]:
    """All objects of a kustomization, in no particular order."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert set(plan) <= _KNOWN, f"{folder}: this builder doesn't know {set(plan) - _KNOWN}"
    objects: list[dict[str, Any]] = []
    for name in plan.get("resources", []):
        path = (folder / name).resolve()
        objects += build(path) if path.is_dir() else load(path)
    for patch in plan.get("patches", []):
        (changed,) = load(folder / patch["path"])
        (target,) = [each for each in objects if identity(each)[:2] == identity(changed)[:2]]
        _merge(target, changed)
    for each in objects:
        if "namespace" in plan and each["kind"] not in _CLUSTER_KINDS:
            each["metadata"]["namespace"] = plan["namespace"]
        for label in plan.get("labels", []):
            _label(each, label)
        for image in plan.get("images", []):
            for container in containers(each):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def load(path: Path) -> list[dict[str, Any]]:
    """The documents of a file."""
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each is not None]


def identity(each: dict[str, Any]) -> tuple[str, str, str]:
    """Kind, name and namespace."""
    return each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "")


def containers(each: dict[str, Any]) -> list[dict[str, Any]]:
    """Of its pods, if it has any."""
    return each["spec"]["template"]["spec"]["containers"] if each["kind"] in _POD_KINDS else []


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        elif name in _MERGED_BY_NAME and name in target:
            by_name = {each["name"]: each for each in target[name]}
            for each in value:
                if each["name"] in by_name:
                    _merge(by_name[each["name"]], each)
                else:
                    target[name].append(each)
        else:
            target[name] = value


def _label(each: dict[str, Any], label: dict[str, Any]) -> None:
    assert label.get("includeTemplates") is True
    assert set(label) == {"pairs", "includeTemplates"}
    each["metadata"].setdefault("labels", {}).update(label["pairs"])
    if each["kind"] in _POD_KINDS:
        each["spec"]["template"]["metadata"].setdefault("labels", {}).update(label["pairs"])
