"""Can each guard still be taken out, and do its killers and its docs exist? `make mutations` shows that they kill."""

import re
from pathlib import Path

import pytest

from tests.mutations.checking import Broken, killers_of
from tests.mutations.guards import GUARDS, Guard, Patch
from tests.mutations.patching import ROOT, DoesNotApply, apply, patched

NAMED = {
    "fence", "gen", "idempotent-enqueue", "one-transaction-finish", "reserve-before", "lease-recheck",
    "commit-before-ack", "suspect-before-convict",
}  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_each_patch_applies_and_leaves_code_that_compiles(guard: Guard) -> None:
    assert bool(guard.patches) != bool(guard.pending)
    for patch in guard.patches:
        assert patch.old != patch.new
        text = patched(patch, ROOT)
        if patch.path.endswith(".py"):
            compile(text, patch.path, "exec")


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_each_guard_has_killers_that_exist(guard: Guard) -> None:
    assert bool(guard.killers) != bool(guard.pending)
    for killer in guard.killers:
        path, _, name = killer.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), killer


def test_the_guards_that_the_protocol_rests_on_are_all_there() -> None:
    names = {guard.name for guard in GUARDS}
    assert len(names) == len(GUARDS)
    assert [each for each in NAMED if not any(name.startswith(each) for name in names)] == []


def test_each_guard_stands_in_the_docs_with_its_killers() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    missing = []
    for guard in GUARDS:
        row = next(
            (line for line in page.splitlines() if line.startswith(f"| `{guard.name}` | {guard.promise} | ")), ""
        )
        missing += [guard.name] if not row else [killer for killer in guard.killers if f"`{killer}`" not in row]
    assert missing == []


@pytest.mark.long
def test_a_guard_that_no_test_misses_is_seen_to_survive(tmp_path: Path) -> None:
    killer = ("tests/unit/webhooks/test_retries.py",)
    harmless = Patch("app/webhooks/retries.py", "JITTER = 0.1  #", "JITTER = 0.1  # no harm:")
    harmful = Patch("app/webhooks/retries.py", "self.http_status == 410", "self.http_status == 411")
    assert killers_of(Guard("harmless", "nothing", (harmless,), killer), tmp_path / "harmless") == []
    assert killers_of(Guard("harmful", "all", (harmful,), killer), tmp_path / "harmful") != []
    with pytest.raises(Broken, match="no_such_test"):
        killers_of(Guard("blind", "nothing", (harmless,), (f"{killer[0]}::no_such_test",)), tmp_path / "blind")


def test_a_text_that_is_not_there_once_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\na = 1\nb = 2\n")
    for text in ("a = 1", "c = 3"):
        with pytest.raises(DoesNotApply, match=re.escape(text)):
            apply(Patch("code.py", text, "pass"), tmp_path)
    apply(Patch("code.py", "b = 2", "pass"), tmp_path)
    assert (tmp_path / "code.py").read_text().endswith("pass\n")
