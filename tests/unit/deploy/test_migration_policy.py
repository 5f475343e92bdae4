"""May code of the version before go on while a migration runs, and after it? Expand, migrate, contract: what a migration may do at once."""

import ast
from pathlib import Path

import pytest

from tests.support.deployment import ROOT

VERSIONS = sorted((ROOT / "migrations/versions").glob("[0-9]*.py"))
# Before there was anything to upgrade, migrations were free.
FREE_UNTIL = "0012"
TAKES_AWAY = {"drop_table", "drop_column", "rename_table", "drop_constraint", "execute"}
# Written by every job: an index that is built in a transaction stops them for as long as it takes.
HOT = {"jobs", "job_inputs", "job_results", "attempts", "usage", "ledger", "webhook_deliveries", "webhook_tries"}
MARK = "CONTRACTS"  # a migration that takes away says so by this name, and why no running version minds


def calls(tree: ast.AST, function: str) -> list[ast.Call]:
    """Calls of op.<...> in this function of the migration."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return [
                each
                for each in ast.walk(node)
                if isinstance(each, ast.Call)
                and isinstance(each.func, ast.Attribute)
                and isinstance(each.func.value, ast.Name)
                and each.func.value.id == "op"
            ]
    raise AssertionError(f"no {function}()")


def problems(source: str) -> list[str]:
    """What the version before couldn't live with."""
    tree = ast.parse(source)
    contracts = any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == MARK for node in tree.body)
    found = []
    for call in calls(tree, "upgrade"):
        assert isinstance(call.func, ast.Attribute)
        name, said = call.func.attr, ast.unparse(call)
        if name in TAKES_AWAY and not contracts:
            found.append(f"{name} without {MARK}")
        if name == "alter_column" and ("new_column_name" in said or "nullable=False" in said) and not contracts:
            found.append(f"alter_column without {MARK}")
        if name == "add_column" and "nullable=False" in said and "server_default" not in said:
            found.append("a new column that the version before doesn't fill: it needs a server_default")
        if name == "create_index" and any(f"'{table}'" in said for table in HOT) and "concurrently=True" not in said:
            found.append("an index on a busy table: build it CONCURRENTLY, in an autocommit_block")
    if not calls(tree, "downgrade"):
        found.append("no way back")
    return found


@pytest.mark.parametrize("path", [path for path in VERSIONS if path.stem[:4] > FREE_UNTIL], ids=lambda path: path.stem)
def test_the_version_before_can_live_with_it(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_there_is_a_way_back(path: Path) -> None:
    assert calls(ast.parse(path.read_text(encoding="utf-8")), "downgrade")


@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        ('op.drop_column("jobs", "tier")', 1),
        ('op.alter_column("jobs", "tier", nullable=False)', 1),
        ('op.alter_column("jobs", "tier", new_column_name="rank")', 1),
        ('op.execute("DELETE FROM jobs")', 1),
        ('op.create_index("ix", "jobs", ["tier"])', 1),
        ('op.create_index("ix", "jobs", ["tier"], postgresql_concurrently=True)', 0),
        ('op.add_column("jobs", sa.Column("x", sa.Text(), nullable=False))', 1),
        ('op.add_column("jobs", sa.Column("x", sa.Text(), nullable=False, server_default=""))', 0),
        ('op.add_column("jobs", sa.Column("x", sa.Text(), nullable=True))', 0),
    ],
)
def test_what_breaks_the_version_before_is_found(does: str, wrong: int) -> None:
    source = f"def upgrade():\n    {does}\n\ndef downgrade():\n    op.drop_column('a', 'b')\n"
    assert len(problems(source)) == wrong
    if does.startswith(("op.drop", "op.alter", "op.execute")):
        assert problems(f"{MARK} = 'nobody reads it since 0013'\n{source}") == []
