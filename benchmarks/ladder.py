"""Which rungs has the staircase from one request at a time to our engine with everything on?

What our engine can do is asked of its settings: a rung whose field `EngineConfig` doesn't have isn't built yet.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from workers.engine.config import EngineConfig

PEER_RUNGS = ["naive", "static8", "static64", "continuous"]

# A rung's name; what its field's name holds; the value that is taken where there is a choice.
_FEATURES = [
    ("+ prefix cache", ("prefix",), None),
    ("+ quantised", ("quant",), "int8"),
    ("+ speculation", ("specul", "suffix"), None),
]
_DEFAULT_SPECULATED = 4  # tokens


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of our engine's part of the staircase."""

    name: str
    settings: dict[str, Any]  # of EngineConfig; of all rungs up to here
    is_built: bool = True


def engine_rungs(config: type = EngineConfig) -> list[Rung]:
    """Ours, from the bare paged engine up; a rung that isn't built changes nothing."""
    types = get_type_hints(config, include_extras=True)
    fields = {name: _field_of(types, words) for name, words, _ in _FEATURES}
    settings = {field: _off(types[field]) for field in fields.values() if field is not None}
    rungs = [Rung("paged", dict(settings))]
    for name, _, choice in _FEATURES:
        field = fields[name]
        if field is not None:
            settings[field] = _on(types[field], choice)
        rungs.append(Rung(name, dict(settings), is_built=field is not None))
    return rungs


def _field_of(types: dict[str, Any], words: tuple[str, ...]) -> str | None:
    found = [field for field in types if any(word in field for word in words) and _kind(types[field]) is not None]
    return min(found, key=len) if found else None  # `speculation` rather than `speculation_min_match`


def _kind(hint: Any) -> Any:
    """bool, int or Literal; None for what a rung can't switch."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return hint
    return hint if hint in {bool, int} else None


def _off(hint: Any) -> Any:
    kind = _kind(hint)
    if kind in {bool, int}:
        return kind(0)
    names = get_args(kind)
    return next((name for name in ("none", "off", "") if name in names), names[0])


def _on(hint: Any, choice: str | None) -> Any:
    kind = _kind(hint)
    if kind is bool:
        return True
    if kind is int:
        return _DEFAULT_SPECULATED
    others = [name for name in get_args(kind) if name != _off(hint)]
    return choice if choice in others else others[0]
