"""What may a deployment's files name? Commands, settings, paths of probes: asked of the code."""

import inspect
import re
from pathlib import Path

import typer.main

import app.cli.main as cli
from app import probe
from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMMANDS = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
PROBE_PATHS = set(re.findall(r'Route\("(/[a-z]+)"', inspect.getsource(probe)))


def setting_names() -> set[str]:
    """Every environment variable that is a setting."""
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names |= set(map(str, getattr(alias, "choices", []))) or {f"PENSTOCK_{name.upper()}"}
    return names
