"""To which trace does work belong, and how long did it take? OpenTelemetry, where a collector is configured; else nothing is loaded or done.

A job carries the W3C `traceparent` of its submission from process to process: on its row, and on the rows of its webhooks.
Span attributes follow OpenTelemetry's semantic conventions where there are any. They are ids, names and numbers: never a prompt, an output, a key,
or a URL with its query.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from app.errors import Misconfigured
from app.settings import Settings

SpanKind = Literal["internal", "server", "client"]
Attribute = str | int | float | bool | list[str]

_CLOSE_S = 3.0  # what is left may be sent for so long; a collector that is away holds no process up
_HEADER = "traceparent"
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """Of the span that this task is in; None where nothing is traced."""
    return _current.get()


def open_tracing(settings: Settings, service: str) -> "Tracing | None":
    """Traces of this process go to the configured collector, by OTLP over HTTP; None where none is configured.

    `service` is its name there, unless OTEL_SERVICE_NAME says otherwise. Sampler, headers, time-outs and batching are OpenTelemetry's own
    variables (OTEL_TRACES_SAMPLER and so on).

    Raises:
        Misconfigured: OpenTelemetry isn't installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise Misconfigured(
            "PENSTOCK_OTLP_ENDPOINT is set, and OpenTelemetry isn't installed: pip install 'penstock[otel]', or unset it"
        ) from error
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    resource = Resource.create({})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


class Tracing:
    """One process's tracer."""

    def __init__(self, provider: Any) -> None:
        """`provider` is an OpenTelemetry TracerProvider; `close` shuts it down."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("penstock")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        kind: SpanKind = "internal",
        parent: str | None = None,
    ) -> Iterator[Any]:
        """A span around the block, below `parent` or else the span that the task is in. Gives the OpenTelemetry span.

        An exception that passes is noted by its class; its message may quote what a caller sent.
        """
        context = self._context(parent or _current.get())
        span = self._tracer.start_span(name, context, self._kind(kind), dict(attributes or {}))
        token = _current.set(self._traceparent_of(span))
        try:
            yield span
        except BaseException as error:
            self.fail(span, type(error).__qualname__)
            raise
        finally:
            _current.reset(token)
            span.end()

    def record(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        parent: str | None,
        error: str | None = None,
    ) -> str | None:
        """A span that is over, between two times in seconds since the epoch. Returns its traceparent, for those below it."""
        context = self._context(parent)
        span = self._tracer.start_span(
            name, context, self._kind("internal"), dict(attributes or {}), start_time=_nanoseconds(start_s)
        )
        if error is not None:
            self.fail(span, error)
        span.end(_nanoseconds(max(start_s, end_s)))
        return self._traceparent_of(span)

    def fail(self, span: Any, error_type: str) -> None:
        """What the span stands for went wrong: `error_type` is a code or a class."""
        span.set_attribute("error.type", error_type)
        span.set_status(self._trace.StatusCode.ERROR)

    async def close(self) -> None:
        """Send what is left, and end. Bounded."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _CLOSE_S)

    def _context(self, traceparent: str | None) -> Any:
        """Nothing, where it isn't a valid one: the span begins a trace."""
        from opentelemetry.context import Context

        carrier = {} if traceparent is None else {_HEADER: traceparent}
        return self._propagator.extract(carrier, Context())

    def _kind(self, kind: SpanKind) -> Any:
        return self._trace.SpanKind[kind.upper()]

    def _traceparent_of(self, span: Any) -> str | None:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier.get(_HEADER)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
