"""Is one job one trace, from the POST through the queue to the worker and the webhook? Real processes, and a collector in this one."""

import json
import subprocess
import sys
from itertools import pairwise

import httpx

from tests.integration.observe.conftest import Started
from tests.support.collector import Collector, Seen, collector
from tests.support.receiver import receiver

SERVER, CLIENT, INTERNAL = 2, 3, 1
PROMPT = "A secret that nobody but the model may read"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BELOW_GENERATION = ("prefill", "decode", "finish")
SUBMIT, GENERATION, DELIVERY = "submit", "text_completion tiny", "webhook delivery"
FASTAPIS_OWN = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true"}  # stays off all the same
ALL = ("POST /v1/jobs", SUBMIT, "queue wait", GENERATION, *BELOW_GENERATION, DELIVERY)


async def run_one(client: httpx.AsyncClient, url: str, **headers: str) -> dict[str, object]:
    body = {"prompt": PROMPT, "max_tokens": 6, "tier": "interactive", "webhook": {"url": url}}
    answer = await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30", **headers})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_one_job_is_one_trace_from_the_post_to_the_webhook(stack: Started) -> None:
    with collector() as traces:
        async with receiver() as hooks, stack(OTEL_EXPORTER_OTLP_ENDPOINT=traces.endpoint, **FASTAPIS_OWN) as it:
            job = await run_one(it.client, hooks.url("/hook?token=hush"), traceparent=CALLER)
            (told,) = await hooks.wait(1)
            await traces.until(*ALL)
    assert traces.paths == {"/v1/traces"}
    by_name = {name: traces.named(name) for name in ALL}
    assert {each.trace_id for each in by_name.values()} == {CALLER.split("-")[1]}
    post, submit, generation, delivery = (by_name[name] for name in ("POST /v1/jobs", SUBMIT, GENERATION, DELIVERY))
    assert post.parent_id == CALLER.split("-")[2]
    assert submit.parent_id == post.span_id
    assert {by_name[name].parent_id for name in ("queue wait", GENERATION, DELIVERY)} == {submit.span_id}
    assert {by_name[name].parent_id for name in BELOW_GENERATION} == {generation.span_id}
    assert (post.kind, delivery.kind, generation.kind) == (SERVER, CLIENT, INTERNAL)
    assert [each.service for each in (post, submit)] == ["penstock-api"] * 2
    assert (generation.service, delivery.service) == ("penstock-worker", "penstock-webhooks")

    assert generation.attributes | {"gen_ai.response.finish_reasons": None} == {
        "penstock.job.id": job["id"], "penstock.tier": "interactive", "penstock.attempt": 1,
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "penstock", "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 6, "gen_ai.request.temperature": 1.0, "gen_ai.request.top_p": 1.0,
        "gen_ai.request.choice.count": 1, "gen_ai.response.model": "tiny", "gen_ai.response.finish_reasons": None,
        "gen_ai.usage.input_tokens": len(PROMPT), "gen_ai.usage.output_tokens": 6, "penstock.usage.cached_tokens": 0,
    }  # fmt: skip
    assert generation.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert delivery.attributes["http.response.status_code"] == 204
    assert delivery.attributes["penstock.event.type"] == "job.succeeded"
    # The receiver may go on in the same trace.
    assert told.headers["traceparent"].split("-")[1:3] == [delivery.trace_id, delivery.span_id]
    assert_in_order(by_name)
    assert_nothing_private(traces, it.tenant.token)


def assert_in_order(spans: dict[str, Seen]) -> None:
    """Each begins where the one before it ends; the worker's lie in its generation."""
    worker = [spans[name] for name in ("queue wait", *BELOW_GENERATION)]
    for before, after in pairwise(worker):
        assert abs(after.start - before.end) < 1_000  # rounded
    assert all(each.start <= each.end for each in spans.values())
    generation = spans[GENERATION]
    assert abs(generation.start - worker[1].start) < 1_000
    assert abs(generation.end - worker[-1].end) < 50_000_000


def assert_nothing_private(traces: Collector, token: str) -> None:
    shown = json.dumps([[each.name, each.attributes] for each in traces.spans])
    for private in (PROMPT, "secret", token, "hush", "/hook", "acme"):
        assert private not in shown


def test_importing_the_processes_loads_no_exporter() -> None:
    modules = "app.api.main, workers.generation.main, workers.webhooks.main"
    code = f"import sys, {modules}; sys.exit(any(each.startswith('opentelemetry.exporter') for each in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
