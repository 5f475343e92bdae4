"""What became of things, in a browser: a dead letter that lives again, a job that ends while one looks, a webhook that is sent again."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from urllib.parse import quote

import pytest
from playwright.async_api import Route
from sqlalchemy.ext.asyncio import AsyncEngine

from app.batches.store import batch_name
from app.clock import SystemClock
from app.ids import delivery_name, endpoint_name, job_name
from app.redis import Redis
from app.settings import Settings
from app.webhooks.nominate import Nomination
from tests.browser.conftest import OpenPage, Watched
from tests.support.api import HandWorker, make_tenant
from tests.support.receiver import Receiver, answer, receiver
from tests.support.streams import Served
from tests.support.webhooks import notify
from tests.support.world import World, make_world
from workers.webhooks.courier import Courier


@pytest.fixture
async def world(engine: AsyncEngine, redis: Redis, served: Served) -> World:
    """Something on every page."""
    return await make_world(engine, redis, served.runtime.settings)


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiver() as it:
        yield it


async def kind_of_death(world: World) -> str:
    fingerprint = "SELECT fingerprint FROM dead_letters WHERE job_id = :id"
    return f"/admin/dead-letters/group?fingerprint={quote(str(await world.value(fingerprint, id=world.dead[0])))}"


async def pages(world: World) -> dict[str, str]:
    jobs = {
        f"job-{state}": f"/admin/jobs/{job_name(world.jobs[state])}" for state in ("succeeded", "queued", "running")
    }
    letter = f"/admin/dead-letters/{job_name(world.dead[0])}"
    return jobs | {
        "jobs": "/admin/jobs",
        "job-dead": f"/admin/jobs/{job_name(world.dead[0])}",
        "dead-letters": "/admin/dead-letters",
        "dead-letters-group": await kind_of_death(world),
        "dead-letters-all": "/admin/dead-letters/all",
        "dead-letter": letter,
        "dead-letter-edit": f"{letter}/edit",
        "webhooks": "/admin/webhooks",
        "webhook": f"/admin/webhooks/endpoints/{endpoint_name(world.endpoint)}",
        "deliveries": "/admin/webhooks/deliveries",
        "delivery": f"/admin/webhooks/deliveries/{delivery_name(world.delivery)}",
        "batches": "/admin/batches",
        "batch": f"/admin/batches/{batch_name(world.batch)}",
        "workers": "/admin/workers",
        "worker": f"/admin/workers/{world.worker.hex}",
        "models": "/admin/models",
        "model": "/admin/models/edit?name=tiny",
        "audit": "/admin/audit",
    }


@pytest.mark.timeout(600)  # many pages: half a minute, or minutes where all else is busy
async def test_each_page_is_clean_accessible_and_fits(open_page: OpenPage, world: World) -> None:
    async with open_page("operator", color_scheme="light", reduced_motion="reduce") as watched:
        for name, path in (await pages(world)).items():
            await watched.open(path)
            await watched.assert_accessible()
            await watched.picture(name)
            await watched.assert_clean()


IN_THE_DARK = ("job-dead", "dead-letter", "delivery", "batch")


@pytest.mark.parametrize("names", [IN_THE_DARK, pytest.param(None, marks=pytest.mark.long, id="all")])
async def test_pages_are_accessible_in_the_dark(
    open_page: OpenPage, world: World, names: tuple[str, ...] | None
) -> None:
    async with open_page("operator", color_scheme="dark", reduced_motion="reduce") as watched:
        for name, path in (await pages(world)).items():
            if names is None or name in names:
                await watched.open(path)
                await watched.assert_accessible()
                await watched.picture(f"{name}-dark")
                await watched.assert_clean()


async def test_an_open_question_and_a_wrong_filter_fit_and_are_accessible(open_page: OpenPage, world: World) -> None:
    async with open_page("operator", reduced_motion="reduce") as watched:
        for name, path, button in (
            ("tier", f"/admin/jobs/{job_name(world.jobs['queued'])}", "Change tier"),
            ("requeue", f"/admin/dead-letters/{job_name(world.dead[0])}", "Requeue"),
            ("batch-change", f"/admin/batches/{batch_name(world.batch)}", "Tier or deadline"),
        ):
            await watched.open(path)
            await watched.page.locator("summary", has_text=button).first.click()
            await watched.assert_accessible()
            await watched.picture(f"question-{name}")
            await watched.assert_clean()
        await watched.open("/admin/jobs?status=gone&after=soon&tenant=acme")
        await watched.assert_accessible()
        await watched.picture("jobs-wrong-filters")
        await watched.assert_clean("422")


async def test_a_dead_letter_is_requeued_and_a_viewer_cannot(open_page: OpenPage, world: World) -> None:
    async with open_page("viewer") as watched:
        await watched.open(f"/admin/dead-letters/{job_name(world.dead[0])}")
        assert await watched.page.get_by_text("Requeue", exact=True).count() == 0
        await watched.assert_clean()
    async with open_page("operator") as watched:
        page = watched.page
        await watched.open("/admin/dead-letters")
        await page.get_by_role("link", name="SIGSEGV").click()
        await page.locator(f'a[href$="{job_name(world.dead[0])}"]').click()
        await page.get_by_text("Segmentation fault at 0x7f00deadbeef").first.wait_for()
        await page.locator("summary", has_text="Requeue").click()
        await page.get_by_label("Reason").first.fill("the driver is mended")
        await page.get_by_role("button", name="Requeue").click()
        await page.get_by_text("The job is queued again.").wait_for()
        await page.get_by_text("requeued", exact=True).first.wait_for()
        await page.get_by_role("link", name="The job", exact=True).click()
        await page.get_by_text("dead letter requeued by operator:the-operator").wait_for()
        await watched.assert_clean()
    assert await world.value("SELECT status FROM jobs WHERE id = :id", id=world.dead[0]) == "queued"


async def test_a_group_is_requeued_at_a_rate_while_the_page_is_open(open_page: OpenPage, world: World) -> None:
    async with open_page("operator") as watched:
        page, go_on = watched.page, asyncio.Event()

        async def held(route: Route) -> None:
            """The page asks for the second one a second after the first."""
            if "done=1" in (route.request.post_data or ""):
                await go_on.wait()
            await route.continue_()

        await page.route("**/group/requeue", held)
        await watched.open(await kind_of_death(world))
        await page.locator("summary", has_text="Requeue all 2").click()
        await page.get_by_label("At most so many a second").fill("1")
        await page.get_by_label("Reason").first.fill("the driver is mended")
        await page.get_by_role("button", name="Requeue", exact=True).click()
        await page.get_by_text("Requeueing, at most 1.0 a second").wait_for()
        assert await page.locator("[data-run-done]").inner_text() == "1"
        go_on.set()
        await page.get_by_role("heading", name="Done").wait_for()
        assert await page.locator("[data-run-done]").inner_text() == "2"
        await watched.assert_clean()


async def test_a_job_ends_while_one_looks(
    open_page: OpenPage, served: Served, engine: AsyncEngine, redis: Redis
) -> None:
    acme = await make_tenant(engine, served.runtime.settings, "acme")
    worker = HandWorker(engine, redis, "bytes")
    async with served.client(acme) as caller:
        job = (await caller.post("/v1/jobs", json={"prompt": "Once", "max_tokens": 40})).json()
    async with open_page("viewer") as watched:
        page = watched.page
        await watched.open(f"/admin/jobs/{job['id']}")
        status = page.locator("#job-live .stat .badge")
        assert await status.inner_text() == "queued"
        await page.get_by_text("no worker serves").wait_for()
        await worker.start(job)
        await page.locator("#job-live .stat .badge", has_text="running").wait_for()
        await page.get_by_text("claimed by a worker, attempt 1").wait_for()
        await worker.finish(job | {"status": "running"})
        await page.locator("#job-live .stat .badge", has_text="succeeded").wait_for()
        await page.get_by_text("7 tokens").wait_for()
        assert await page.locator("[data-live]").count() == 0, "it asks no more"
        await watched.assert_clean()


async def test_prompt_and_output_come_when_they_are_asked_for(open_page: OpenPage, world: World) -> None:
    async with open_page("operator") as watched:
        page = watched.page
        await watched.open(f"/admin/jobs/{job_name(world.jobs['succeeded'])}")
        assert "once upon a time" not in await watched.text()
        await page.get_by_role("button", name="Show prompt and output").click()
        await page.get_by_text("once upon a time").wait_for()
        await page.get_by_text("the end", exact=True).wait_for()
        await watched.assert_accessible()
        await watched.picture("job-texts")
        await watched.assert_clean()
    assert [action for _, action, _ in await world.acts()] == ["job.show_texts"]


async def test_a_webhook_is_sent_again(
    open_page: OpenPage, served: Served, engine: AsyncEngine, settings: Settings, server: Receiver
) -> None:
    local = settings.model_copy(update={"webhook_allow_local": True})
    courier = Courier(local, SystemClock(), engine, Random(0))
    server.answers["/hook"] = answer("410 Gone", body=b"nobody is here")
    (delivery,) = await notify(engine, server.url("/hook"))
    await courier.deliver(Nomination(delivery, 1))
    async with open_page("operator") as watched:
        page = watched.page
        await watched.open("/admin/webhooks/deliveries?status=failed")
        await page.locator(f'a[href$="{delivery_name(delivery)}"]').click()
        await page.get_by_text("nobody is here").wait_for()
        await page.locator("summary", has_text="Send again").click()
        await page.get_by_role("button", name="Send again").click()
        await page.get_by_text("It is sent again.").wait_for()
        assert await badge(watched) == "pending"
        del server.answers["/hook"]
        await courier.deliver(Nomination(delivery, 2))
        await page.locator("#delivery-live .facts .badge", has_text="delivered").wait_for()
        assert await page.locator("#delivery-live tbody tr").count() == 2
        await watched.assert_clean()
    assert len({each.headers["webhook-id"] for each in server.received}) == 1


async def badge(watched: Watched) -> str:
    return await watched.page.locator("#delivery-live .facts .badge").inner_text()
