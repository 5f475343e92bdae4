"""How is a guard taken out? By text that stands exactly once, or not at all."""

from pathlib import Path

from tests.mutations.guards import Patch

ROOT = Path(__file__).parents[2]


class DoesNotApply(Exception):
    """The text isn't there exactly once: the code has moved on, and the patch must follow."""


def patched(patch: Patch, root: Path) -> str:
    """The file's text without the guard.

    Raises:
        DoesNotApply: the patch's text isn't in the file exactly once.
    """
    text = (root / patch.path).read_text(encoding="utf-8")
    found = text.count(patch.old)
    if found != 1:
        raise DoesNotApply(f"{patch.path} has {found} times, not once: {patch.old!r}")
    return text.replace(patch.old, patch.new)


def apply(patch: Patch, root: Path) -> None:
    """Take the guard out of the tree at `root`."""
    (root / patch.path).write_text(patched(patch, root), encoding="utf-8")
