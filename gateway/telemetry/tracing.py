"""Traces for OpenTelemetry, from the HTTP request to the steps of the engine. Loaded only where they are switched on.

What a job did is known when it is over: the gateway's clock has its waits and attempts, the worker's answer how long
prompt and answer took. So spans are written then, with the times that were, and nothing travels with the job but its
request id: an engine needs no OpenTelemetry, pays nothing, and one that was killed has lost no spans.
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
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from gateway.access.gate import CALLER
from gateway.context import REQUEST_ID
from gateway.dispatch.state import JobState
from gateway.telemetry.logs import TRACE
from protocol.messages import Usage

NS = 1_000_000_000


class Tracing:
    """One gateway's tracer. `clock` is the pool's, in seconds."""

    def __init__(self, exporter: SpanExporter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "mlx-pool"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("mlx-pool")
        self._clock = clock

    def make_middleware(self) -> Middleware:
        """Return what puts a span around every request, below the one that the caller named in `traceparent`."""

        @web.middleware
        async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            name = f"{request.method} {resource.canonical if resource is not None else 'unknown'}"
            parent = propagate.extract(request.headers)
            with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
                TRACE.set(f"{span.get_span_context().trace_id:032x}")
                response = await handler(request)
                span.set_attribute("http.request.method", request.method)
                span.set_attribute("http.response.status_code", response.status)
                span.set_attribute("request_id", request.get(REQUEST_ID, ""))
                if CALLER in request and request[CALLER].id:
                    span.set_attribute("pool.key", request[CALLER].id)
                if response.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                return response

        return traced

    def job_ended(self, job: JobState) -> None:
        """Write what became of a job, below the span of the request that asked for it: each wait, each attempt."""
        shift = time.time_ns() - int(self._clock() * NS)

        def at(seconds: float) -> int:
            return int(seconds * NS) + shift

        for number, attempt in enumerate(job.attempts, 1):
            last = number == len(job.attempts)
            # A job that lost its worker is queued again in the same moment.
            again = not last or job.queued_at > attempt.assigned_at
            left_at = (job.queued_at if last else job.attempts[number].queued_at) if again else job.over_at
            self._span("pool.queue", at(attempt.queued_at), at(attempt.assigned_at))
            engine = self._tracer.start_span("engine", start_time=at(attempt.assigned_at))
            engine.set_attribute("gen_ai.request.model", job.name)
            engine.set_attribute("pool.worker", attempt.worker)
            engine.set_attribute("process.pid", attempt.pid)
            engine.set_attribute("pool.attempt", number)
            engine.set_attribute("pool.outcome", "lost" if again else job.outcome or "")
            if job.output_at is not None and attempt.assigned_at <= job.output_at <= left_at:
                engine.add_event("first token", timestamp=at(job.output_at))
            if again or job.outcome in ("failed", "client_error", "refused"):
                engine.set_status(Status(StatusCode.ERROR))
            if not again and job.stream.usage is not None:
                self._spent(engine, job.stream.usage, attempt.assigned_at, at)
            engine.end(at(left_at))
        if not job.attempts or job.queued_at > job.attempts[-1].assigned_at:
            self._span("pool.queue", at(job.queued_at), at(job.over_at))

    def _spent(self, engine: Span, usage: Usage, assigned_at: float, at: Callable[[float], int]) -> None:
        """Note what the last worker said of its tokens and its time; that of earlier ones went with them."""
        engine.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        engine.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        engine.set_attribute("pool.cached_tokens", usage.cached_tokens)
        with trace.use_span(engine):
            start = assigned_at
            for name, took_s in (("wait", usage.wait_s), ("prefill", usage.prefill_s), ("decode", usage.decode_s)):
                self._span(f"engine.{name}", at(start), at(start + took_s))
                start += took_s

    def _span(self, name: str, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, start_time=start_ns).end(end_ns)

    def close(self) -> None:
        """Send what is left. Blocks for a moment."""
        self._provider.shutdown()


def open_tracing() -> Tracing:
    """Return tracing to wherever the environment says. Raises `ImportError` without the extra `otel`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter())
