"""How does a call's stream end? As the life of the job did that it was asked of."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from app.api.openai import deltas
from app.api.openai.deltas import Begun, Ended, deltas_of
from app.api.openai.running import Call
from app.jobs.read import JobView
from app.streams import Event, Finished
from tests.unit.openai.test_response_events import JOB


async def test_a_dead_job_that_is_requeued_as_its_stream_ends_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's requeue between the last event and the look at the job was an AssertionError: an error of ours to the caller."""
    error = {"code": "worker_losses", "message": "too many workers were lost"}

    async def follow(*_: Any) -> AsyncGenerator[Event]:
        yield Event(1, "started")
        yield Finished(2**32 - 1, "finished", "dead", {}, error)

    async def job_of(*_: Any) -> JobView:
        return replace(JOB, status="queued")

    monkeypatch.setattr(deltas, "follow", follow)
    monkeypatch.setattr(deltas, "job_of", job_of)
    caller: Any = SimpleNamespace(tenant_id="acme")
    runtime: Any = SimpleNamespace()
    begun, ended = [each async for each in deltas_of(Call(runtime, caller, JOB, {}, True))]
    assert isinstance(begun, Begun)
    assert isinstance(ended, Ended)
    assert (ended.job.status, ended.job.error) == ("dead", error)
