"""Do `penstock tenants`, `budgets`, `keys` and `models price` do what the admin API does, and say what went wrong in a line?"""

import asyncio
import json
from typing import Any

import psycopg
import pytest

from app.db import create_engine
from app.settings import Settings
from tests.support.cli import Run, runner
from tests.support.jobs import MODEL, seed


@pytest.fixture
def penstock(
    capsys: pytest.CaptureFixture[str],
    settings: Settings,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    for name in ("DATABASE_URL", "REDIS_URL", "PENSTOCK_DATA_DIR"):
        monkeypatch.setenv(name, environment[name])
    return runner(capsys)


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    assert settings.database_url
    with psycopg.connect(settings.database_url, autocommit=True) as conn:
        return conn.execute(sql).fetchall()


def good(penstock: Run, *args: object) -> str:
    result = penstock(*args)
    assert result.status == 0, result.err
    return result.out


def bad(penstock: Run, *args: object, status: int = 1) -> str:
    """The one line that it said."""
    result = penstock(*args)
    assert result.status == status, result.out
    assert result.out == ""
    assert result.err.count("\n") == 1
    return result.err


def seeded(settings: Settings) -> None:
    async def act() -> None:
        engine = create_engine(settings, application_name="penstock-tests")
        try:
            await seed(engine)
        finally:
            await engine.dispose()

    asyncio.run(act())


def test_a_tenant_is_made_shown_set_suspended_and_resumed(penstock: Run, settings: Settings) -> None:
    out = good(
        penstock, "tenants", "create", "acme", "--weight", 2, "--tier", "standard", "--tier", "batch",
        "--max-queued-jobs", "1_000", "--display-name", "Acme Ltd", "--no-bill-shared",
    )  # fmt: skip
    assert "penstock keys create acme" in out
    shown = json.loads(good(penstock, "tenants", "show", "acme", "--json"))
    assert (shown["weight"], shown["tiers"], shown["max_queued_jobs"]) == (2, ["standard", "batch"], 1000)
    assert (shown["display_name"], shown["bill_shared"]) == ("Acme Ltd", False)
    assert "webhook_secret" not in shown
    assert "there is a tenant 'acme' already" in bad(penstock, "tenants", "create", "acme")
    out = good(penstock, "tenants", "set", "acme", "--max-queued-jobs", "none", "--token-burst", "50")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (lines["max_queued_jobs"], lines["token_burst"], lines["weight"]) == ("-", "50", "2")
    good(penstock, "tenants", "suspend", "acme", "--reason", "unpaid")
    assert good(penstock, "tenants", "list", "--state", "suspended").splitlines()[1].split("\t")[0] == "acme"
    assert good(penstock, "tenants", "list", "--state", "active") == ""
    assert good(penstock, "tenants", "resume", "acme") == "acme is active\n"
    found = query(settings, "SELECT action, actor, detail FROM audit_log ORDER BY id")
    assert [action for action, _, _ in found] == ["tenant.create", "tenant.change", "tenant.suspend", "tenant.resume"]
    assert all(actor.startswith("cli") for _, actor, _ in found)
    assert found[1][2] == {"max_queued_jobs": [1000, None], "token_burst": [None, 50]}
    assert found[2][2] == {"reason": "unpaid"}


def test_what_makes_no_sense_is_said_in_a_line_and_changes_nothing(penstock: Run, settings: Settings) -> None:
    good(penstock, "tenants", "create", "acme")
    told = {
        ("tenants", "create", "Acme"): "id: must match",
        ("tenants", "show", "nobody"): "there is no tenant 'nobody'",
        ("tenants", "set", "nobody", "--weight", 2): "there is no tenant 'nobody'",
        ("tenants", "set", "acme"): "name at least one field",
        ("tenants", "set", "acme", "--weight", 0): "weight: must be greater than or equal to 1",
        ("tenants", "set", "acme", "--max-queued-jobs", "many"): "--max-queued-jobs: must be a whole number, or none",
        ("tenants", "set", "acme", "--max-queued-jobs", "-1"): "max_queued_jobs: must be greater than or equal to 0",
        ("tenants", "set", "acme", "--max-queued-jobs", "9" * 30): "--max-queued-jobs: must be a whole number",
        ("tenants", "set", "acme", "--max-queued-jobs", "\x1b[2J"): "must be a whole number",
        ("tenants", "set", "acme", "--display-name", "\x1b[2J"): "display_name: must hold printable characters",
        ("tenants", "suspend", "acme", "--reason", " "): "reason: must say something",
        ("budgets", "set", "nobody", "requests", "day", 5): "there is no tenant 'nobody'",
        ("budgets", "set", "acme", "requests", "day", "-5"): None,
        ("budgets", "set", "acme", "requests", "day", "none"): "limit: must be a valid integer",
        ("budgets", "set", "acme", "requests", "day", 5, "--thresholds", "50,500"): "thresholds: must be less",
        ("budgets", "set", "acme", "requests", "day", 5, "--key", "000000000000"): "'acme' has no key",
        ("budgets", "retire", "5"): "no budget's id",
        ("budgets", "retire", "00000000-0000-7000-8000-000000000000"): "there is no budget",
        ("keys", "create", "acme", "--expires-days", 0): "expires_in_s: must be greater",
        ("keys", "create", "Acme"): "tenant: use 1 to 63",
        ("keys", "create", "acme", "--name", "a\nb"): "name: must hold printable",
        ("keys", "set", "000000000000", "--name", "x"): "there is no key with the prefix",
        ("keys", "set", "000000000000"): "name at least one field",
        ("keys", "set", "000000000000", "--expires-days", "nan"): "--expires-days: must be more than 0 and at most 3660",
        ("keys", "set", "000000000000", "--expires-days", "soon"): "--expires-days: must be more than 0",
        ("keys", "set", "000000000000", "--token-burst", "0"): "token_burst: must be greater",
        ("keys", "rotate", "000000000000"): "there is no key with the prefix",
        ("keys", "rotate", "000000000000", "--overlap-hours", 10_000): "overlap_s: must be less",
        ("keys", "revoke", "000000000000"): "there is no key with the prefix",
        ("models", "price", "nothing"): "'nothing' is not known",
    }  # fmt: skip
    for args, words in told.items():
        if words is None:  # typer takes it for an option
            assert penstock(*args).status == 2
            continue
        said = bad(penstock, *args)
        assert words in said, said
        assert "\x1b" not in said
    assert query(settings, "SELECT action FROM audit_log") == [("tenant.create",)]


def test_a_key_is_made_listed_rotated_and_revoked(penstock: Run, settings: Settings) -> None:
    made = penstock("keys", "create", "acme", "--name", "n", "--expires-days", 30, "--requests-per-minute", 60)
    assert made.status == 0, made.err
    assert "tenant acme was new" in made.err
    token = made.out.strip()
    prefix = token.split("_")[1]
    changed = good(penstock, "keys", "set", token, "--name", "nightly", "--scope", "jobs:read", "--token-burst", "none")
    assert "nightly" in changed
    assert token.split("_", 2)[2] not in changed
    for days, left in (("none", [None]), ("1.5", [1])):
        good(penstock, "keys", "set", prefix, "--expires-days", days)
        found = query(settings, "SELECT extract(day FROM expires_at - now())::int FROM api_keys")
        assert [row[0] for row in found] == left
    rotated = penstock("keys", "rotate", token, "--overlap-hours", 2)
    assert "the secret before is valid until" in rotated.err
    fresh = rotated.out.strip()
    assert fresh != token
    (shown,) = [json.loads(line) for line in good(penstock, "keys", "list", "--json").splitlines()]
    assert (shown["prefix"], shown["old_prefix"], shown["requests_per_minute"]) == (fresh.split("_")[1], prefix, 60)
    assert f"its prefix is {shown['prefix']} now" in bad(penstock, "keys", "rotate", prefix)
    listed = good(penstock, "keys", "list", "--tenant", "acme")
    assert "valid" in listed
    assert prefix in listed
    assert token.split("_", 2)[2] not in listed
    assert good(penstock, "keys", "revoke", fresh) == f"{shown['prefix']} is revoked\n"
    assert "revoked" in good(penstock, "keys", "list")
    assert "is revoked: make a new one" in bad(penstock, "keys", "rotate", fresh)
    assert [row[0] for row in query(settings, "SELECT action FROM audit_log ORDER BY id")] == [
        "tenant.create", "key.create", "key.change", "key.change", "key.change", "key.rotate", "key.revoke",
    ]  # fmt: skip


def test_a_budget_is_set_set_again_listed_and_retired(penstock: Run, settings: Settings) -> None:
    token = penstock("keys", "create", "acme").out.strip()
    prefix = token.split("_")[1]
    made = good(penstock, "budgets", "set", "acme", "total_tokens", "day", "1_000_000", "--thresholds", "90,50")
    assert "is made: 1000000 of 1000000 remain" in made
    of_key = good(penstock, "budgets", "set", "acme", "total_tokens", "day", 5, "--key", prefix)
    assert "is made" in of_key
    assert "is changed: 7 of 7 remain" in good(penstock, "budgets", "set", "acme", "total_tokens", "day", 7)
    found = [json.loads(line) for line in good(penstock, "budgets", "list", "--tenant", "acme", "--json").splitlines()]
    assert [(each["limit"], each["thresholds"], each["key"]) for each in found] == [
        (7, [50, 90], None),
        (5, [80, 100], prefix),
    ]
    good(penstock, "keys", "rotate", prefix)
    by_old_prefix = good(penstock, "budgets", "set", "acme", "total_tokens", "day", 6, "--key", prefix)
    assert (by_old_prefix.split()[0], by_old_prefix.split()[2]) == (found[1]["id"], "changed:")
    assert "is retired" in good(penstock, "budgets", "retire", found[0]["id"])
    assert [line.split("\t")[0] for line in good(penstock, "budgets", "list").splitlines()] == [
        "budget",
        found[1]["id"],
    ]
    assert len(good(penstock, "budgets", "list", "--retired").splitlines()) == 1 + 2
    assert good(penstock, "budgets", "list", "--tenant", "rival") == ""


def test_a_models_price_is_shown_and_set(penstock: Run, settings: Settings) -> None:
    seeded(settings)
    assert "0 a million tokens of prompt, 0 of output" in good(penstock, "models", "price", MODEL.name)
    out = good(penstock, "models", "price", MODEL.name, "--input", 150_000, "--output", 600_000)
    assert "150000 a million tokens of prompt, 600000 of output" in out
    assert "fallback: none" in good(penstock, "models", "price", MODEL.name, "--fallback", "none")
    assert "must be another model" in bad(penstock, "models", "price", MODEL.name, "--fallback", MODEL.name)
    assert "input_price: must be less" in bad(penstock, "models", "price", MODEL.name, "--input", 10**11)
    found = query(settings, "SELECT action, detail FROM audit_log")
    assert found == [("model.change", {"input_price": [0, 150_000], "output_price": [0, 600_000]})]
