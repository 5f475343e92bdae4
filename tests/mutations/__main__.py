"""`python -m tests.mutations [GUARD ...]`: is each guard of the protocol guarded by a test? Exit status 0: each has its killer."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.checking import Broken, check_whole, killers_of
from tests.mutations.guards import GUARDS


def main(names: Sequence[str]) -> int:
    """Check these guards, or all; print one line for each. 1: some guard is missed by no test; 2: it can't be checked."""
    unknown = set(names) - {guard.name for guard in GUARDS}
    if unknown:
        print(f"no such guard: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [guard for guard in GUARDS if not names or guard.name in names]
    active = [guard for guard in chosen if guard.patches]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="penstock-mutations-") as folder:
        root = Path(folder)
        root.chmod(0o755)  # Postgres runs under an account of its own and looks in
        try:
            check_whole(active, root / "whole")
            for guard in active:
                killers = killers_of(guard, root / guard.name)
                print(f"{'killed' if killers else 'SURVIVED':<9} {guard.name}: {', '.join(killers)}", flush=True)
                survivors += [] if killers else [guard.name]
        except Broken as error:
            print(f"broken: {error}", file=sys.stderr)
            return 2
    for guard in chosen:
        if guard.pending:
            print(f"{'pending':<9} {guard.name}: {guard.pending}")
    if survivors:
        print(f"no test fails without: {', '.join(survivors)}", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
