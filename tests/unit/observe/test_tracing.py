"""Whose child is a span, and what does it tell of what went wrong? On OpenTelemetry's own provider, spans kept in memory."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.observe.tracing import Tracing, current_traceparent, open_tracing
from app.settings import Settings

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def by_name(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_span_within_another_is_its_child_and_outside_there_is_none(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.span("outer", parent=f"00-{TRACE}-{SPAN}-01"), tracing.span("inner"):
        inside = current_traceparent()
    assert current_traceparent() is None
    spans = by_name(exporter)
    assert f"{spans['outer'].context.trace_id:032x}" == TRACE
    assert f"{spans['outer'].parent.span_id:016x}" == SPAN
    assert spans["inner"].parent.span_id == spans["outer"].context.span_id
    assert inside == f"00-{TRACE}-{spans['inner'].context.span_id:016x}-01"


@pytest.mark.parametrize("parent", [None, "", "00-zz-01", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"])
def test_below_no_valid_parent_a_trace_begins(
    tracing: Tracing, exporter: InMemorySpanExporter, parent: str | None
) -> None:
    with tracing.span("root", parent=parent):
        pass
    assert by_name(exporter)["root"].parent is None


def test_what_the_caller_does_not_sample_is_told_to_nobody_and_carried_on_so(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.span("outer", parent=f"00-{TRACE}-{SPAN}-00"):
        carried = current_traceparent()
    below = tracing.record("later", 1.0, 2.0, parent=carried)
    assert exporter.get_finished_spans() == ()
    assert carried is not None
    assert below is not None
    assert carried.startswith(f"00-{TRACE}-")
    assert (carried[-2:], below[-2:]) == ("00", "00")


def test_a_sampler_of_the_environment_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with Tracing(TracerProvider(shutdown_on_exit=False)).span("root") as span:
        assert not span.is_recording()


def test_a_span_that_is_over_has_its_own_times(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    tracing.record("past", 1000.5, 1002.25, {"n": 1}, parent=f"00-{TRACE}-{SPAN}-01", error="drained")
    span = by_name(exporter)["past"]
    assert (span.start_time, span.end_time) == (1_000_500_000_000, 1_002_250_000_000)
    assert dict(span.attributes) == {"n": 1, "error.type": "drained"}


def test_of_an_exception_the_class_is_told_and_never_its_words(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span("broken"):
        raise ValueError("a secret of the caller's")
    span = by_name(exporter)["broken"]
    assert span.attributes["error.type"] == "ValueError"
    assert "secret" not in span.to_json()


async def test_tasks_side_by_side_have_their_own_spans(tracing: Tracing) -> None:
    async def one(parent: str) -> str | None:
        with tracing.span("task", parent=parent):
            await asyncio.sleep(0)
            return current_traceparent()

    first, second = await asyncio.gather(one(f"00-{TRACE}-{SPAN}-01"), one(f"00-{'1' * 32}-{SPAN}-01"))
    assert first is not None
    assert second is not None
    assert (first[3:35], second[3:35]) == (TRACE, "1" * 32)


def test_nothing_is_traced_where_no_collector_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert open_tracing(Settings(_env_file=None), "penstock-api") is None


async def test_a_collector_that_is_away_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.observe.tracing._CLOSE_S", 0.2)
    tracing = open_tracing(Settings(_env_file=None, otlp_endpoint="http://127.0.0.1:9"), "penstock-api")
    assert tracing is not None
    with tracing.span("lost"):
        pass
    async with asyncio.timeout(20):
        await tracing.close()
