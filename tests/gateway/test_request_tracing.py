"""Traces: spans from the HTTP request to the engine's share of it; nothing of it where it is off."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import GatewayConfig
from gateway.dispatch.state import JobState
from gateway.telemetry.logs import JsonLines, TextLines
from gateway.telemetry.tracing import Tracing
from protocol.messages import Done, Usage
from tests.support.dispatch_rig import Clock, Rig, generate, supervision

ROOT = Path(__file__).parents[2]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_spans_lead_from_the_request_to_the_engine_when_a_job_ran() -> None:
    """Below the caller's span: the request, its wait in the queue, the engine with wait, prefill and decode."""
    exporter, clock = InMemorySpanExporter(), Clock()
    tracing = Tracing(exporter, clock=clock)
    rig = Rig(told=tracing.job_ended, clock=clock)

    def run() -> JobState:
        rig.join()
        flight = rig.submit(generate())
        clock.now += 1
        rig.accept(flight)
        rig.output(flight)
        clock.now += 2
        assert flight.worker is not None
        usage = Usage(10, 20, wait_s=0.5, prefill_s=0.5, decode_s=2.0)
        rig.feed(flight.worker.identity, Done(flight.id, flight.attempt, usage))
        rig.dispatcher.release_job(flight)
        return flight

    async def handler(_request: web.Request) -> web.Response:
        run()
        return web.Response()

    app = web.Application(middlewares=[tracing.make_middleware()])
    app.router.add_get("/v1/x/{id}", handler)
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/v1/x/7", headers={"traceparent": PARENT})).status == 200
    tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"GET /v1/x/{id}", "pool.queue", "engine", "engine.wait", "engine.prefill", "engine.decode"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {PARENT.split("-")[1]}

    def parent(name: str) -> Any:
        found = spans[name].parent
        assert found is not None
        return found.span_id

    request, engine = spans["GET /v1/x/{id}"].context.span_id, spans["engine"].context.span_id
    assert f"{parent('GET /v1/x/{id}'):016x}" == PARENT.split("-")[2]
    assert parent("pool.queue") == parent("engine") == request
    assert {parent(f"engine.{name}") for name in ("wait", "prefill", "decode")} == {engine}
    length_s = {name: (span.end_time - span.start_time) / 1e9 for name, span in spans.items()}
    assert [length_s[name] for name in ("pool.queue", "engine", "engine.prefill", "engine.decode")] == [0, 3, 0.5, 2]
    attributes = spans["engine"].attributes
    assert attributes is not None
    assert (attributes["gen_ai.usage.output_tokens"], attributes["pool.outcome"]) == (20, "done")


async def test_each_attempt_has_its_spans_when_a_job_went_on_after_a_crash() -> None:
    """Both waits, both engines, each with its worker; times of the prompt belong to the one that told them."""
    exporter, clock = InMemorySpanExporter(), Clock()
    tracing = Tracing(exporter, clock=clock)
    rig = Rig(told=tracing.job_ended, clock=clock)
    rig.join("w1", pid=11)
    rig.supervise(supervision())
    flight = rig.submit(generate())
    first = flight.worker
    assert first is not None
    rig.accept(flight)
    rig.output(flight)
    clock.now += 2
    rig.lose(first)
    clock.now += 1
    rig.join("w2", pid=12)
    assert flight.worker is not None
    clock.now += 4
    usage = Usage(10, 20, wait_s=0.0, prefill_s=1.0, decode_s=3.0)
    rig.feed(b"w2", Done(flight.id, flight.attempt, usage))
    rig.dispatcher.release_job(flight)
    tracing.close()
    spans = sorted(exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, span.end_time or 0))
    lengths = [(span.name, round(((span.end_time or 0) - (span.start_time or 0)) / 1e9, 3)) for span in spans]
    assert lengths == [
        ("pool.queue", 0), ("engine", 2), ("pool.queue", 1),
        ("engine.wait", 0), ("engine.prefill", 1), ("engine", 4), ("engine.decode", 3),
    ]  # fmt: skip
    engines = [span.attributes or {} for span in spans if span.name == "engine"]
    assert [(one["pool.worker"], one["process.pid"], one["pool.attempt"], one["pool.outcome"]) for one in engines] == [
        ("w1", 11, 1, "lost"), ("w2", 12, 2, "done"),
    ]  # fmt: skip
    assert [event.name for span in spans for event in span.events] == ["first token"]


async def test_log_lines_name_the_trace_when_requests_are_traced() -> None:
    """Text and JSON, inside of the request; nothing outside."""
    lines: list[str] = []
    tracing = Tracing(InMemorySpanExporter())

    async def handler(_request: web.Request) -> web.Response:
        record = logging.makeLogRecord({"msg": "here"})
        lines.extend([TextLines().format(record), JsonLines().format(record)])
        return web.Response()

    app = web.Application(middlewares=[tracing.make_middleware()])
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        await client.get("/", headers={"traceparent": PARENT})
    tracing.close()
    trace_id = PARENT.split("-")[1]
    assert lines[0].endswith(f"here [trace_id={trace_id}]")
    assert f'"trace_id":"{trace_id}"' in lines[1]
    assert "trace_id" not in TextLines().format(logging.makeLogRecord({"msg": "here"}))


def test_nothing_of_it_is_loaded_when_it_is_off() -> None:
    """Off is the default, and costs not even an import."""
    assert GatewayConfig().tracing is False
    code = "import sys, gateway.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("missing", ["opentelemetry"])
def test_gateway_says_what_to_install_when_it_is_switched_on_without_the_extra(missing: str, tmp_path: Path) -> None:
    """Exit code 2 and a line."""
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not here')")
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "--tracing"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "POOL_DATA_DIR": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 2
    assert "'scripts/install otel' in the pool's folder adds it" in run.stderr
