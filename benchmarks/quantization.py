"""What do quantised weights save, and what do they cost? Memory, speed, and the bundled model's perplexity, in one run."""

import argparse
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from benchmarks.contest import Contender, compete
from benchmarks.engine import machine, measure_limits, tell_on
from benchmarks.models import MODELS, default_folder, model_folder
from benchmarks.peers.task import Task
from benchmarks.result import Bar, Result
from benchmarks.workload import cases
from workers.engine.config import Quantization
from workers.models import BROOK

KINDS = get_args(Quantization)
_CASES = {"single-64-128": "1 sequence", "batch16-256-128": "16 sequences"}
# How many times the unquantised model's perplexity, at most.
_PERPLEXITY_BARS = {"int8": 1.02, "nf4": 1.05, "fp4": 1.10}
_ROW = 512  # tokens of a text that are read at once
_SEED = 4_000_037  # of texts that brook was neither trained nor validated on


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a model says a text."""

    perplexity: float  # e to the mean of its tokens' negative log-probabilities
    weight_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--model", default="smol135", help=f"whose speed: {', '.join(MODELS)}, or a model's folder (default smol135)"
    )
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of text for the perplexity (default 32,768)")
    parser.add_argument(
        "--case", nargs="*", choices=list(cases()), default=list(_CASES), help="whose speed is measured"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: one a core)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="timed runs; the median counts (default 3)")
    parser.add_argument("--models", type=Path, default=default_folder(), metavar="DIR", help="where models are kept")


def run(args: argparse.Namespace) -> Result:
    """Each kind in turn."""
    names = ("model", "tokens", "case", "device", "threads", "repeat")
    result = Result("quantization", {name: getattr(args, name) for name in names})
    console = Console(stderr=True)
    with console.status("getting ready") as status:
        tell = partial(tell_on, console, status)
        for kind in KINDS:
            tell(f"brook: {kind}")
            quality = quality_of(BROOK, kind, args.tokens, args.device)
            result.figures[f"brook {kind}"] = {"perplexity": quality.perplexity, "bytes": quality.weight_bytes}
        if args.case:
            folder = model_folder(args.model, args.models)
            task = Task(str(folder), list(args.case), args.repeat, device=args.device, threads=args.threads)
            result.figures["machine"] = machine(measure_limits(task, tell))
            for kind in KINDS:
                result.figures[f"speed {kind}"] = _speed(task, kind, tell)
                result.figures[f"speed {kind}"]["bytes"] = quality_of(folder, kind, 0, args.device).weight_bytes
    plain = result.figures["brook none"]["perplexity"]
    result.bars += [
        Bar(f"perplexity {kind} / none", result.figures[f"brook {kind}"]["perplexity"] / plain, limit, "x")
        for kind, limit in _PERPLEXITY_BARS.items()
    ]
    result.tables.append(_table(result, args))
    return result


def quality_of(folder: Path, kind: Quantization, num_tokens: int, device: str = "cpu") -> Quality:
    """Load a model as the engine does, and let it say about `num_tokens` of text that it hasn't seen (none if 0)."""
    import torch
    from transformers.utils import logging

    from workers.engine.model import load_model
    from workers.engine.quantize import weight_bytes

    logging.disable_progress_bar()
    model = load_model(folder, torch.device(device), "auto", kind)
    module: Any = model.module
    module.set_attn_implementation("sdpa")
    losses: list[float] = []
    with torch.inference_mode():
        for row in _rows(folder, num_tokens):
            ids = torch.tensor([row], device=device)
            logits = module(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    perplexity = math.exp(sum(losses) / len(losses)) if losses else math.nan
    return Quality(perplexity, weight_bytes(module))


def _rows(folder: Path, num_tokens: int) -> list[list[int]]:
    if not num_tokens:
        return []
    from transformers import AutoTokenizer

    from workers.models.train_brook import Packer, token_documents

    packer = Packer(token_documents(AutoTokenizer.from_pretrained(folder), _SEED))
    return [row.tolist() for row in packer.batch(max(1, num_tokens // _ROW), _ROW)]


def _speed(task: Task, kind: Quantization, tell: Any) -> dict[str, Any]:
    """Tokens a second by case: the median run's, and every run's."""
    settings = task.settings | {"quantization": kind}
    found: dict[str, Any] = {}
    mine = Task(task.model, task.cases, task.repeat, device=task.device, threads=task.threads, settings=settings)
    played = compete(Contender(kind, "benchmarks.peers.penstock", mine), tell)
    for case, runs in played.runs.items():
        num_tokens = sum(prompt.num_tokens for prompt in cases()[case])
        rates = sorted(num_tokens / run.seconds for run in runs)
        found[case] = {"tok/s": rates[len(rates) // 2], "runs": rates, "elsewhere": max(run.elsewhere for run in runs)}
    return found


def _table(result: Result, args: argparse.Namespace) -> Table:
    figures = result.figures
    table = Table(title=f"{args.model}: memory and speed; brook: perplexity over {args.tokens:,} tokens")
    table.add_column("weights")
    columns = ["memory", *(_CASES.get(case, case) for case in args.case)] if args.case else []
    for name in [*columns, "brook's memory", "brook's perplexity"]:
        table.add_column(name, justify="right")
    for kind in KINDS:
        cells = []
        if args.case:
            speed, plain = figures[f"speed {kind}"], figures["speed none"]
            cells.append(_with_ratio(speed["bytes"] / 2**20, plain["bytes"] / 2**20, "MiB"))
            cells += [_with_ratio(speed[case]["tok/s"], plain[case]["tok/s"], "tok/s") for case in args.case]
        brook, plain = figures[f"brook {kind}"], figures["brook none"]
        cells.append(_with_ratio(brook["bytes"] / 2**20, plain["bytes"] / 2**20, "MiB"))
        cells.append(_with_ratio(brook["perplexity"], plain["perplexity"], "", digits=3))
        table.add_row(kind, *cells)
    return table


def _with_ratio(value: float, plain: float, unit: str, digits: int = 1) -> str:
    return f"{value:,.{digits}f} {unit} ({value / plain:.3f} x)".replace("  ", " ")
