"""`/ping`, `/health`, `/health/live`, `/health/ready` and `/health/{model}`."""

import time
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.access.gate import GATE
from gateway.access.keys.key import OPEN
from gateway.bodies.body import answer
from gateway.context import POOL
from gateway.http.openapi import Operation, mount
from gateway.schema.errors import ApiError
from gateway.schema.health import Alive, Health, HealthSummary, Memory, ModelHealth
from gateway.serving.caller import may_use
from protocol.messages import Kind, State, Watch

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

SEEING = ("models", "admin")
"""Permissions that let a key see more than whether the pool is well."""
STARTED: web.AppKey[float] = web.AppKey("started", float)


async def ping(_request: web.Request) -> web.Response:
    """Answer that the gateway runs; no work is done to find out."""
    return answer(Alive(status="ok"))


async def pool_health(request: web.Request) -> web.Response:
    """Answer 200 if every model is up that should be, else 503; the same body. Strangers learn no more than that."""
    served = request.app[POOL].models()
    caller = request.app[GATE].recognize_caller(request)
    if caller is None or not caller.has_permission(*SEEING):
        healthy = _are_well(served)
        return answer(HealthSummary(status="ok", models_healthy=healthy), status=200 if healthy else 503)
    seen = [model for model in served if caller.may_use_model(model.name, model.source, *model.aliases)]
    models = [_model(model) for model in seen]
    first = min(models, key=lambda model: (not model.healthy, model.kind != Kind.CHAT), default=None)
    healthy = _are_well(seen)
    body = Health(
        status="ok",
        model_id=first.id if first else None,
        model_status="initialized" if first and first.healthy else "uninitialized",
        model_loaded=bool(first and first.healthy),
        models_healthy=healthy,
        warmup_enabled=first.warmup_enabled if first else None,
        warmup_completed=first.warmup_completed if first else None,
        uptime=round(time.monotonic() - request.app[STARTED], 3),
        memory=_sum([model.memory for model in models]),
        models=models,
    )
    return answer(body, status=200 if healthy else 503)


async def model_health(request: web.Request) -> web.Response:
    """Answer 200 if the model is up, else 503."""
    wanted = request.match_info["model"]
    for model in request.app[POOL].models():
        if wanted in (model.name, model.source, *model.aliases) and may_use(request, model):
            found = _model(model)
            return answer(found, status=200 if found.healthy else 503)
    raise ApiError("model_not_found", "There is no such model.", "model")


def _are_well(models: "list[ModelState]") -> bool:
    """Return whether somebody is here, and every model takes requests that was not stopped on purpose."""
    return any(model.present for model in models) and all(
        model.state == State.READY for model in models if model.expected
    )


def _model(model: "ModelState") -> ModelHealth:
    ready = model.ready
    up = model.state == State.READY
    reports = [supervisor.report for supervisor in model.supervisors.values()]
    beats = [worker.beat for worker in model.workers.values() if worker.beat is not None]
    return ModelHealth(
        id=model.name,
        kind=model.kind.value,
        state=model.state,
        healthy=up,
        expected=model.expected,
        replicas=model.replicas,
        warmup_enabled=ready.warmup_enabled if ready else None,
        warmup_completed=(up and ready.warmup_enabled) if ready else None,
        load_s=round(ready.load_s, 3) if ready else None,
        memory=Memory(
            active_bytes=sum(beat.active_bytes for beat in beats),
            cache_bytes=sum(beat.cache_bytes for beat in beats),
            prefix_bytes=sum(beat.prefix_bytes for beat in beats),
        ),
        restarts=sum(report.restarts for report in reports),
        last_exit_code=next((report.exit_code for report in reports if report.exit_code is not None), None),
        reason=model.restarts.reason or (reports[0].ended or None if model.state == Watch.CRASH_LOOP else None),
    )


def _sum(memories: list[Memory]) -> Memory:
    return Memory(
        active_bytes=sum(memory.active_bytes for memory in memories),
        cache_bytes=sum(memory.cache_bytes for memory in memories),
        prefix_bytes=sum(memory.prefix_bytes for memory in memories),
    )


OPERATIONS = tuple(
    Operation(
        method=hdrs.METH_GET,
        path=path,
        handler=handler,
        summary=summary,
        tag="Health",
        answer=kind,
        errors=errors,
        quiet=True,
        access=access,
    )
    for path, handler, summary, kind, errors, access in (
        ("/ping", ping, "Liveness", Alive, (), (OPEN,)),
        ("/health", pool_health, "All models; without a key, status and models_healthy alone", Health, (), (OPEN,)),
        ("/health/live", ping, "Liveness", Alive, (), (OPEN,)),
        ("/health/ready", pool_health, "Readiness, as /health", Health, (), (OPEN,)),
        ("/health/{model:.+}", model_health, "One model", ModelHealth, ("model_not_found",), SEEING),
    )
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    app[STARTED] = time.monotonic()
    mount(app, OPERATIONS)
