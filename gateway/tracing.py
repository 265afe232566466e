"""Traces for OpenTelemetry, from the HTTP request to the steps of the engine. Loaded only where they are switched on.

What a job did is known when it is over: the gateway's clock has its waits, the worker's answer how long prompt and
answer took. So spans are written then, with the times that were, and nothing travels with the job but its request id.
Where they are sent is OpenTelemetry's own to configure (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin).
"""

import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from gateway.context import REQUEST_ID
from gateway.dispatch.flight import Flight

NS = 1_000_000_000


class Tracing:
    """One gateway's tracer. `clock` is the pool's, in seconds."""

    def __init__(self, exporter: SpanExporter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "mlx-pool"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("mlx-pool")
        self._clock = clock

    def middleware(self) -> Middleware:
        """A span around every request, below the one that the caller named in `traceparent`."""

        @web.middleware
        async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            name = f"{request.method} {resource.canonical if resource is not None else 'unknown'}"
            parent = propagate.extract(request.headers)
            with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
                response = await handler(request)
                span.set_attribute("http.request.method", request.method)
                span.set_attribute("http.response.status_code", response.status)
                span.set_attribute("request_id", request.get(REQUEST_ID, ""))
                if response.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                return response

        return traced

    def job_ended(self, flight: Flight) -> None:
        """Write what became of a job, below the span of the request that asked for it."""
        shift = time.time_ns() - int(self._clock() * NS)

        def at(seconds: float) -> int:
            return int(seconds * NS) + shift

        sent = flight.sent_at if flight.sent_at is not None else flight.over_at
        self._tracer.start_span("pool.queue", start_time=at(flight.began_at)).end(at(sent))
        if flight.sent_at is None:
            return
        engine = self._tracer.start_span("engine", start_time=at(sent))
        engine.set_attribute("gen_ai.request.model", flight.name)
        engine.set_attribute("pool.attempt", flight.attempt)
        engine.set_attribute("pool.outcome", flight.outcome or "")
        if flight.output_at is not None:
            engine.add_event("first token", timestamp=at(flight.output_at))
        usage = flight.stream.usage
        if usage is not None:
            engine.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            engine.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            engine.set_attribute("pool.cached_tokens", usage.cached_tokens)
            with trace.use_span(engine):
                start = sent
                for name, took_s in (("wait", usage.wait_s), ("prefill", usage.prefill_s), ("decode", usage.decode_s)):
                    self._tracer.start_span(f"engine.{name}", start_time=at(start)).end(at(start + took_s))
                    start += took_s
        if flight.outcome == "failed":
            engine.set_status(Status(StatusCode.ERROR))
        engine.end(at(flight.over_at))

    def close(self) -> None:
        """Send what is left. Blocks for a moment."""
        self._provider.shutdown()


def open_tracing() -> Tracing:
    """Tracing to wherever the environment says. Raises `ImportError` without the extra `otel`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter())
