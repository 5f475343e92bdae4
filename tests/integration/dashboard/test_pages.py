"""Does every page show what there is, to whom it may, and nothing that a tenant has slipped into it as markup?"""

import pytest
from sqlalchemy import text

from app.batches.store import batch_name
from app.ids import delivery_name, endpoint_name, job_name
from tests.support.dashboard import Browser
from tests.support.world import EVIL, World

PROMPT, OUTPUT = "once upon a time", ">the end<"


def paths(world: World) -> list[str]:
    """Every page that a viewer may see."""
    jobs = [f"/jobs/{job_name(job_id)}" for job_id in (*world.jobs.values(), *world.dead)]
    letters = [f"/dead-letters/{job_name(job_id)}" for job_id in world.dead]
    delivery, endpoint = delivery_name(world.delivery), endpoint_name(world.endpoint)
    batch, worker = batch_name(world.batch), world.worker.hex
    return [
        *("/jobs", "/dead-letters", "/dead-letters/all", "/webhooks", "/webhooks/deliveries", "/batches", "/workers", "/models"),
        *("/audit", *jobs, *letters, *(f"{path}/live" for path in jobs)),
        *(f"/webhooks/deliveries/{delivery}", f"/webhooks/deliveries/{delivery}/live", f"/webhooks/endpoints/{endpoint}"),
        *(f"/batches/{batch}", f"/batches/{batch}/live", "/workers/live", f"/workers/{worker}", "/models/live"),
        f"/workers/{world.past_worker.hex}",
    ]  # fmt: skip


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_each_page_is_there_and_holds_no_markup_of_a_tenant(
    request: pytest.FixtureRequest, world: World, viewer: Browser, operator: Browser, role: str
) -> None:
    client = {"viewer": viewer, "operator": operator}[role]
    for path in paths(world):
        answer = await client.get(f"/admin{path}")
        assert answer.status_code == 200, (path, answer.text)
        assert "<script>alert" not in answer.text, path
        assert PROMPT not in answer.text, path
        assert OUTPUT not in answer.text, path
    assert (
        EVIL.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;")
        in (await client.get(f"/admin/webhooks/endpoints/{endpoint_name(world.endpoint)}")).text
    )


async def test_without_a_session_no_page_is_shown(world: World, stranger: Browser) -> None:
    for path in paths(world):
        answer = await stranger.get(f"/admin{path}")
        assert answer.status_code == 303, path
        assert answer.headers["Location"].startswith("/admin/login"), path


async def test_an_unknown_thing_is_a_404(world: World, viewer: Browser) -> None:
    nothing = "0" * 32
    for path in (
        *(f"/jobs/job_{nothing}", "/jobs/nonsense", f"/jobs/job_{nothing}/live", f"/dead-letters/job_{nothing}"),
        *(f"/webhooks/endpoints/we_{nothing}", f"/webhooks/deliveries/wd_{nothing}", "/webhooks/deliveries/x"),
        *(f"/batches/batch_{nothing}", f"/workers/{nothing}", "/dead-letters/group?fingerprint=x"),
    ):
        assert (await viewer.get(f"/admin{path}")).status_code == 404, path


async def test_a_job_is_found_by_the_end_of_its_id_as_lists_show_it(world: World, viewer: Browser) -> None:
    name, other = job_name(world.jobs["succeeded"]), job_name(world.jobs["running"])
    for given in (name[-8:], f"job_…{name[-8:]}"):
        found = await viewer.get("/admin/jobs", params={"id": given})
        assert found.status_code == 200
        assert name in found.text
        assert other not in found.text
    whole = await viewer.get("/admin/jobs", params={"id": name})
    assert (whole.status_code, whole.headers["Location"]) == (303, f"/admin/jobs/{name}")


async def test_a_query_that_is_wrong_is_our_fault_and_logged_not_an_outage(
    world: World, viewer: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE breakers RENAME TO broken"))
    answer = await viewer.get("/admin/models")
    assert answer.status_code == 500
    assert "dashboard.failed" in caplog.text


async def test_the_evidence_of_a_dead_letter_is_a_table_with_its_json_folded_below(
    world: World, viewer: Browser
) -> None:
    page = (await viewer.get(f"/admin/dead-letters/{job_name(world.dead[0])}")).text
    section = page[page.index('<h2 id="evidence">') :]
    table, folded = section[: section.index("</table>")], section[section.index("All of it as JSON") :]
    for said in ("engine crash", "exit status -11", "not measured", "no record", "cpu, pid "):
        assert said in table, said
    assert "{" not in table, "no JSON in it"
    assert "Segmentation fault" in section
    assert "<details open" not in section[section.rindex("<details") :]
    assert "&#34;attempts_left_out&#34;: 0" in folded
