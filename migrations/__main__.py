"""How is a new migration made? `make migration m="what it does"`: from the difference between metadata and history."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.operations.ops import DowngradeOps, DropTableOp, MigrationScript, ModifyTableOps
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import create_engine

from app.embedded import EmbeddedPostgres
from app.revisions import head_revision
from app.schema import alembic_config, migrate
from app.settings import Settings


def make_migration(message: str) -> Path:
    """Write migrations/versions/<next number>_<message>.py; return its path.

    Read it before you believe it: alembic compares no CHECK constraint of a table that exists already.
    """
    with TemporaryDirectory(prefix="penstock-migration-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder) / "postgres", fast=True) as postgres:
            settings = Settings(database_url=postgres.url)
            migrate(settings)
            engine = create_engine(settings.sqlalchemy_url)
            with engine.connect() as connection:
                script = command.revision(
                    alembic_config(connection),
                    message,
                    autogenerate=True,
                    rev_id=f"{int(head_revision() or 0) + 1:04}",
                    process_revision_directives=_drop_no_index_of_a_dropped_table,
                )
            engine.dispose()
    assert isinstance(script, Script)
    path = Path(script.path)
    _tidy(path)
    return path


def _drop_no_index_of_a_dropped_table(
    context: MigrationContext,  # noqa: ARG001
    revision: str | Iterable[str | None],  # noqa: ARG001
    directives: list[MigrationScript],
) -> None:
    for directive in directives:
        downgrade = directive.downgrade_ops
        assert isinstance(downgrade, DowngradeOps)
        dropped = {op.table_name for op in downgrade.ops if isinstance(op, DropTableOp)}
        downgrade.ops = [
            op for op in downgrade.ops if not (isinstance(op, ModifyTableOps) and op.table_name in dropped)
        ]


def _tidy(path: Path) -> None:
    text = path.read_text()
    text = re.sub(r" *# ### .*\n", "", text)
    text = re.sub(r"JSONB\([^)]*astext_type=sa\.Text\(\)\)", "JSONB()", text)
    path.write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--quiet", "--fix", "--select", "F401,I,Q,UP", str(path)], check=True)
    subprocess.run([*ruff, "format", "--quiet", str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('usage: make migration m="what it does"')
    print(make_migration(sys.argv[1]))
