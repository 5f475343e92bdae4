"""How fast is the engine beside what a user would take instead? Same machine, same weights, same requests, one run."""

import argparse
import os
import platform
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import plot
from benchmarks.contest import Contender, ContenderFailed, Played, compete
from benchmarks.engine_report import Entry, Scene, report
from benchmarks.ladder import PEER_RUNGS, engine_rungs
from benchmarks.models import MODELS, default_folder, model_folder
from benchmarks.peers.task import Task
from benchmarks.result import Result
from benchmarks.roofline import Limits
from benchmarks.workload import cases

PEERS = ["naive", "static8", "static64", "continuous", "vllm"]
_PLAYERS = "benchmarks.peers"
_USUAL_CASES = ["single-64-128", "batch16-256-128", "shared1k-x32", "mixed64", "mixed48-long"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--case",
        nargs="+",
        choices=list(cases()),
        default=_USUAL_CASES,
        help=f"which requests (default: {' '.join(_USUAL_CASES)}); `ladder` brings its own contenders, `json-schema` "
        "compares our engine with and without a schema, `copying` with and without speculation (on the model copy135)",
    )
    parser.add_argument(
        "--model", nargs="+", default=["smol135"], help=f"{', '.join(MODELS)}, or a model's folder (default smol135)"
    )
    parser.add_argument("--peer", nargs="*", choices=PEERS, default=[], help="whom to compare with (default: nobody)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of every contender (default: one a core)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="timed runs; the median counts (default 1)")
    parser.add_argument("--models", type=Path, default=default_folder(), metavar="DIR", help="where models are kept")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures as a PNG (needs the extra `bench`)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="our engine's settings, such as max_batch_tokens=1024",
    )


def run(args: argparse.Namespace) -> Result:
    """Every contender in turn; then the figures side by side."""
    console = Console(stderr=True)
    if args.plot:
        plot.require()
    python = _vllm_python() if "vllm" in args.peer else ""
    settings = {name: _value(value) for name, _, value in (each.partition("=") for each in args.set)}
    not_built = [rung.name for rung in engine_rungs() if not rung.is_built]
    scenes: list[Scene] = []
    failed: list[str] = []
    limits = None
    with console.status("getting ready") as status:
        tell = partial(tell_on, console, status)
        for model in args.model:
            tell(f"{model}: looking for it, or making it")
            folder = model_folder(model, args.models)
            task = Task(str(folder), [], args.repeat, device=args.device, threads=args.threads, settings=settings)
            limits = limits or measure_limits(task, tell)
            scene = Scene(Path(model).name, folder, limits)
            for contender in _contenders(args, task, python):
                tell(f"{scene.model}: {contender.name}")
                try:
                    _enter(scene, contender, compete(contender, tell))
                except ContenderFailed as failure:  # what it and the others have measured is worth keeping
                    console.print(str(failure), markup=False, highlight=False)
                    _enter(scene, contender, failure.played)
                    failed.append(f"{scene.model} {contender.name} ended early")
            scenes.append(scene)
    assert limits is not None
    result = report(scenes, settings=_settings(args), ladder_not_built=not_built if "ladder" in args.case else [])
    result.failed += failed
    result.figures["machine"] = machine(limits, args.device)
    if args.plot:
        plot.draw(result, args.plot)
    return result


def _contenders(args: argparse.Namespace, task: Task, python: str) -> list[Contender]:
    """In the order of their turns. Who plays several cases loads the model once."""
    usual = [case for case in args.case if case != "ladder"]
    found = []
    for name in PEERS:
        names = list(usual) if name in args.peer else []
        if "ladder" in args.case and name in PEER_RUNGS:
            names.append("ladder")
        if not names:
            continue
        its_task = replace(task, cases=names, mode=name, settings={})
        if name == "vllm":
            found.append(Contender(name, f"{_PLAYERS}.vllm_engine", its_task, python))
        else:
            found.append(Contender(name, f"{_PLAYERS}.hugging_face", its_task))
    if usual:
        found.append(Contender("penstock", f"{_PLAYERS}.penstock", replace(task, cases=usual)))
        found.append(Contender("inside", f"{_PLAYERS}.inside", replace(task, cases=usual, repeat=1)))
    if "ladder" in args.case:
        found += [
            Contender(
                rung.name,
                f"{_PLAYERS}.penstock",
                replace(task, cases=["ladder"], settings=task.settings | rung.settings),
            )
            for rung in engine_rungs()
            if rung.is_built
        ]
    return found


def _enter(scene: Scene, contender: Contender, played: Played) -> None:
    """Write down what a contender has shown."""
    scene.versions |= played.versions
    for told, runs in played.runs.items():
        case, _, variant = told.partition("/")
        name = f"{contender.name} {variant}" if variant else contender.name
        scene.entries.append(Entry(case, name, runs, played.figures.get(told, {})))
    if contender.name == "inside":
        scene.inside |= played.figures


def measure_limits(task: Task, tell: Any) -> Limits:
    """What the machine reads and computes at most, measured in a process of its own."""
    tell("measuring the machine's limits")
    played = compete(Contender("limits", "benchmarks.peers.limits", task), tell)
    return Limits(**played.figures[""])


def _vllm_python() -> str:
    python = os.environ.get("VLLM_PYTHON", "")
    if not python or shutil.which(python) is None:
        raise SystemExit("--peer vllm: set VLLM_PYTHON to the interpreter of an environment that has vLLM")
    return python


def tell_on(console: Console, status: Any, line: str) -> None:
    """On a terminal one line that changes; elsewhere a line each."""
    if console.is_terminal:
        status.update(line)
    else:
        console.print(line, markup=False, highlight=False)


def _value(text: str) -> Any:
    lowered = text.lower()
    if lowered in {"true", "false"}:
        return lowered == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "case", "peer", "device", "threads", "repeat", "set")
    return {name: getattr(args, name) for name in names}


def machine(limits: Limits, device: str = "cpu") -> dict[str, Any]:
    """Where it was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        **({"gpu": _gpu_name()} if device == "cuda" else {}),
        "cores": len(os.sched_getaffinity(0)),
        "read_gb_per_s": limits.bytes_per_s / 1e9,
        "bf16_gflop_per_s": limits.flops_per_s / 1e9,
        "load_average_1m_at_end": os.getloadavg()[0],
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _gpu_name() -> str:
    """Name and driver, as the driver's own tool says them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return lines[0] if lines else "unknown"
