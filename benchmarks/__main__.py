"""`python -m benchmarks NAME`: run one benchmark, show it, write it, check its bars."""

import argparse
import sys
from pathlib import Path

from benchmarks import (
    api,
    batches,
    chaos,
    claims,
    dashboard,
    engine,
    fairness,
    grammars,
    lifecycle,
    overload,
    preempt,
    quantization,
    rebuild,
    retention,
    simulate,
    streams,
    webhooks,
)
from benchmarks.contest import ContenderFailed, heed_interrupts

BENCHMARKS = {
    "api": api,
    "batches": batches,
    "chaos": chaos,
    "claims": claims,
    "dashboard": dashboard,
    "engine": engine,
    "fairness": fairness,
    "grammars": grammars,
    "lifecycle": lifecycle,
    "overload": overload,
    "preempt": preempt,
    "quantization": quantization,
    "rebuild": rebuild,
    "retention": retention,
    "simulate": simulate,
    "streams": streams,
    "webhooks": webhooks,
}


def main() -> int:
    """0; 1 where --check finds a missed bar; 2 where something couldn't be measured; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        each = names.add_parser(name, help=(module.__doc__ or "").splitlines()[0], description=module.__doc__)
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
        each.add_argument("--check", action="store_true", help="exit 1 and name each bar that is missed")
        module.add_arguments(each)
    args = parser.parse_args()
    heed_interrupts()
    try:
        result = BENCHMARKS[args.name].run(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except (ContenderFailed, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    result.show()
    if args.json:
        result.write(args.json)
    missed = result.missed()
    if args.check and missed:
        sys.stderr.write("missed: " + ", ".join(missed) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
