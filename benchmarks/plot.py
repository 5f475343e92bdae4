"""What do the figures look like? Bars of tok/s, one panel a case, as a PNG."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.engine_report import OURS
from benchmarks.ladder import engine_rungs
from benchmarks.result import Result

_OURS_COLOUR, _PEER_COLOUR = "#0b7285", "#adb5bd"


def require() -> None:
    """Stop now rather than after the measuring, if matplotlib isn't there."""
    if find_spec("matplotlib") is None:
        raise SystemExit("--plot needs matplotlib: pip install -c constraints.txt -e '.[bench]'")


def draw(result: Result, path: Path) -> None:
    """One panel for each model and case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (model, case, figures)
        for model in (Path(each).name for each in result.settings["model"])
        for case, figures in result.figures.get(model, {}).items()
    ]
    sizes = [len(figures) + 1.5 for _, _, figures in panels]
    figure = Figure(figsize=(8, 0.42 * sum(sizes) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=sizes)
    for (model, case, figures), axis in zip(panels, axes[:, 0], strict=True):
        _panel(axis, f"{model}  {case}", figures)
    axes[-1, 0].set_xlabel("output tokens a second")
    machine = result.figures["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}", fontsize=9, x=0.01, ha="left"
    )
    figure.savefig(path, dpi=144, format="png")


def _panel(axis: Any, title: str, figures: dict[str, dict[str, Any]]) -> None:
    ours = {OURS, *(rung.name for rung in engine_rungs())}
    names = list(figures)
    speeds = [figures[name]["tok_s"] for name in names]
    bars = axis.barh(names, speeds, color=[_OURS_COLOUR if name in ours else _PEER_COLOUR for name in names])
    axis.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
