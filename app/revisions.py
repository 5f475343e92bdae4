"""Which revisions of the schema does this code know? Read from the migrations' own lines: Alembic, which runs them, is slow to import."""

import re
from functools import cache
from importlib.resources import files

_LINE = re.compile(r'^(revision|down_revision) = (?:"(\w+)"|None)$', re.MULTILINE)


def head_revision() -> str | None:
    """The revision that this code wants; None where the installation has no migrations."""
    _, head = _read()
    return head


def known_revisions() -> frozenset[str]:
    """All revisions that this code has migrations for. A database at another one was migrated by newer code."""
    known, _ = _read()
    return known


@cache
def _read() -> tuple[frozenset[str], str | None]:
    """All of them, and the one that none comes after. They are one line: the head is the only such one."""
    known: set[str] = set()
    before: set[str] = set()
    folder = files("migrations") / "versions"
    for each in folder.iterdir() if folder.is_dir() else ():
        if each.name.endswith(".py"):
            said = dict(_LINE.findall(each.read_text(encoding="utf-8")))
            known.add(said["revision"])
            before.add(said["down_revision"])
    return frozenset(known), next(iter(known - before), None)
