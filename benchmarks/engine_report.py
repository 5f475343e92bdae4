"""What do the runs of all contenders say? A table for each case, ratios, and the bars that could be judged."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.contest import Run
from benchmarks.result import Bar, Result
from benchmarks.roofline import Limits, Shape, least_s
from benchmarks.workload import Prompt, cases

OURS = "penstock"

# Model, case, peer: how many times its tok/s ours must be.
_RATIO_BARS = [
    ("smol135", "single-64-128", "vllm", 1.5),
    ("smol135", "batch16-256-128", "vllm", 1.2),
    ("smol135", "shared1k-x32", "vllm", 1.2),
    ("smol135", "mixed64", "vllm", 1.2),
    ("smol135", "mixed64", "static64", 4.0),
    ("smol135", "mixed64", "continuous", 8.0),
    ("smol135", "mixed64", "naive", 20.0),
    ("smol135", "mixed48-long", "vllm", 1.2),
    ("qwen05", "mixed64", "vllm", 1.1),
]
_CUDA_RATIO_BARS = [("qwen05", "mixed64", "continuous", 5.0)]
# Model, case, figure, most.
_INSIDE_BARS = [
    ("smol135", "mixed64", "kv_waste", "KV waste", 0.04),
    ("smol135", "mixed64", "python_share", "Python's share", 0.10),
]


@dataclass(frozen=True, slots=True)
class Entry:
    """What one contender did on one case."""

    case: str
    name: str
    runs: list[Run]


@dataclass(slots=True)
class Scene:
    """All contenders on one model."""

    model: str
    folder: Path
    limits: Limits
    entries: list[Entry] = field(default_factory=list)
    inside: dict[str, dict[str, float]] = field(default_factory=dict)  # by case
    versions: dict[str, str] = field(default_factory=dict)


def report(scenes: list[Scene], *, settings: dict[str, Any], ladder_not_built: list[str]) -> Result:
    """Figures by model, case and contender; tables; bars."""
    result = Result("engine", settings)
    for scene in scenes:
        result.figures[scene.model] = {case: _figures(scene, case) for case in _case_names(scene)}
        result.figures[f"{scene.model} versions"] = scene.versions
        for case in _case_names(scene):
            table = _table(scene.model, case, result.figures[scene.model][case])
            for name in ladder_not_built if case == "ladder" else []:
                table.add_row(name, "not built yet", *["-"] * (len(table.columns) - 2))
            result.tables.append(table)
    if ladder_not_built:
        result.figures["ladder not built yet"] = ladder_not_built
    _judge(result, settings["device"])
    return result


def _case_names(scene: Scene) -> list[str]:
    return list(dict.fromkeys(entry.case for entry in scene.entries))


def _figures(scene: Scene, case: str) -> dict[str, dict[str, Any]]:
    """By contender. Medians over the runs."""
    prompts = cases()[case]
    best = sum(prompt.num_tokens for prompt in prompts) / least_s(Shape.of(scene.folder), prompts, scene.limits)
    found = {entry.name: _speed(entry, prompts, best) for entry in scene.entries if entry.case == case}
    if OURS in found:
        ours = found[OURS]
        ours |= scene.inside.get(case, {})
        ours["ratios"] = {name: ours["tok_s"] / each["tok_s"] for name, each in found.items() if name != OURS}
    return found


def _speed(entry: Entry, prompts: list[Prompt], best: float) -> dict[str, Any]:
    tokens = sum(prompt.num_tokens for prompt in prompts)
    speeds = [tokens / run.seconds for run in entry.runs]
    figures: dict[str, Any] = {"tok_s": statistics.median(speeds), "tok_s_runs": speeds, "tokens": tokens}
    for name in ("ttft_p50_s", "itl_p50_s", "itl_p99_s"):
        figures[name] = statistics.median(run.latencies[name] for run in entry.runs)
    figures["roofline_share"] = figures["tok_s"] / best
    figures["elsewhere"] = max(run.elsewhere for run in entry.runs)
    return figures


def _table(model: str, case: str, figures: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{model}  {case}", title_justify="left")
    table.add_column("contender")
    heads = ["tok/s", "first token ms", "token p50 ms", "p99 ms", "KV waste", "Python", "of roofline", "others' load"]
    for head in ["ours is", *heads] if OURS in figures else heads:
        table.add_column(head, justify="right")
    ratios = figures.get(OURS, {}).get("ratios", {})
    for name, each in figures.items():
        cells = [
            f"{each['tok_s']:,.1f}",
            *(f"{each[key] * 1000:,.1f}" for key in ("ttft_p50_s", "itl_p50_s", "itl_p99_s")),
            *(_percent(each.get(key)) for key in ("kv_waste", "python_share", "roofline_share", "elsewhere")),
        ]
        ratio = [f"{ratios[name]:.2f} x" if name in ratios else ""] if OURS in figures else []
        table.add_row(name, *ratio, *cells)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _judge(result: Result, device: str) -> None:
    """Bars whose contenders ran are judged; the others are named."""
    for model, case, peer, least in _RATIO_BARS if device == "cpu" else _CUDA_RATIO_BARS:
        name = f"{model} {case} against {peer}"
        value = _ours(result, model, case).get("ratios", {}).get(peer)
        if value is None:
            result.not_judged.append(name)
        else:
            result.bars.append(Bar(name, value, least, "times", at_most=False))
    for model, case, key, words, most in _INSIDE_BARS:
        name = f"{model} {case} {words}"
        value = _ours(result, model, case).get(key)
        if value is None:
            result.not_judged.append(name)
        else:
            result.bars.append(Bar(name, value * 100, most * 100, "%"))


def _ours(result: Result, model: str, case: str) -> dict[str, Any]:
    figures: dict[str, Any] = result.figures.get(model, {}).get(case, {}).get(OURS, {})
    return figures
