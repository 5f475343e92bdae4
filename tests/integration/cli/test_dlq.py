"""Do `penstock dlq ...` find, show, send back and close dead letters, one or many, stopped in the middle or not?"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import psycopg
import pytest

from app.db import create_engine
from app.ids import job_name
from app.queue.events import ChoiceDelta, EventLog, JobEvent, Publication
from app.queue.streams import JobQueue
from app.redis import create_redis
from app.settings import Settings
from tests.support.audit import assert_audit_clean
from tests.support.cli import COMMAND, Run, runner
from tests.support.dead import kill
from tests.support.jobs import POOL, seed, submit


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str], settings: Settings, environment: dict[str, str], monkeypatch) -> Run:
    for name in ("DATABASE_URL", "REDIS_URL", "PENSTOCK_DATA_DIR"):
        monkeypatch.setenv(name, environment[name])
    return runner(capsys)


def with_engine(settings: Settings, act: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        engine = create_engine(settings, application_name="penstock-tests")
        try:
            return await act(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def dead(settings: Settings, count: int = 1, cause: str = "engine_crash", **body: Any) -> list[str]:
    """Jobs that died, by their names, oldest first."""

    async def act(engine: Any) -> list[UUID]:
        await seed(engine)
        async with create_redis(settings) as redis:
            await JobQueue(redis, POOL).open_epoch("test")
        detail = {} if cause == "worker_lost" else None
        return await kill(engine, await submit(engine, settings, count=count, **body), cause, detail=detail)

    return [job_name(job_id) for job_id in with_engine(settings, act)]


def audit(settings: Settings) -> None:
    with_engine(settings, lambda engine: assert_audit_clean(engine, None))


def query(settings: Settings, sql: str) -> list[tuple]:
    assert settings.database_url
    with psycopg.connect(settings.database_url, autocommit=True) as conn:
        cursor = conn.execute(sql)
        return cursor.fetchall() if cursor.description else []


def test_letters_are_listed_filtered_and_grouped(penstock: Run, settings: Settings) -> None:
    assert penstock("dlq", "list").err == "no dead letters\n"
    crashed, lost = dead(settings, 3), dead(settings, 1, "worker_lost")
    listed = penstock("dlq", "list")
    assert (listed.status, listed.err) == (0, "")
    assert [line.split("\t")[0] for line in listed.out.splitlines()] == ["job", *lost, *crashed[::-1]]
    some = penstock("dlq", "list", "--of-reason", "workers_lost", "--pool", POOL, "--tenant", "acme", "--json")
    assert [json.loads(line)["id"] for line in some.out.splitlines()] == lost
    groups = [json.loads(line) for line in penstock("dlq", "list", "--groups", "--json").out.splitlines()]
    assert [(each["count"], each["reason"]) for each in groups] == [(3, "engine_crashes"), (1, "workers_lost")]
    assert "SIGSEGV" in groups[0]["signature"]
    assert groups[0]["fingerprint"] in penstock("dlq", "list", "--groups").out
    assert penstock("dlq", "list", "--older-than", "1h").err == "no dead letters\n"
    assert (
        penstock("dlq", "list", "--newer-than", "1h", "--limit", 1).err == "1 of 4 dead letters: --limit shows more\n"
    )
    wrong = penstock("dlq", "list", "--older-than", "soon")
    assert (wrong.status, wrong.err.count("\n")) == (1, 1)
    assert "isn't an age: write a number with s, m, h, d or w" in wrong.err


def test_the_evidence_is_shown_and_the_prompt_only_where_it_is_asked_for(penstock: Run, settings: Settings) -> None:
    (name,) = dead(settings, prompt="a secret wish")

    async def tell(_: Any) -> None:
        async with create_redis(settings) as redis:
            log = EventLog(redis, ttl_s=60, max_entries=100)
            delta = ChoiceDelta(choice=0, offset=0, token_ids=[1, 2], text="half a te")
            event = JobEvent(kind="tokens", attempt=1, deltas=[delta])
            await log.publish([Publication(UUID(name.removeprefix("job_")), 2, event)])

    with_engine(settings, tell)
    shown = penstock("dlq", "show", name)
    assert (shown.status, shown.err) == (0, "")
    for said in ("engine_crashes", "SIGSEGV", "attempt 1: engine_crash", "Segmentation fault at 0x7f", "--prompts"):
        assert said in shown.out
    assert "secret wish" not in shown.out + penstock("dlq", "show", name, "--json").out
    assert "half a te" not in shown.out
    whole = json.loads(penstock("dlq", "show", name, "--json", "--prompts").out)
    assert whole["private"] == {"request": {"prompt": "a secret wish"}, "texts": ["half a te"]}
    assert "secret wish" in penstock("dlq", "show", name, "--prompts").out
    acts = query(settings, "SELECT action, target FROM audit_log")
    assert acts == [("dead_letter.show_prompts", name)] * 2
    missing = penstock("dlq", "show", "job_" + "0" * 32)
    assert (missing.status, missing.err.count("\n")) == (1, 1)


def test_what_a_log_holds_does_not_command_the_terminal(penstock: Run, settings: Settings) -> None:
    (name,) = dead(settings)
    query(settings, "UPDATE dead_letters SET evidence = jsonb_set(evidence, '{attempts,0,detail,log_tail}', "
                    "to_jsonb(E'\\u001b]0;title\\u0007\\u009b2Jgone\nnext'::text))")  # fmt: skip
    shown = penstock("dlq", "show", name).out
    assert "title" in shown
    assert "next" in shown
    assert not set("\x1b\x07\x9b") & set(shown)


def test_one_several_or_a_group_are_sent_back(penstock: Run, settings: Settings) -> None:
    crashed, lost = dead(settings, 5), dead(settings, 2, "worker_lost")
    one = penstock("dlq", "requeue", crashed[0], "--reason", "the driver is mended")
    assert (one.status, one.out) == (0, f"{crashed[0]}\n")
    again = penstock("dlq", "requeue", *crashed[:2])
    assert (again.status, again.out) == (1, f"{crashed[1]}\n")
    assert f"the dead letter of {crashed[0]} was requeued by cli:" in again.err
    assert again.err.endswith("1 requeued, 1 refused and as they were\n")
    group = json.loads(penstock("dlq", "show", crashed[2], "--json").out)["fingerprint"]
    assert penstock("dlq", "requeue", "--fingerprint", group, "--rate", 1000).out.splitlines() == crashed[2:]
    assert penstock("dlq", "requeue", "--pool", POOL).out.splitlines() == lost
    nothing = penstock("dlq", "requeue", "--pool", POOL)
    assert (nothing.status, nothing.err) == (0, "no open dead letter fits\n")
    assert query(settings, "SELECT DISTINCT status, reservation FROM jobs") == [("queued", 2)]
    (act,) = query(settings, f"SELECT detail ->> 'reason' FROM audit_log WHERE target = '{crashed[0]}'")
    assert act == ("the driver is mended",)
    audit(settings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["requeue"], "say which dead letters"),
        (["requeue", "job_" + "0" * 32, "--pool", "x"], "say which dead letters"),
        (["requeue", "nonsense"], "isn't a job's id"),
        (["requeue", "--pool", "x", "--edit"], "--edit changes one job: give one id"),
        (["requeue", "job_" + "0" * 32], "there is no dead letter of job_000"),
        (["requeue", "--pool", "x", "--rate", "0"], "invalid value for '--rate'"),
        (["requeue", "--pool", "x", "--clear-deadline", "--deadline-s", "5"], "give only one of"),
        (["discard", "--pool", "x"], "missing option '--reason'"),
        (["discard", "--pool", "x", "--reason", " "], "must have 1 to 500 characters"),
    ],
)
def test_a_wrong_call_is_told_and_changes_nothing(
    penstock: Run, settings: Settings, arguments: list[str], said: str
) -> None:
    dead(settings)
    result = penstock("dlq", *arguments)
    assert result.status != 0
    assert said in result.err
    assert query(settings, "SELECT DISTINCT status FROM jobs") == [("dead",)]


def test_a_budget_that_is_full_is_named_and_the_others_go_back(penstock: Run, settings: Settings) -> None:
    names = dead(settings, 3)
    query(settings, "INSERT INTO budgets (id, tenant_id, metric, period, hard_limit) "
                    "VALUES (gen_random_uuid(), 'acme', 'requests', 'total', 2)")  # fmt: skip
    result = penstock("dlq", "requeue", "--pool", POOL)
    assert (result.status, result.out.split()) == (1, names[:2])
    assert f"{names[2]} of acme: the budget of 2 requests can't hold" in result.err
    assert query(settings, "SELECT count(*) FROM dead_letters WHERE resolved_at IS NULL") == [(1,)]
    audit(settings)


def test_an_edit_in_the_editor_is_checked_and_asked_for_again(
    penstock: Run, settings: Settings, tmp_path: Path
) -> None:
    (name,) = dead(settings, prompt="a secret wish")
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\n"
        "path, seen = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[0]).with_suffix('.seen')\n"
        "text = path.read_text()\n"
        "seen.open('a').write(text)\n"
        "path.write_text(text.replace('\"max_tokens\": 8', '\"max_tokens\": 0') if 'NOT ACCEPTED' not in text\n"
        "                else text.replace('\"max_tokens\": 0', '\"max_tokens\": 3').replace('standard', 'batch'))\n"
    )
    result = penstock("dlq", "requeue", name, "--edit", EDITOR=f"{sys.executable} {editor}", VISUAL="")
    assert (result.status, result.out) == (0, f"{name}\n"), result.err
    assert "max_tokens: " in result.err
    seen = editor.with_suffix(".seen").read_text()
    assert "# NOT ACCEPTED: max_tokens: " in seen
    assert "secret wish" not in seen
    assert query(settings, "SELECT status, tier, max_tokens FROM jobs") == [("queued", "batch", 3)]
    audit(settings)


def test_an_emptied_file_or_a_broken_editor_requeues_nothing(penstock: Run, settings: Settings, tmp_path: Path) -> None:
    (name,) = dead(settings)
    for editor, said in (
        ("truncate -s 0", "the file was emptied"),
        ("false", "exit status 1"),
        ("/none", "can't be run"),
    ):
        result = penstock("dlq", "requeue", name, "--edit", VISUAL=editor)
        assert (result.status, result.err.count("\n")) == (1, 1)
        assert said in result.err
    assert query(settings, "SELECT status FROM jobs") == [("dead",)]


def test_a_discard_asks_first_and_keeps_the_letter(penstock: Run, settings: Settings) -> None:
    names = dead(settings, 2)
    unsure = penstock("dlq", "discard", "--pool", POOL, "--reason", "a test of ours", stdin="n\n")
    assert (unsure.status, unsure.out) == (1, "")
    assert "Discard 2 dead letters for good?" in unsure.err
    assert penstock("dlq", "discard", names[0], "--reason", "a test of ours", stdin="y\n").status == 0
    done = penstock("dlq", "discard", "--pool", POOL, "--reason", "a test of ours", "--yes")
    assert (done.status, done.out) == (0, f"{names[1]}\n")
    assert penstock("dlq", "list").err == "no dead letters\n"
    assert len(penstock("dlq", "list", "--state", "discarded").out.splitlines()) == 1 + 2
    shown = penstock("dlq", "show", names[0]).out
    assert "discarded by cli:" in shown
    assert "a test of ours" in shown
    audit(settings)


REQUEUED = "SELECT count(*) FROM jobs WHERE status = 'queued'"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_goes_on_where_it_was(
    penstock: Run, settings: Settings, environment: dict[str, str], number: signal.Signals
) -> None:
    names = dead(settings, 30)
    command = [*COMMAND, "dlq", "requeue", "--pool", POOL, "--rate", "5"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up_at = monotonic() + 30
    while query(settings, REQUEUED)[0][0] < 3:
        assert monotonic() < give_up_at
        sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    done = query(settings, REQUEUED)[0][0]
    assert 3 <= done < 30
    if number == signal.SIGINT:
        assert out.split() == names[:done]
        assert err.endswith(f"{done} requeued\nstopped: the same command again goes on with the rest\n")
    rest = penstock("dlq", "requeue", "--pool", POOL)
    assert rest.out.split() == names[done:]
    assert query(settings, "SELECT DISTINCT status, reservation FROM jobs") == [("queued", 2)]
    assert query(settings, "SELECT count(*) FROM audit_log") == [(30,)]
    audit(settings)


def test_deaths_are_watched_as_they_are_announced(
    settings: Settings, environment: dict[str, str], penstock: Run
) -> None:
    async def announce(engine: Any, name: str) -> None:
        from app.jobs.dead.announce import announce_ends

        async with create_redis(settings) as redis:
            await announce_ends(engine, redis, [(UUID(name.removeprefix("job_")), "dead")])

    first, second = dead(settings, 2)
    with_engine(settings, lambda engine: announce(engine, first))
    process = subprocess.Popen(
        [*COMMAND, "dlq", "watch", "--json"],
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["job"] == first
        with_engine(settings, lambda engine: announce(engine, second))
        assert json.loads(process.stdout.readline())["reason"] == "engine_crashes"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()
