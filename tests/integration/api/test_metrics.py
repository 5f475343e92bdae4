"""Does the API count what it ends itself?"""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import Submit


async def test_a_job_that_is_cancelled_before_any_worker_has_it_is_counted_here_once(
    client: httpx.AsyncClient, submit: Submit
) -> None:
    job = await submit()
    for _ in range(2):
        await client.post(job["urls"]["cancel"])
    text = (await client.get("/metrics")).text
    ends = {
        sample.labels["status"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "penstock_jobs_total"
    }
    assert ends == {"cancelled": 1.0}
