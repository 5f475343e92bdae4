"""What does a grammar cost? The check in its own process, compiling, the first mask, the following ones; on the CPU alone."""

import argparse
import json
import random
import statistics
import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from benchmarks.result import Result
from benchmarks.workload import JSON_SCHEMA
from workers.engine.grammar_check import CheckFailed, GrammarChecker
from workers.engine.grammar_source import GrammarInvalid, GrammarTooComplex, compile_grammar, tokenizer_of
from workers.engine.protocol import Grammar
from workers.engine.tokenizer import byte_bundle

_VOCABULARIES = [2_048, 49_152, 151_936]
_NUM_STEPS = 200
_PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
_GRAMMARS = {
    "schema of two members": Grammar("json_schema", json.dumps(_PERSON)),
    "any JSON object": Grammar("json_object"),
    "list of objects": Grammar("json_schema", JSON_SCHEMA),
    "3,000 texts": Grammar("choice", json.dumps([f"value number {n}" for n in range(3000)])),
    "enum of 62 KB": Grammar("json_schema", json.dumps({"enum": [f"value number {n}" for n in range(2600)]})),
    "date by regex": Grammar("regex", r"[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])"),
    "(a{1,1000}){1,1000}": Grammar("regex", "(a{1,1000}){1,1000}"),
    "(.*[abc].{30}){5}": Grammar("regex", "(.*[abc].{30}){5}"),
    "ambiguous Lark": Grammar("lark", 'start: a a a a a a\na: a a | "x" | a "x" a | '),
    "multipleOf 99999989": Grammar("json_schema", '{"type": "integer", "multipleOf": 99999989}'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--vocabulary", nargs="+", type=int, default=_VOCABULARIES, help="sizes; bytes and made-up words"
    )
    parser.add_argument("--limit", type=int, default=5, help="processor time of a check, in seconds (default 5)")


def run(args: argparse.Namespace) -> Result:
    """Each grammar on each vocabulary."""
    result = Result("grammars", {"vocabulary": args.vocabulary, "limit_s": args.limit})
    for size in args.vocabulary:
        figures = result.figures[str(size)] = _measured(size, args.limit)
        table = Table(title=f"vocabulary of {size:,}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("grammar", no_wrap=True)
        heads = ["check_ms", "compile_ms", "first_mask_ms", "mask_mean_ms", "mask_p99_ms", "mask_worst_ms"]
        for head in heads:
            table.add_column(head.replace("_", " "), justify="right")
        table.add_column("verdict")
        for name, each in figures.items():
            cells = [f"{each[head]:,.3f}" if head in each else "-" for head in heads]
            table.add_row(escape(name), *cells, each["verdict"])
        result.tables.append(table)
    return result


def _measured(size: int, limit_s: int) -> dict[str, dict[str, Any]]:
    tokenizer_json = byte_bundle(size).tokenizer_json
    tokenizer = tokenizer_of(tokenizer_json, size, [size - 1])
    checker = GrammarChecker(tokenizer_json, size, [size - 1], limit_s=limit_s)
    checker.check(Grammar("regex", "warm"))
    found: dict[str, dict[str, Any]] = {}
    for name, grammar in _GRAMMARS.items():
        each: dict[str, Any] = found.setdefault(name, {"verdict": "used"})
        start = time.perf_counter()
        try:
            checker.check(grammar)
        except (GrammarInvalid, CheckFailed) as error:
            each["verdict"] = "too complex" if isinstance(error, GrammarTooComplex) else str(error)
        each["check_ms"] = (time.perf_counter() - start) * 1e3
        if each["verdict"] == "used":
            each |= _followed(tokenizer, grammar)
    return found


def _followed(tokenizer: Any, grammar: Grammar) -> dict[str, Any]:
    start = time.perf_counter()
    matcher = compile_grammar(tokenizer, grammar)
    compile_s = time.perf_counter() - start
    draw = random.Random(1)
    masks: list[float] = []
    while len(masks) < _NUM_STEPS:
        start = time.perf_counter()
        mask = matcher.compute_bitmask()
        masks.append(time.perf_counter() - start)
        bits = int.from_bytes(mask, "little") & ~(1 << tokenizer.eos_token)
        if matcher.is_error() or not bits:
            break
        allowed = [token for token in range(min(tokenizer.vocab_size, 256)) if bits >> token & 1]
        if not allowed or not matcher.consume_token(draw.choice(allowed)):
            break
    rest = sorted(masks[1:]) or masks
    return {
        "compile_ms": compile_s * 1e3,
        "first_mask_ms": masks[0] * 1e3,
        "mask_mean_ms": statistics.mean(rest) * 1e3,
        "mask_p99_ms": rest[int(len(rest) * 0.99)] * 1e3 if len(rest) > 1 else rest[0] * 1e3,
        "mask_worst_ms": rest[-1] * 1e3,
        "masks": len(masks),
    } | ({"verdict": "ran into a limit later"} if matcher.is_error() else {})
