"""Does `penstock audit` say what it found, to people and machines, by its exit status too?"""

import json
from pathlib import Path

import pytest

from app.settings import Settings
from tests.support.cli import Run, runner


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    assert settings.database_url
    assert settings.redis_url
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(settings.data_dir))
    return runner(capsys)


def execute(settings: Settings, statement: str) -> None:
    import psycopg

    assert settings.database_url
    with psycopg.connect(settings.database_url, autocommit=True) as conn:
        conn.execute(statement)


def test_a_clean_system_is_0(penstock: Run, tmp_path: Path) -> None:
    result = penstock("audit", "--within", 0, "--json", tmp_path / "report.json")
    assert (result.status, result.err) == (0, "")
    assert "clean: " in result.out
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["clean"] is True
    assert all(each["total"] == 0 for each in document["checks"])


def test_a_finding_is_1_and_listed(penstock: Run, settings: Settings) -> None:
    execute(settings, "INSERT INTO tenants (id, webhook_secret) VALUES ('acme', 'x')")
    execute(
        settings,
        "WITH b AS (INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) "
        "VALUES (gen_random_uuid(), 'acme', 'requests', 'total', 10) RETURNING id) SELECT id FROM b",
    )
    execute(settings, "INSERT INTO budget_windows SELECT id, now(), 10, 5, 0 FROM budgets")
    result = penstock("audit", "--within", 0)
    assert result.status == 1
    assert "budget_sums: 1 against" in result.out
    assert "used 5, reserved 0" in result.out
    shown = penstock("audit", "--within", 0, "--json", "-")
    assert [each["check"] for each in json.loads(shown.out)["checks"] if each["total"]] == ["budget_sums"]


def test_without_postgres_it_is_2(penstock: Run) -> None:
    result = penstock("audit", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert result.status == 2
    assert "nothing was audited" in result.err


def test_without_redis_it_is_3_and_says_so(penstock: Run) -> None:
    result = penstock("audit", "--within", 0, REDIS_URL="redis://127.0.0.1:1/0")
    assert result.status == 3
    assert "not checked: redis" in result.out
