"""Does each act do what it says, for whom it may, once, and is it in the log under the operator's name?"""

import re

import pytest
from sqlalchemy import text

from app.batches.store import batch_name
from app.ids import delivery_name, endpoint_name, job_name
from tests.support.audit import assert_audit_clean
from tests.support.dashboard import Browser, seen
from tests.support.world import World

ANN = "operator:the-operator"
WHY = "the cause is removed"


def acts(world: World) -> list[tuple[str, dict[str, object]]]:
    """Every act of these pages, with a form that would do it."""
    job = {state: f"/jobs/{job_name(job_id)}" for state, job_id in world.jobs.items()}
    letter = f"/dead-letters/{job_name(world.dead[0])}"
    endpoint = f"/webhooks/endpoints/{endpoint_name(world.endpoint)}"
    delivery = f"/webhooks/deliveries/{delivery_name(world.delivery)}"
    batch, worker = f"/batches/{batch_name(world.batch)}", f"/workers/{world.worker.hex}"
    why: dict[str, object] = {"reason": WHY}
    return [
        (f"{job['queued']}/cancel", why), (f"{job['queued']}/tier", why | {"tier": "interactive"}),
        (f"{job['succeeded']}/texts", {}), (f"{letter}/requeue", why), (f"{letter}/discard", why),
        (f"{letter}/edit", why | {"life": 1, "max_tokens": 4}),
        ("/dead-letters/group/requeue", why | {"fingerprint": "x"}), ("/dead-letters/group/discard", why | {"fingerprint": "x"}),
        (f"{endpoint}/disable", why), (f"{endpoint}/enable", why), (f"{endpoint}/recover", why | {"since_s": "3600"}),
        (f"{delivery}/resend", {}), (f"{delivery}/body", {}), (f"{batch}/cancel", why), (f"{batch}/change", why | {"tier": "standard"}),
        (f"{worker}/drain", why), (f"{worker}/undrain", why), ("/models/price", {"name": "tiny", "input_price": "1"}),
        ("/models/breaker/stop", why | {"name": "tiny"}),
    ]  # fmt: skip


async def test_a_viewer_does_none_of_it_and_no_form_without_the_sessions_token_does(
    world: World, viewer: Browser, operator: Browser
) -> None:
    before = await state_of(world)
    for path, fields in acts(world):
        assert (await viewer.act(f"/admin{path}", **fields)).status_code == 403, path
        without = await operator.post(f"/admin{path}", data=fields)
        assert without.status_code == 403, path
        of_another = await operator.post(f"/admin{path}", data={**fields, "csrf": viewer.csrf})
        assert of_another.status_code == 403, path
    assert await state_of(world) == before
    assert await world.acts() == []


async def state_of(world: World) -> list[object]:
    """What acts would change."""
    return [
        await world.value("SELECT array_agg(status || tier || gen ORDER BY id) FROM jobs"),
        await world.value("SELECT array_agg(resolution ORDER BY job_id) FROM dead_letters"),
        await world.value("SELECT array_agg(status ORDER BY id) FROM webhook_endpoints"),
        await world.value("SELECT array_agg(status ORDER BY id) FROM webhook_deliveries"),
        await world.value("SELECT array_agg(status || tier) FROM batches"),
        await world.value("SELECT array_agg(drain_requested_at ORDER BY incarnation) FROM workers"),
        await world.value("SELECT sum(input_price) FROM models"),
        await world.value("SELECT count(*) FROM breakers"),
    ]


async def test_each_act_that_changes_something_wants_a_reason(world: World, operator: Browser) -> None:
    for path, fields in acts(world):
        if "reason" in fields:
            answer = await operator.act(f"/admin{path}", **{**fields, "reason": " "})
            assert answer.status_code == 422, path
            assert "say why" in answer.text, path
    assert await world.acts() == []


async def test_cancel(world: World, operator: Browser) -> None:
    path = f"/admin/jobs/{job_name(world.jobs['queued'])}"
    answer = await operator.act(f"{path}/cancel", reason=WHY)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{path}?said=job-cancelled")
    assert await world.value("SELECT status FROM jobs WHERE id = :id", id=world.jobs["queued"]) == "cancelled"
    running = await operator.act(f"/admin/jobs/{job_name(world.jobs['running'])}/cancel", reason=WHY)
    assert running.headers["Location"].endswith("said=job-cancelling")
    again = await operator.act(f"/admin/jobs/{job_name(world.jobs['succeeded'])}/cancel", reason=WHY)
    assert again.status_code == 409
    assert "has ended" in again.text
    names = [job_name(world.jobs[state]) for state in ("queued", "running")]
    assert await world.acts() == [(ANN, "job.cancel", name) for name in names]


async def test_another_tier(world: World, operator: Browser) -> None:
    job_id = world.jobs["queued"]
    path = f"/admin/jobs/{job_name(job_id)}/tier"
    assert (await operator.act(path, reason=WHY, tier="interactive")).headers["Location"].endswith("said=job-retiered")
    assert await world.value("SELECT tier FROM jobs WHERE id = :id", id=job_id) == "interactive"
    assert (await operator.act(path, reason=WHY, tier="fastest")).status_code == 422
    timeline = (await operator.get(f"/admin/jobs/{job_name(job_id)}")).text
    assert "queued in batch" in timeline, "as it was then"
    assert f"put into interactive by {ANN}" in timeline
    ended = f"/admin/jobs/{job_name(world.jobs['succeeded'])}/tier"
    assert (await operator.act(ended, reason=WHY, tier="batch")).status_code == 409
    async with world.engine.begin() as conn:
        await conn.execute(
            text("""
                INSERT INTO batch_lines (batch_id, number, custom_id, rank, start, length, state, job_id)
                VALUES (:batch, 7, 'a', 1, 0, 1, 'submitted', :job)
            """),
            {"batch": world.batch, "job": job_id},
        )
    of_a_batch = await operator.act(path, reason=WHY, tier="batch")
    assert of_a_batch.status_code == 422
    assert "line 7" in of_a_batch.text
    assert await world.acts() == [(ANN, "job.tier", job_name(job_id))]


async def test_texts_are_shown_to_operators_and_each_look_is_written_down(
    world: World, viewer: Browser, operator: Browser
) -> None:
    name = job_name(world.jobs["succeeded"])
    page = await viewer.get(f"/admin/jobs/{name}")
    assert "your role doesn't see them" in page.text
    shown = await operator.act(f"/admin/jobs/{name}/texts")
    assert shown.status_code == 200
    assert ">once upon a time<" in shown.text
    assert ">the end<" in shown.text
    fragment = await operator.post(
        f"/admin/jobs/{name}/texts", headers={"HX-Request": "true", "X-CSRF-Token": operator.csrf}
    )
    assert ">the end<" in fragment.text
    assert "<html" not in fragment.text
    assert await world.acts() == [(ANN, "job.show_texts", name)] * 2


async def test_texts_that_were_forgotten_are_said_to_be(world: World, operator: Browser) -> None:
    job_id = world.jobs["succeeded"]
    async with world.engine.begin() as conn:
        values = {"id": job_id}
        await conn.execute(
            text("UPDATE job_results SET choices = '[]', forgotten_at = now() WHERE job_id = :id"), values
        )
        await conn.execute(text("DELETE FROM job_inputs WHERE job_id = :id"), values)
    shown = await operator.act(f"/admin/jobs/{job_name(job_id)}/texts")
    assert "The prompt was forgotten" in shown.text
    assert "The output was forgotten" in shown.text


# --- dead letters ----------------------------------------------------------------------------------------------------


async def test_requeue_one_and_nobody_twice(world: World, operator: Browser) -> None:
    job_id = world.dead[0]
    path = f"/admin/dead-letters/{job_name(job_id)}"
    assert (await operator.act(f"{path}/requeue", reason=WHY, deadline="in", deadline_in_s="600")).status_code == 303
    assert await world.value("SELECT status FROM jobs WHERE id = :id", id=job_id) == "queued"
    assert await world.value("SELECT deadline_at > now() + interval '9 min' FROM jobs WHERE id = :id", id=job_id)
    assert await world.queue.known_gens([job_id]) == [2]
    again = await operator.act(f"{path}/requeue", reason=WHY)
    assert again.status_code == 409
    assert "was requeued by" in again.text
    assert await world.acts() == [(ANN, "dead_letter.requeue", job_name(job_id))]
    await assert_audit_clean_but_for_the_world(world)


async def assert_audit_clean_but_for_the_world(world: World) -> None:
    """The world's held job, running job, batch and delivery are made by hand; its letters and jobs aren't."""
    async with world.engine.begin() as conn:
        await conn.execute(text("DELETE FROM batches"))
        await conn.execute(text("DELETE FROM webhook_deliveries"))
        await conn.execute(text("DELETE FROM webhook_endpoints"))
        await conn.execute(text("UPDATE jobs SET webhook = NULL"))
        for table in ("attempts", "job_inputs"):
            await conn.execute(
                text(f"DELETE FROM {table} WHERE job_id = :id"),
                {"id": world.jobs["held"]},
            )
        await conn.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": world.jobs["held"]})
    await assert_audit_clean(world.engine, world.queue.redis)


async def test_edit_and_requeue(world: World, operator: Browser) -> None:
    job_id = world.dead[0]
    path = f"/admin/dead-letters/{job_name(job_id)}/edit"
    form = await operator.get(path)
    assert form.status_code == 200
    fields = dict(re.findall(r'<input id="f-(\w+)" name="\w+" type="text" value="([^"]*)"', form.text))
    assert fields["max_tokens"] == "8"
    refused = await operator.act(path, **(fields | {"life": 1, "reason": WHY, "temperature": "9"}))
    assert refused.status_code == 422
    assert "temperature" in refused.text
    assert 'value="9"' in refused.text, "what was typed stays"
    done = await operator.act(path, **(fields | {"life": 1, "reason": WHY, "max_tokens": "4", "tier": "batch"}))
    assert done.status_code == 303, done.text
    assert await world.value("SELECT tier || max_tokens FROM jobs WHERE id = :id", id=job_id) == "batch4"
    detail = await world.value("SELECT detail FROM audit_log WHERE action = 'dead_letter.requeue'")
    assert detail["changed"] == {"max_tokens": [8, 4], "tier": ["standard", "batch"]}
    late = await operator.act(path, **(fields | {"life": 1, "reason": WHY}))
    assert late.status_code == 409


async def test_an_edit_beyond_the_tenants_rights_is_refused_and_what_was_typed_stays(
    world: World, operator: Browser
) -> None:
    job_id = world.dead[0]
    async with world.engine.begin() as conn:
        await conn.execute(
            text("UPDATE tenants SET tiers = '{standard}' WHERE id = (SELECT tenant_id FROM jobs WHERE id = :id)"),
            {"id": job_id},
        )
    path = f"/admin/dead-letters/{job_name(job_id)}/edit"
    refused = await operator.act(path, life=1, reason=WHY, tier="interactive", max_tokens="4")
    assert refused.status_code == 403
    assert "may not use" in refused.text
    assert '<option value="interactive" selected>' in refused.text
    assert await world.acts() == []


async def test_stop_strings_in_the_edit_form_are_a_look(world: World, operator: Browser) -> None:
    job_id = world.dead[0]
    async with world.engine.begin() as conn:
        await conn.execute(
            text("""UPDATE job_inputs SET request = jsonb_set(request::jsonb, '{stop}', '["a private word"]')
                    WHERE job_id = :id"""), {"id": job_id},
        )  # fmt: skip
    form = await operator.get(f"/admin/dead-letters/{job_name(job_id)}/edit")
    assert "a private word" in form.text
    assert await world.acts() == [(ANN, "dead_letter.show_texts", job_name(job_id))]


async def test_discard_one(world: World, operator: Browser) -> None:
    name = job_name(world.dead[2])
    assert (await operator.act(f"/admin/dead-letters/{name}/discard", reason=WHY)).status_code == 303
    assert await world.value("SELECT resolution FROM dead_letters WHERE job_id = :id", id=world.dead[2]) == "discarded"
    assert await world.acts() == [(ANN, "dead_letter.discard", name)]


@pytest.mark.parametrize(("act", "resolution"), [("requeue", "requeued"), ("discard", "discarded")])
async def test_a_group_goes_in_steps_at_a_rate_until_none_is_left(
    world: World, operator: Browser, act: str, resolution: str
) -> None:
    fingerprint = await world.value("SELECT fingerprint FROM dead_letters WHERE job_id = :id", id=world.dead[0])
    path = f"/admin/dead-letters/group/{act}"
    page = await operator.act(path, fingerprint=fingerprint, reason=WHY, per_s="1")
    assert page.status_code == 200
    assert "<html" in page.text
    assert "delay:1000ms" in page.text
    step = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    headers = {"HX-Request": "true", "X-CSRF-Token": operator.csrf}
    last = await operator.post(path, data=step, headers=headers)
    assert "<html" not in last.text
    assert "Done" in last.text
    assert "hx-post" not in last.text
    resolved = "SELECT array_agg(resolution ORDER BY job_id) FROM dead_letters"
    assert await world.value(resolved) == [resolution, resolution, None], "the other kind stays"
    assert {action for _, action, _ in await world.acts()} == {f"dead_letter.{act}"}
    assert len(await world.acts()) == 2


async def test_letters_that_a_budget_refuses_are_named_and_stay_open(world: World, operator: Browser) -> None:
    async with world.engine.begin() as conn:
        await conn.execute(text("UPDATE budgets SET hard_limit = 0"))
    fingerprint = await world.value("SELECT fingerprint FROM dead_letters WHERE job_id = :id", id=world.dead[0])
    page = await operator.act("/admin/dead-letters/group/requeue", fingerprint=fingerprint, reason=WHY)
    assert "Done" in page.text
    assert job_name(world.dead[0]) in page.text
    assert await world.value("SELECT count(*) FROM dead_letters WHERE resolved_at IS NULL") == 3
    assert await world.acts() == []


# --- webhooks, batches, workers, models -------------------------------------------------------------------------------


async def test_an_endpoint_is_disabled_enabled_and_recovered(world: World, operator: Browser) -> None:
    name = endpoint_name(world.endpoint)
    path = f"/admin/webhooks/endpoints/{name}"
    assert (await operator.act(f"{path}/disable", reason=WHY)).status_code == 303
    assert await world.value("SELECT disabled_reason FROM webhook_endpoints") == f"by an operator: {WHY}"
    assert f"by an operator: {WHY}" in (await operator.get(path)).text
    assert (await operator.act(f"{path}/recover", reason=WHY, since_s="3600")).status_code == 409
    assert (await operator.act(f"{path}/enable", reason=WHY)).status_code == 303
    assert (await operator.act(f"{path}/recover", reason=WHY, since_s="1")).status_code == 422
    recovered = await operator.act(f"{path}/recover", reason=WHY, since_s="3600")
    assert recovered.headers["Location"].endswith("?said=endpoint-recovered")
    assert await world.value("SELECT status FROM webhook_deliveries WHERE id = :id", id=world.delivery) == "pending"
    again = await operator.act(f"{path}/recover", reason=WHY, since_s="3600")
    assert again.headers["Location"].endswith("?said=endpoint-had-nothing"), "it isn't said that something was sent"
    done = ("disable", "enable", "recover", "recover")
    assert await world.acts() == [(ANN, f"webhook_endpoint.{act}", name) for act in done]


async def test_a_delivery_is_sent_again(world: World, operator: Browser) -> None:
    name = delivery_name(world.delivery)
    assert (await operator.act(f"/admin/webhooks/deliveries/{name}/resend")).status_code == 303
    assert await world.value("SELECT status FROM webhook_deliveries WHERE id = :id", id=world.delivery) == "pending"
    assert await world.acts() == [(ANN, "webhook_delivery.resend", name)]


async def test_answers_and_bodies_are_for_operators_and_the_look_is_written_down(
    world: World, viewer: Browser, operator: Browser
) -> None:
    name = delivery_name(world.delivery)
    path = f"/admin/webhooks/deliveries/{name}"
    assert "&lt;script&gt;" not in (await viewer.get(path)).text, "what the receiver answered"
    assert "&lt;script&gt;" in (await operator.get(path)).text
    body = await operator.act(f"{path}/body")
    assert "job.succeeded" in body.text
    assert "&#34;data&#34;" in body.text
    assert await world.acts() == [(ANN, "webhook_delivery.show_body", name)]


async def test_a_batch_changes_tier_and_deadline_and_is_cancelled(world: World, operator: Browser) -> None:
    name = batch_name(world.batch)
    path = f"/admin/batches/{name}"
    assert (await operator.act(f"{path}/change", reason=WHY)).status_code == 422
    assert (await operator.act(f"{path}/change", reason=WHY, tier="standard", deadline_h="2")).status_code == 303
    assert await world.value("SELECT tier FROM batches WHERE expires_at < now() + interval '3 h'") == "standard"
    async with world.engine.begin() as conn:
        await conn.execute(text("UPDATE tenants SET tiers = '{batch,standard}'"))
    assert (await operator.act(f"{path}/change", reason=WHY, tier="interactive")).status_code == 403
    assert (await operator.act(f"{path}/cancel", reason=WHY)).status_code == 303
    assert (await operator.act(f"{path}/cancel", reason=WHY)).status_code == 303
    assert await world.value("SELECT status FROM batches") == "cancelling"
    assert (await operator.act(f"{path}/change", reason=WHY, tier="batch")).status_code == 409
    assert await world.acts() == [(ANN, "batch.change", name), (ANN, "batch.cancel", name)]


async def test_a_worker_is_drained_and_brought_back(world: World, operator: Browser) -> None:
    name = world.worker.hex
    assert (await operator.act(f"/admin/workers/{name}/drain", reason=WHY)).status_code == 303
    assert await world.value("SELECT state FROM workers WHERE incarnation = :id", id=world.worker) == "draining"
    assert (await operator.act(f"/admin/workers/{name}/undrain", reason=WHY)).status_code == 303
    past = await operator.act(f"/admin/workers/{world.past_worker.hex}/drain", reason=WHY)
    assert past.status_code == 409
    assert "has ended" in past.text
    assert await world.acts() == [(ANN, "worker.drain", name), (ANN, "worker.undrain", name)]


async def test_a_model_is_priced_stopped_and_allowed(world: World, operator: Browser) -> None:
    form = await operator.get("/admin/models/edit?name=tiny")
    assert form.status_code == 200
    old = await seen(operator, "/admin/models/edit?name=tiny")
    priced = await operator.act(
        "/admin/models/price", name="tiny", input_price="0.15", output_price="1,000.5", seen=old
    )
    assert priced.status_code == 303
    assert await world.value("SELECT input_price || '/' || output_price FROM models") == "150000/1000500000"
    late = await operator.act("/admin/models/price", name="tiny", input_price="0.2", output_price="0", seen=old)
    assert late.status_code == 409
    assert "output price: 1,000.50" in late.text
    assert 'value="0.2"' in late.text, "what was entered stays"
    assert await world.value("SELECT input_price || '/' || output_price FROM models") == "150000/1000500000"
    for wrong in ("-1", "0.0000001", "x", "NaN", "1e30"):
        answer = await operator.act("/admin/models/price", name="tiny", input_price=wrong, output_price="1")
        assert answer.status_code == 422, wrong
        assert "input_price" in answer.text
    itself = await operator.act("/admin/models/price", name="tiny", input_price="1", output_price="1", fallback="tiny")
    assert itself.status_code == 422
    assert (await operator.act("/admin/models/breaker/stop", name="tiny", reason=WHY)).status_code == 303
    assert await world.value("SELECT mode FROM breakers") == "open"
    assert "by an operator" in (await operator.get("/admin/models")).text
    assert (await operator.act("/admin/models/breaker/auto", name="tiny", reason=WHY)).status_code == 303
    assert (await operator.act("/admin/models/breaker/stop", name="unheard-of", reason=WHY)).status_code == 404
    assert await world.acts() == [
        (ANN, "model.change", "tiny"), (ANN, "breaker.open", "tiny"), (ANN, "breaker.auto", "tiny"),
    ]  # fmt: skip
