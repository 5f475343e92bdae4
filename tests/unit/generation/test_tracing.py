"""Which spans does an attempt leave that chats, that fails, that made no token, that nobody traces? And what do the meters take of it?"""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tokenizers import Tokenizer

from app.ids import new_id
from app.jobs.store import StartedJob
from app.observe.tracing import Tracing
from tests.support.clocks import HandClock
from workers.engine.protocol import EngineStats, TokenDelta
from workers.engine.tokenizer import byte_bundle
from workers.generation.hand import RunningJob
from workers.generation.meters import Meters
from workers.generation.tracing import trace_attempt

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TOKENIZER = Tokenizer.from_str(byte_bundle(512).tokenizer_json)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def job(clock: HandClock, *, traceparent: str | None = PARENT, died_at: int = 0, **request: Any) -> RunningJob:
    started = StartedJob(
        new_id(), 1, 1, "acme", "batch", "normal", 1, list(b"hi"), "hash", request or {"prompt": "hi"},
        {"stop": [], "max_tokens": 9, "temperature": 0.5, "top_p": 0.9}, None, False, died_at, 7.0, 5.0, traceparent,
    )  # fmt: skip
    return RunningJob(started, TOKENIZER, clock.monotonic())


def bring(meters: Meters, running: RunningJob, clock: HandClock, tokens: bytes) -> None:
    """One step's tokens, as `take_step` takes them in."""
    delta = TokenDelta(running.request_id, 0, running.num_generated, list(tokens))
    meters.took(running, delta, clock.monotonic())
    running.take(delta)
    meters.stepped()


def meters_of(model: str = "m") -> Meters:
    meters = Meters()
    meters.serves(model, EngineStats)
    return meters


def value(meters: Meters, name: str) -> float:
    return meters.registry.get_sample_value(name, {"tier": "batch", "model": "m"}) or 0.0


def test_a_chat_that_fails_after_some_tokens(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    clock, meters = HandClock(), meters_of()
    running = job(clock, messages=[{"role": "user", "content": "a secret"}])
    clock.time_s += 2
    bring(meters, running, clock, b"ab")
    clock.time_s += 3
    running.ended_at = clock.monotonic()
    clock.time_s += 1
    trace_attempt(tracing, clock, running, "m", error="internal_error")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"queue wait", "chat m", "prefill", "decode", "finish"}
    lengths = {name: (span.end_time - span.start_time) / 1e9 for name, span in spans.items()}
    assert lengths == {"queue wait": 5, "prefill": 2, "decode": 3, "finish": 1, "chat m": 6}
    failed = spans["chat m"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "internal_error"
    assert failed.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert failed.attributes["gen_ai.usage.output_tokens"] == 2
    assert not any("secret" in span.to_json() for span in spans.values())


def test_an_attempt_without_a_token_has_no_decode(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    clock = HandClock()
    running = job(clock)
    running.ended_at = clock.monotonic()
    trace_attempt(tracing, clock, running, "m", error="drained")
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["queue wait", "text_completion m", "prefill", "finish"]


def test_a_job_that_came_without_a_trace_leaves_none(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    clock = HandClock()
    running = job(clock, traceparent=None)
    running.ended_at = clock.monotonic()
    trace_attempt(tracing, clock, running, "m")
    trace_attempt(None, clock, job(clock), "m")
    assert exporter.get_finished_spans() == ()


def test_waits_and_gaps_are_measured_from_where_they_begin() -> None:
    clock, meters = HandClock(), meters_of()
    running = job(clock)
    meters.started(running)
    clock.time_s += 2
    bring(meters, running, clock, b"a")
    clock.time_s += 0.2
    bring(meters, running, clock, b"bc")  # two in one step: 0.1 s each
    clock.time_s += 1
    meters.succeeded(running, clock.monotonic())
    assert value(meters, "penstock_queue_wait_seconds_sum") == 5
    assert value(meters, "penstock_time_to_first_token_seconds_sum") == 9  # 7 s old when it was taken
    assert value(meters, "penstock_inter_token_seconds_count") == 2
    assert value(meters, "penstock_inter_token_seconds_sum") == pytest.approx(0.2)
    assert value(meters, "penstock_e2e_seconds_sum") == pytest.approx(10.2)


def test_a_job_that_goes_on_or_has_died_before_has_no_first_token_now() -> None:
    clock, meters = HandClock(), meters_of()
    resumed, undead = job(clock), job(clock, died_at=3)
    resumed.num_resumed = 4
    for each in (resumed, undead):
        bring(meters, each, clock, b"a")
    meters.succeeded(undead, clock.monotonic())
    assert value(meters, "penstock_time_to_first_token_seconds_count") == 0
    assert value(meters, "penstock_e2e_seconds_count") == 0
