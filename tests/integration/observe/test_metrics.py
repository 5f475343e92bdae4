"""Does each process show the metrics of the catalogue, all of them, truly fed, and does Prometheus' own tool accept the text?"""

import shutil
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.metrics import DECISIONS
from app.observe.catalogue import CATALOGUE, METRICS
from tests.integration.observe.conftest import Started
from tests.support.receiver import receiver

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
PROCESSES = ("api", "worker", "maintenance", "webhooks")


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names_of(text: str) -> set[str]:
    """As the catalogue has them."""
    return {
        family.name + ("_total" if family.type == "counter" else "") for family in text_string_to_metric_families(text)
    }


async def scrape(urls: dict[str, str]) -> dict[str, str]:
    async with httpx.AsyncClient() as client:
        answers = {name: await client.get(f"{url}/metrics") for name, url in urls.items()}
    assert all(each.headers["content-type"].startswith("text/plain; version=0.0.4") for each in answers.values())
    return {name: each.text for name, each in answers.items()}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_each_process_shows_its_metrics_and_they_are_fed(stack: Started) -> None:
    async with receiver() as hooks, stack() as it:
        before = await scrape(it.urls)
        body = {"prompt": "Once upon a time", "max_tokens": 6, "tier": "interactive", "webhook": {"url": hooks.url()}}
        job = (await it.client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})).json()
        await hooks.wait(1)
        await it.client.get("/v1/models")
        shown = await scrape(it.urls)
        while value(samples_of(shown["webhooks"]), "penstock_webhook_deliveries_total", outcome="delivered") == 0:
            shown = await scrape(it.urls)  # it counts when what came of it is written
    assert job["status"] == "succeeded"
    assert_catalogue(before, shown)
    mine = {"tier": "interactive", "model": "tiny"}
    worker, api, maintenance = (samples_of(shown[name]) for name in ("worker", "api", "maintenance"))
    assert value(worker, "penstock_jobs_total", status="succeeded", **mine) == 1
    assert value(samples_of(before["worker"]), "penstock_jobs_total", status="succeeded", **mine) == 0
    for name, times in (("queue_wait", 1), ("time_to_first_token", 1), ("inter_token", 5), ("e2e", 1)):
        assert value(worker, f"penstock_{name}_seconds_count", **mine) == times, name
    assert value(worker, "penstock_e2e_seconds_sum", **mine) == pytest.approx(job["timing"]["total_s"], abs=0.5)
    assert value(worker, "penstock_tokens_total", kind="generated", model="tiny") >= 6
    assert value(api, "penstock_admissions_total", decision="accepted", reason="room") == 1
    assert value(maintenance, "penstock_budget_drift_tokens") == 0
    assert value(maintenance, "penstock_dependency_up", dependency="redis") == 1
    assert value(maintenance, "penstock_dependency_up", dependency="postgres") == 1
    assert_accepted(shown)


def assert_catalogue(before: dict[str, str], shown: dict[str, str]) -> None:
    for process in PROCESSES:
        wanted = {each.name for each in METRICS if process in each.processes}
        assert names_of(shown[process]) == wanted, process
        for name, labels in samples_of(shown[process]):
            base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            assert {label for label, _ in labels} - {"le"} == set(CATALOGUE[base if base in CATALOGUE else name].labels)
    first = {process: samples_of(text) for process, text in before.items()}
    for decision, reasons in DECISIONS.items():
        assert all(value(first["api"], "penstock_admissions_total", decision=decision, reason=r) == 0 for r in reasons)
    for outcome in ("delivered", "again", "failed"):
        assert value(first["webhooks"], "penstock_webhook_deliveries_total", outcome=outcome) == 0


def assert_accepted(shown: dict[str, str]) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool isn't installed (Debian's package prometheus has it): everything else was checked")
    for process, text in shown.items():
        checked = subprocess.run([tool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), (process, checked.stdout, checked.stderr)
