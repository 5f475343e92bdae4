"""What do the runs of all contenders say? A table for each case, ratios, and the bars that could be judged."""

import statistics
from dataclasses import dataclass, field
from operator import truediv
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.contest import Run
from benchmarks.result import Bar, Result
from benchmarks.roofline import Limits, Shape, least_s
from benchmarks.workload import VARIANTS, Prompt, cases

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
# Model, case: share of the roofline, at least.
_CUDA_ROOFLINE_BARS = [
    ("qwen05", "single-64-128", 0.35),
    ("qwen05", "batch256-128-128", 0.50),
    ("llama8", "batch64-128-128", 0.65),
]
_MOST_SCHEMA_OVERHEAD = 0.05
_LEAST_SPECULATION = 1.5
# Model, case, key, name, most.
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
    figures: dict[str, float] = field(default_factory=dict)  # of the last run


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
    if "acceptance" in entry.figures:
        del figures["roofline_share"]  # it takes a pass for each token, which is what speculation saves
    return figures | entry.figures


def _table(model: str, case: str, figures: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{model}  {case}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("contender", no_wrap=True)
    ratio_head, ratios = _ratios(figures)
    guesses = any("acceptance" in each for each in figures.values())
    heads = ["tok/s", "ttft ms", "itl p50 ms", "itl p99 ms", "KV waste", "Python", "of roofline", "others' load"]
    for head in [ratio_head, *heads, *(["guesses right"] if guesses else [])]:
        table.add_column(head, justify="right", overflow="fold")
    for name, each in figures.items():
        table.add_row(
            name,
            f"{ratios[name]:.2f} x" if name in ratios else "",
            f"{each['tok_s']:,.1f}",
            *(f"{each[key] * 1000:,.1f}" for key in ("ttft_p50_s", "itl_p50_s", "itl_p99_s")),
            *(_percent(each.get(key)) for key in ("kv_waste", "python_share", "roofline_share", "elsewhere")),
            *([_percent(each.get("acceptance"))] if guesses else []),
        )
    return table


def _ratios(figures: dict[str, dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """A column's head and cells: ours over each, or on the ladder each over the lowest rung."""
    if OURS in figures:
        return "ours is", figures[OURS]["ratios"]
    lowest = next(iter(figures))
    return f"to {lowest}", {name: each["tok_s"] / figures[lowest]["tok_s"] for name, each in figures.items()}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _judge(result: Result, device: str) -> None:
    """Bars whose contenders ran are judged; the others are named."""
    on_cpu = device == "cpu"
    for model, case, peer, least in _RATIO_BARS if on_cpu else _CUDA_RATIO_BARS:
        ratio = _ours(result, model, case).get("ratios", {}).get(peer)
        _add_bar(result, f"{model} {case} against {peer}", ratio, least, "times", at_most=False)
    for model, case, key, words, most in _INSIDE_BARS:
        share = _ours(result, model, case).get(key)
        _add_bar(result, f"{model} {case} {words}", share and share * 100, most * 100, "%", at_most=True)
    for model, case, least in [] if on_cpu else _CUDA_ROOFLINE_BARS:
        share = _ours(result, model, case).get("roofline_share")
        _add_bar(
            result, f"{model} {case} share of the roofline", share and share * 100, least * 100, "%", at_most=False
        )
    for case, model in (("json-schema", "smol135"), ("copying", "copy135")):
        _judge_variant(result, model, case)


def _judge_variant(result: Result, model: str, case: str) -> None:
    """With against without. Speculation that changed the output has failed, however fast it was."""
    found = result.figures.get(model, {}).get(case, {})
    plain, other = found.get(OURS), found.get(f"{OURS} {VARIANTS[case]}")
    ratio = None
    if plain and other:  # by pairs: the two runs of a pair have had the same neighbours on the machine
        ratio = statistics.median(map(truediv, other["tok_s_runs"], plain["tok_s_runs"]))
    if case == "json-schema":
        overhead = None if ratio is None else (1 - ratio) * 100
        _add_bar(result, f"{model} {case} overhead", overhead, _MOST_SCHEMA_OVERHEAD * 100, "%", at_most=True)
        return
    _add_bar(result, f"{model} {case} speculating against not", ratio, _LEAST_SPECULATION, "times", at_most=False)
    if ratio is not None and plain["output_crc"] != other["output_crc"]:
        result.failed.append(f"{model} {case}: speculation changed the output")


def _add_bar(result: Result, name: str, value: float | None, limit: float, unit: str, *, at_most: bool) -> None:
    if value is None:
        result.not_judged.append(name)
    else:
        result.bars.append(Bar(name, value, limit, unit, at_most=at_most))


def _ours(result: Result, model: str, case: str) -> dict[str, Any]:
    figures: dict[str, Any] = result.figures.get(model, {}).get(case, {}).get(OURS, {})
    return figures
