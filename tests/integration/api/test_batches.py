"""Are batches as OpenAI's: whole or not at all, each custom_id once, cancelled, expired and changed as it is promised?"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches import pump as pumping
from app.batches.collect import collect
from app.batches.pump import Pump
from app.batches.store import batch_id_of, get_batch
from app.clock import SystemClock
from app.ids import new_id, parse_job_name
from app.jobs.breakers import BreakerBoard
from app.jobs.models import Model, ModelCatalog
from app.jobs.submit import Accepted, nominate
from app.jobs.timekeeping import forget_outputs
from app.looks import Looks
from app.queue.streams import JobQueue
from app.quotas.tables import budgets
from app.redis import Redis
from app.settings import Settings
from tests.support.api import Tenant, assert_problem, running
from tests.support.audit import assert_audit_clean
from tests.support.batches import CHAT, Bench, chat_line, jsonl, make_batch, read_batch, read_lines, upload
from workers.maintenance import batches as maintaining
from workers.maintenance.batches import BatchKeeper
from workers.maintenance.outlook import LOOK


@pytest.fixture
def bench(engine: AsyncEngine, redis: Redis, settings: Settings, model: Model, epoch: JobQueue) -> Bench:
    return Bench(engine, BatchKeeper(settings, SystemClock(), engine, redis), epoch)


def small(bench: Bench, settings: Settings, redis: Redis, **changes: Any) -> Bench:
    """The bench with other settings."""
    keeper = BatchKeeper(settings.model_copy(update=changes), SystemClock(), bench.engine, redis)
    return Bench(bench.engine, keeper, bench.queue)


async def test_a_batch_runs_and_its_files_hold_each_line_once(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis
) -> None:
    batch = await make_batch(client, [chat_line(f"c{n}", f"Question {n}") for n in range(7)], metadata={"project": "x"})
    assert (batch["status"], batch["object"], batch["tier"]) == ("validating", "batch", "batch")
    assert batch["expires_at"] - batch["created_at"] == 86_400
    done = await bench.run(client, batch)
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 7, "completed": 7, "failed": 0}
    assert done["error_file_id"] is None
    assert done["metadata"] == {"project": "x"}
    assert done["created_at"] <= done["in_progress_at"] <= done["finalizing_at"] <= done["completed_at"]
    lines = await read_lines(client, f"/v1/files/{done['output_file_id']}/content")
    assert sorted(each["custom_id"] for each in lines) == [f"c{n}" for n in range(7)]
    line = lines[0]
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    assert parse_job_name(line["response"]["request_id"]) is not None, "it can be looked up"
    body = line["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"].startswith("answer to ")
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    (listed,) = [each for each in (await client.get("/v1/files")).json()["data"] if each["purpose"] == "batch_output"]
    assert listed["id"] == done["output_file_id"]
    await assert_audit_clean(engine, redis)


async def test_maintenance_is_told_of_a_batch_while_there_is_something_to_do(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    batch = await make_batch(client, [chat_line("a")])
    (found,) = await Looks(engine).rows(LOOK)
    assert found.batches
    assert (await bench.run(client, batch))["status"] == "completed"
    (found,) = await Looks(engine).rows(LOOK)
    assert not found.batches


async def test_validation_is_all_or_nothing_and_names_lines(client: httpx.AsyncClient, bench: Bench) -> None:
    lines = [
        chat_line("good"),
        chat_line("good"),
        chat_line("hot", temperature=9),
        chat_line("new") | {"url": "/v1/embeddings"},
        {"custom_id": "poor", "method": "POST", "url": CHAT},
    ]
    file = await upload(client, jsonl(lines) + b"{broken\n\n")
    answer = await client.post("/v1/batches", json={"input_file_id": file["id"], "endpoint": CHAT})
    failed = await bench.run(client, answer.json())
    assert failed["status"] == "failed"
    assert failed["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    told = [(each["line"], each["code"], each["param"]) for each in failed["errors"]["data"]]
    assert told == [
        (2, "duplicate_custom_id", "custom_id"),
        (3, "invalid_request", "temperature"),
        (4, "mismatched_endpoint", "url"),
        (5, "missing_required_parameter", "body"),
        (6, "invalid_json_line", None),
    ]
    async with bench.engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM batch_lines")) == 0
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 0


async def test_a_name_that_no_database_holds_fails_the_batch_and_not_its_keeper(
    client: httpx.AsyncClient, bench: Bench
) -> None:
    batch = await make_batch(client, [chat_line("odd") | {"x\0": 1}])
    assert (await bench.run(client, batch))["status"] == "failed"


async def test_a_batch_that_stood_still_for_a_day_goes_on(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    """The rate of its lines is a mean that fades with time: exp() of so much time is no number to Postgres."""
    batch = await make_batch(client, [chat_line("a"), chat_line("b")])
    await bench.keep(2)
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE batches SET progress_at = progress_at - interval '1 day', lines_per_s = 1"))
    done = await bench.run(client, batch)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 2)


async def test_no_eta_is_given_once_no_line_ends_any_more(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    batch = await make_batch(client, [chat_line("a"), chat_line("b")])
    await bench.keep(2)
    for quiet_s, rate, is_known in ((30, 5, True), (61, 5, False), (300, 0.01, True), (1001, 0.01, False)):
        async with engine.begin() as conn:
            values = {"quiet": quiet_s, "rate": rate}
            aged = "UPDATE batches SET progress_at = statement_timestamp() - make_interval(secs => :quiet), lines_per_s = :rate"
            await conn.execute(text(aged), values)
        found = (await client.get(f"/v1/batches/{batch['id']}")).json()
        assert (found["status"], found["eta"] is not None) == ("in_progress", is_known), values


async def test_what_a_batch_has_yet_to_write_down_is_not_forgotten(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    batch = await make_batch(client, [chat_line("a")])
    await bench.keep(2)
    assert await bench.work() == 1
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE job_results SET created_at = created_at - interval '1 day'"))
        assert await forget_outputs(conn, ttl_s=60) == 0
    done = await bench.run(client, batch)
    (line,) = await read_lines(client, f"/v1/files/{done['output_file_id']}/content")
    assert line["response"]["body"]["choices"][0]["message"]["content"].startswith("answer to ")
    async with engine.begin() as conn:
        assert await forget_outputs(conn, ttl_s=60) == 1


async def test_a_step_that_moves_a_batch_on_leaves_it_due(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    await make_batch(client, [chat_line("a")])
    await bench.keep()  # validating -> in_progress
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT due_at <= clock_timestamp() FROM batches"))


async def test_an_unknown_model_fails_the_whole_batch(client: httpx.AsyncClient, bench: Bench) -> None:
    batch = await make_batch(client, [chat_line("a"), chat_line("b", model="nobody")])
    failed = await bench.run(client, batch)
    assert [(each["line"], each["code"]) for each in failed["errors"]["data"]] == [(2, "model_not_found")]


async def test_lines_of_unknown_models_are_named_beside_what_else_is_wrong(
    client: httpx.AsyncClient, bench: Bench
) -> None:
    unknown = [chat_line("a", model="nobody"), chat_line("b", model="nobody"), chat_line("d", model="somebody")]
    batch = await make_batch(client, [chat_line("ok"), *unknown[:2], chat_line("c", n=-1), unknown[2]])
    failed = await bench.run(client, batch)
    assert [(each["line"], each["code"]) for each in failed["errors"]["data"]] == [
        (2, "model_not_found"), (3, "model_not_found"), (4, "invalid_request"), (5, "model_not_found"),
    ]  # fmt: skip
    assert "'somebody'" in failed["errors"]["data"][3]["message"]


async def test_a_line_that_no_job_can_be_made_of_is_an_error_and_the_others_run(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis
) -> None:
    wrong = [chat_line("long", "x" * 5000), chat_line("greedy", max_tokens=None, max_completion_tokens=100_000)]
    batch = await make_batch(client, [*wrong, chat_line("short")])
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    lines = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
    told = {line["custom_id"]: line["response"] for line in lines}
    calls = {each["custom_id"]: await client.post(CHAT, json=each["body"]) for each in wrong}
    for custom_id, call in calls.items():
        assert (told[custom_id]["status_code"], told[custom_id]["body"]) == (call.status_code, call.json())
        assert (call.status_code, call.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert calls["greedy"].json()["error"]["param"] == "max_completion_tokens"
    await assert_audit_clean(engine, redis)


async def test_lines_that_share_a_beginning_run_side_by_side(client: httpx.AsyncClient, bench: Bench) -> None:
    first, second = "A" * 300, "B" * 300
    lines = [chat_line(f"{'ab'[n % 2]}{n}", f"{(first, second)[n % 2]} question {n}") for n in range(8)]
    batch = await make_batch(client, lines)
    await bench.keep(2)
    started = await bench.start()
    async with bench.engine.connect() as conn:
        rows = await conn.execute(text("SELECT job_id, custom_id FROM batch_lines"))
        ids = {row.job_id: row.custom_id for row in rows}
    order = "".join(ids[each.job_id][0] for each in started)
    assert order in {"aaaabbbb", "bbbbaaaa"}
    assert (await read_batch(client, batch))["status"] == "in_progress"


async def test_only_a_window_of_lines_waits_in_the_queue_and_finished_ones_can_be_read(
    client: httpx.AsyncClient, bench: Bench, settings: Settings, redis: Redis
) -> None:
    bench = small(bench, settings, redis, batch_window_lines=4)
    batch = await make_batch(client, [chat_line(f"c{n}") for n in range(10)])
    await bench.keep(4)
    async with bench.engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 4
    assert await bench.work(3) == 3
    await bench.keep()
    now = await read_batch(client, batch)
    assert now["request_counts"] == {"total": 10, "completed": 3, "failed": 0}
    assert now["output_file_id"] is None
    assert now["eta"] is not None
    assert len(await read_lines(client, f"/v1/batches/{batch['id']}/output")) == 3
    assert await read_lines(client, f"/v1/batches/{batch['id']}/errors") == []
    done = await bench.run(client, batch)
    assert done["request_counts"]["completed"] == 10


async def test_a_cancel_stops_what_waits_and_what_runs_and_keeps_what_is_done(
    client: httpx.AsyncClient, bench: Bench, settings: Settings, redis: Redis, engine: AsyncEngine
) -> None:
    bench = small(bench, settings, redis, batch_window_lines=6)
    batch = await make_batch(client, [chat_line(f"c{n}") for n in range(12)])
    await bench.keep(2)
    assert await bench.work(2) == 2
    (running_job,) = await bench.start(1)
    answer = await client.post(f"/v1/batches/{batch['id']}/cancel")
    assert answer.json()["status"] == "cancelling"
    await bench.keep(3)
    now = await read_batch(client, batch)
    assert now["status"] == "cancelling", "one of its jobs runs still"
    async with engine.begin() as conn:
        assert await conn.scalar(
            text("SELECT cancel_requested_at IS NOT NULL FROM jobs WHERE id = :id"), {"id": running_job.job_id}
        )
    from app.ids import job_name
    from app.jobs.finish import Ending, finish
    from app.jobs.notices import Used

    async with engine.begin() as conn:
        cut_off = [{"index": 0, "text": "Once", "finish_reason": "cancelled"}]
        used = Used(prompt_tokens=3, completion_tokens=1)
        await finish(conn, [Ending(running_job.job_id, running_job.attempt, "cancelled", cut_off, used=used)])
    done = await bench.run(client, batch)
    assert done["status"] == "cancelled"
    assert done["request_counts"] == {"total": 12, "completed": 2, "failed": 10}
    lines = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
    assert {each["error"]["code"] for each in lines} == {"batch_cancelled"}
    assert len(lines) == 10
    begun = [each for each in lines if "was not executed" not in each["error"]["message"]]
    assert [each["id"] for each in begun] == [f"batch_req_{running_job.job_id.hex}"]
    assert job_name(running_job.job_id) in begun[0]["error"]["message"], "it did run, and has written something"
    assert_problem(await client.post(f"/v1/batches/{batch['id']}", json={"tier": "standard"}), 409, "already_ended")
    assert (await client.post(f"/v1/batches/{batch['id']}/cancel")).json()["status"] == "cancelled"
    await assert_audit_clean(engine, redis)


async def test_a_batch_past_its_time_expires_with_what_is_done(
    client: httpx.AsyncClient, bench: Bench, settings: Settings, redis: Redis, engine: AsyncEngine
) -> None:
    bench = small(bench, settings, redis, batch_window_lines=6)
    batch = await make_batch(client, [chat_line(f"c{n}") for n in range(9)], completion_window="1h")
    await bench.keep(2)
    assert await bench.work(4) == 4
    changed = await client.post(f"/v1/batches/{batch['id']}", json={"deadline_s": 0.001})
    assert changed.status_code == 200, changed.text
    done = await bench.run(client, batch)
    assert done["status"] == "expired"
    assert done["expired_at"] is not None
    counts = done["request_counts"]
    assert counts["total"] == 9
    assert counts["completed"] >= 4
    assert counts["completed"] + counts["failed"] == 9
    lines = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
    assert {each["error"]["code"] for each in lines} == {"batch_expired"}
    assert all(each["response"] is None for each in lines)
    await assert_audit_clean(engine, redis)


async def test_another_tier_is_that_of_waiting_lines_too(
    client: httpx.AsyncClient, bench: Bench, settings: Settings, redis: Redis, engine: AsyncEngine
) -> None:
    bench = small(bench, settings, redis, batch_window_lines=4)
    batch = await make_batch(client, [chat_line(f"c{n}") for n in range(6)])
    await bench.keep(2)
    await bench.start(1)
    assert (await client.post(f"/v1/batches/{batch['id']}", json={"tier": "interactive"})).json()[
        "tier"
    ] == "interactive"
    await bench.keep(2)
    async with engine.connect() as conn:
        rows = await conn.execute(text("SELECT status, tier, count(*) AS jobs FROM jobs GROUP BY 1, 2"))
        assert {(row.status, row.tier): row.jobs for row in rows} == {
            ("running", "batch"): 1, ("queued", "interactive"): 3,
        }  # fmt: skip
    assert {each.place for each in await bench.queue.claim("x", max_jobs=9, room=10**9)} == {"interactive"}


async def test_a_budget_holds_up_the_rest_of_a_batch_and_fails_nothing(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis
) -> None:
    budget_id = new_id()
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=budget_id, tenant_id="acme", metric="requests", period="total", hard_limit=3)
        )
    batch = await make_batch(client, [chat_line(f"c{n}") for n in range(8)])
    await bench.keep(4)
    now = await read_batch(client, batch)
    assert now["waiting_for"]["reason"] == "budget"
    assert await bench.work() == 3
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE budgets SET hard_limit = 100 WHERE id = :id"), {"id": budget_id})
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    assert done["waiting_for"] is None
    await assert_audit_clean(engine, redis)


async def test_a_step_fills_the_window_part_by_part_in_the_order_of_the_lines(
    client: httpx.AsyncClient,
    bench: Bench,
    settings: Settings,
    redis: Redis,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty thousand lines went through at the pace of one step for each five hundred, while workers had nothing to do."""
    monkeypatch.setattr(pumping, "CHUNK", 2)
    bench = small(bench, settings, redis, batch_window_lines=9)
    batch = await make_batch(client, [chat_line(f"c{n}", f"{n}") for n in range(12)])
    await bench.keep(2)
    async with engine.connect() as conn:
        states = (await conn.scalars(text("SELECT state FROM batch_lines ORDER BY rank"))).all()
    assert states == ["submitted"] * 8 + ["waiting"] * 4, "a ninth alone isn't worth a transaction"
    assert len(await bench.start()) == 8, "all are nominated"
    await assert_audit_clean(engine, redis)
    assert (await read_batch(client, batch))["waiting_for"] is None


async def test_no_part_goes_ahead_of_one_of_which_something_was_held_back(
    client: httpx.AsyncClient,
    bench: Bench,
    settings: Settings,
    redis: Redis,
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next part was prepared while this one was written: it must not take the place of what a budget had no room for."""
    monkeypatch.setattr(pumping, "CHUNK", 2)
    budget_id = new_id()
    row = {"id": budget_id, "tenant_id": "acme", "metric": "requests", "period": "total", "hard_limit": 3}
    async with engine.begin() as conn:
        await conn.execute(insert(budgets).values(row))
    batch = await make_batch(client, [chat_line(f"c{n}", f"{n}") for n in range(8)])
    await bench.keep(2)
    states = text("SELECT state FROM batch_lines ORDER BY rank")
    async with engine.connect() as conn:
        assert (await conn.scalars(states)).all() == ["submitted"] * 3 + ["waiting"] * 5
    await bench.keep()
    assert (await read_batch(client, batch))["waiting_for"]["reason"] == "budget"
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE budgets SET hard_limit = 100 WHERE id = :id"), {"id": budget_id})
    await bench.keep()
    async with engine.connect() as conn:
        assert (await conn.scalars(states)).all() == ["submitted"] * 4 + ["waiting"] * 4, (
            "one, to see whether it goes on"
        )
    await bench.keep()
    async with engine.connect() as conn:
        assert (await conn.scalars(states)).all() == ["submitted"] * 8
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    await assert_audit_clean(engine, redis)


async def test_a_step_that_is_stopped_while_it_collects_leaves_nothing_behind(
    client: httpx.AsyncClient, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collecting went on after its step, and its process had closed the pool."""
    await make_batch(client, [chat_line("a")])
    await bench.keep()
    running, ended = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> int:
        try:
            running.set()
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 0

    monkeypatch.setattr(maintaining, "collect", endless)
    step = asyncio.create_task(bench.keeper.step())
    await running.wait()
    while not await bench.start():  # the submitting beside it is over
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    step.cancel()
    await asyncio.wait({step}, timeout=30)
    assert step.cancelled()
    assert ended.is_set()


async def test_a_line_that_no_window_of_a_budget_could_hold_is_an_error(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    async with engine.begin() as conn:
        await conn.execute(
            insert(budgets).values(id=new_id(), tenant_id="acme", metric="total_tokens", period="day", hard_limit=400)
        )
    batch = await make_batch(client, [chat_line("huge", max_tokens=1000), chat_line("small")])
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    (line,) = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
    call = await client.post(CHAT, json=chat_line("huge", max_tokens=1000)["body"])
    assert (line["custom_id"], line["response"]["status_code"], call.status_code) == ("huge", 429, 429)
    error, of_call = line["response"]["body"]["error"], call.json()["error"]
    assert error["code"] == of_call["code"] == "insufficient_quota"
    assert error["type"] == of_call["type"]


async def test_jobs_that_fail_or_die_are_told_with_their_errors(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis
) -> None:
    batch = await make_batch(client, [chat_line("a"), chat_line("b")])
    await bench.keep(2)
    statuses = iter(["failed", "succeeded"])

    def ending(_: Any) -> dict[str, Any]:
        status = next(statuses)
        if status == "failed":
            return {
                "status": "failed",
                "choices": None,
                "error": {"code": "grammar_invalid", "message": "no"},
                "billed": False,
            }
        return {}

    await bench.work(ending=ending)
    done = await bench.run(client, batch)
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    (line,) = await read_lines(client, f"/v1/files/{done['error_file_id']}/content")
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["code"] == "grammar_invalid"


@pytest.mark.parametrize(
    ("endpoint", "body", "object_name"),
    [
        ("/v1/completions", {"prompt": "Once upon", "max_tokens": 5}, "text_completion"),
        ("/v1/responses", {"input": "Hello", "instructions": "Be brief.", "max_output_tokens": 5}, "response"),
    ],
)
async def test_other_endpoints_answer_with_their_own_bodies(
    client: httpx.AsyncClient, bench: Bench, endpoint: str, body: dict[str, Any], object_name: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    done = await bench.run(client, await make_batch(client, [line], endpoint=endpoint))
    (answered,) = await read_lines(client, f"/v1/files/{done['output_file_id']}/content")
    assert answered["response"]["body"]["object"] == object_name


async def test_another_tenants_batch_and_files_are_not_there(
    client: httpx.AsyncClient, bench: Bench, app: Any, other_tenant: Tenant
) -> None:
    batch = await make_batch(client, [chat_line("a")])
    done = await bench.run(client, batch)
    own = dict(client.headers)
    client.headers.update(other_tenant.auth)
    for path in (
        f"/v1/batches/{batch['id']}", f"/v1/batches/{batch['id']}/output", f"/v1/files/{done['output_file_id']}",
        f"/v1/files/{done['output_file_id']}/content", f"/v1/files/{batch['input_file_id']}",
    ):  # fmt: skip
        assert_problem(await client.get(path), 404, "not_found")
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT}
    assert_problem(await client.post("/v1/batches", json=body), 404, "not_found")
    assert_problem(await client.post(f"/v1/batches/{batch['id']}/cancel"), 404, "not_found")
    assert_problem(await client.delete(f"/v1/files/{batch['input_file_id']}"), 404, "not_found")
    assert (await client.get("/v1/batches")).json()["data"] == []
    client.headers = httpx.Headers(own)
    listed = (await client.get("/v1/batches")).json()
    assert [each["id"] for each in listed["data"]] == [batch["id"]]
    assert listed["has_more"] is False


async def test_what_a_batch_may_not_be_is_said(client: httpx.AsyncClient, bench: Bench) -> None:
    file = await upload(client, b"{}", purpose="user_data")
    good = {"input_file_id": file["id"], "endpoint": CHAT}
    refused = await client.post("/v1/batches", json=good)
    assert assert_problem(refused, 422, "invalid_request", "purpose")["error"]["param"] == "input_file_id"
    for change, words in (
        ({"completion_window": "forever"}, "completion_window"),
        ({"completion_window": "900d"}, "at most"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"metadata": {"a": 1}}, "metadata"),
    ):
        assert_problem(await client.post("/v1/batches", json=good | change), 422, "invalid_request", words)


async def test_a_change_that_may_not_be_is_refused(client: httpx.AsyncClient, bench: Bench) -> None:
    path = f"/v1/batches/{(await make_batch(client, [chat_line('a')]))['id']}"
    for change, words in (
        ({"deadline_s": 10_000_000}, "deadline_s"),
        ({"deadline_s": 60, "completion_window": "1h"}, "only one"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"tier": "express"}, "tier"),
    ):
        assert_problem(await client.post(path, json=change), 422, "invalid_request", words)
    changed = (await client.post(path, json={"completion_window": "2h", "metadata": {"a": "b"}})).json()
    assert changed["expires_at"] - changed["created_at"] == 7200
    assert (changed["completion_window"], changed["metadata"], changed["tier"]) == ("2h", {"a": "b"}, "batch")


async def test_an_empty_file_is_no_batch(client: httpx.AsyncClient, bench: Bench) -> None:
    failed = await bench.run(client, await make_batch(client, []))
    assert [each["code"] for each in failed["errors"]["data"]] == ["empty_file"]


async def test_a_file_that_a_batch_reads_cannot_be_deleted(client: httpx.AsyncClient, bench: Bench) -> None:
    batch = await make_batch(client, [chat_line("a")])
    path = f"/v1/files/{batch['input_file_id']}"
    assert_problem(await client.delete(path), 409, "file_in_use", "cancel the batch")
    await bench.run(client, batch)
    assert (await client.delete(path)).json()["deleted"] is True
    assert_problem(await client.get(path), 404, "not_found")


async def test_files_with_a_line_too_many_do_not_end_the_batch(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    """The assertion over the files, by a fault made by hand."""
    batch = await make_batch(client, [chat_line("a"), chat_line("b")])
    await bench.keep(2)
    await bench.work()
    await bench.keep(1)
    async with engine.begin() as conn:
        row = (
            await conn.execute(
                text("SELECT file_id, data FROM file_pieces p JOIN files f ON f.id = file_id WHERE f.status = 'open'")
            )
        ).one()
        line = bytes(row.data).splitlines(keepends=True)[0]
        await conn.execute(
            text("UPDATE file_pieces SET data = :data WHERE file_id = :id"),
            {"data": bytes(row.data) + line, "id": row.file_id},
        )
    await bench.keep(4)
    assert (await read_batch(client, batch))["status"] == "finalizing"
    from tests.support.audit import report_on

    report = await report_on(engine, None)
    assert not {each.check for each in report.findings} & {"batch_line_job", "batch_counts"}
    assert json.dumps(report.document())


async def test_two_keepers_at_once_make_one_job_and_one_result_of_each_line(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine, redis: Redis, settings: Settings
) -> None:
    made = await make_batch(client, [chat_line(f"c{n}") for n in range(8)])
    await bench.keep()
    catalog = ModelCatalog(engine, clock=SystemClock())
    breakers = BreakerBoard(engine, clock=SystemClock(), timeout_s=5)
    async with engine.connect() as conn:
        batch = await get_batch(conn, "acme", batch_id_of(made["id"]))
    pumps = [Pump(engine, catalog, breakers, settings) for _ in range(3)]

    async def tell(accepted: Sequence[Accepted]) -> None:
        await nominate(bench.queue, accepted)

    pumped = await asyncio.gather(*[each.submit(batch, tell) for each in pumps])
    assert sorted(len(each.accepted) for each in pumped) == [0, 0, 8]
    async with engine.connect() as conn:
        assert await conn.scalar(text("SELECT count(*) FROM jobs")) == 8
    await bench.work()
    assert sorted(await asyncio.gather(*[collect(engine, batch.id) for _ in range(3)])) == [0, 0, 8]
    done = await bench.run(client, made)
    assert done["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    await assert_audit_clean(engine, redis)


async def test_a_batch_outlives_the_api(client: httpx.AsyncClient, bench: Bench, app: Any, tenant: Tenant) -> None:
    batch = await make_batch(client, [chat_line("a")])
    done = await bench.run(client, batch)
    async with running(app, tenant.auth) as again:
        assert (await read_batch(again, batch))["output_file_id"] == done["output_file_id"]


async def test_each_state_of_a_batch_is_told_to_endpoints_that_want_it(
    client: httpx.AsyncClient, bench: Bench, engine: AsyncEngine
) -> None:
    endpoint = {"url": "https://example.com/hooks", "events": ["batch.*"]}
    assert (await client.post("/v1/webhook_endpoints", json=endpoint)).status_code in {200, 201}
    done = await bench.run(client, await make_batch(client, [chat_line("a")]))
    await bench.run(client, await make_batch(client, ["x"]))
    async with engine.connect() as conn:
        rows = (await conn.execute(text("SELECT event_type, body FROM webhook_deliveries ORDER BY id"))).all()
    assert [row.event_type for row in rows] == [
        "batch.in_progress", "batch.finalizing", "batch.completed", "batch.failed",
    ]  # fmt: skip
    assert json.loads(rows[2].body)["data"] == {
        "id": done["id"], "object": "batch", "status": "completed", "metadata": None,
    }  # fmt: skip
