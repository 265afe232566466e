"""`/admin/workers/{id}/…` and `/admin/models/{name}/…`: engines come, go and are replaced. All answer at once.

What was asked for shows in `/admin/workers`; what an engine does not finish in its grace goes on elsewhere.
"""

from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

from gateway.access.audit import audit
from gateway.access.gate import CALLER
from gateway.bodies.body import answer, read
from gateway.context import POOL
from gateway.http.openapi import Operation, mount
from gateway.schema.admin import GraceRequest, ModelOrder, ScaleRequest, WorkerOrder
from gateway.schema.base import Request
from gateway.schema.errors import ApiError
from gateway.serving.caller import may_use

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

GRACE_S = 30.0
RESTART_GRACE_S = 3.0


async def drain(request: web.Request) -> web.Response:
    """Let a worker finish what it runs, then end its engine."""
    grace_s = await _grace(request, GRACE_S)
    return _end_worker(request, "drain", grace_s=grace_s, reason="drained")


async def restart(request: web.Request) -> web.Response:
    """Put a fresh engine in the place of a worker's."""
    grace_s = await _grace(request, RESTART_GRACE_S)
    return _end_worker(request, "restart", grace_s=grace_s, reason="restarted", again=True)


async def stop(request: web.Request) -> web.Response:
    """End a worker's engine now."""
    return _end_worker(request, "stop", grace_s=0.0, reason="stopped")


async def load(request: web.Request) -> web.Response:
    """Have one engine of a model, unless it has more."""
    model = _model(request)
    replicas = request.app[POOL].scaling.load_model(model, grace_s=GRACE_S)
    audit("model.load", by=request[CALLER].id, subject=model.name, replicas=replicas)
    return answer(ModelOrder(model=model.name, act="load", replicas=replicas))


async def unload(request: web.Request) -> web.Response:
    """Have no engine of a model; its memory goes back to the system."""
    grace_s = await _grace(request, GRACE_S)
    return _scaled(request, "unload", _model(request), 0, grace_s=grace_s)


async def forget(request: web.Request) -> web.Response:
    """Know no more of a model that is gone."""
    model = _model(request)
    request.app[POOL].forget_model(model)
    audit("model.forget", by=request[CALLER].id, subject=model.name)
    return answer(ModelOrder(model=model.name, act="forget", replicas=0))


async def scale(request: web.Request) -> web.Response:
    """Have so many engines of a model."""
    wanted = await read(request, ScaleRequest)
    grace_s = GRACE_S if wanted.grace is None else wanted.grace
    return _scaled(request, "scale", _model(request), wanted.replicas, grace_s=grace_s)


async def _grace(request: web.Request, usual_s: float) -> float:
    wanted = await read(request, GraceRequest) if request.can_read_body else GraceRequest()
    return usual_s if wanted.grace is None else wanted.grace


def _end_worker(request: web.Request, act: str, *, grace_s: float, reason: str, again: bool = False) -> web.Response:
    uid = request.match_info["id"]
    worker = request.app[POOL].find_worker(uid)
    if not may_use(request, worker.model):
        raise ApiError("not_found", f"There is no worker {uid[:64]!r}.", "worker")
    request.app[POOL].scaling.end_worker(worker, grace_s=grace_s, again=again, reason=reason)
    audit(f"worker.{act}", by=request[CALLER].id, subject=uid, model=worker.model.name)
    return answer(WorkerOrder(id=uid, model=worker.model.name, act=act))


def _scaled(request: web.Request, act: str, model: "ModelState", replicas: int, *, grace_s: float) -> web.Response:
    request.app[POOL].scaling.scale_model(model, replicas, grace_s=grace_s)
    audit(f"model.{act}", by=request[CALLER].id, subject=model.name, replicas=replicas)
    return answer(ModelOrder(model=model.name, act=act, replicas=replicas))


def _model(request: web.Request) -> "ModelState":
    """Find a model by served name or alias; a hub id keeps its slash."""
    name = request.match_info["name"]
    for model in request.app[POOL].models():
        if name in (model.name, *model.aliases) and may_use(request, model):
            return model
    raise ApiError("model_not_found", "There is no such model.", "name")


_READING = ("invalid_request", "unsupported_parameter", "body_too_large", "unsupported_media_type")


def _operation(path: str, handler: Any, summary: str, body: type[Request] | None, example: Any) -> Operation:
    of_model = "{name" in path
    return Operation(
        method=hdrs.METH_POST,
        path=path,
        handler=handler,
        summary=summary,
        tag="Admin",
        access=("admin",),
        body=body,
        example=example,
        answer=ModelOrder if of_model else WorkerOrder,
        errors=(*_READING, *(("model_not_found", "model_not_ready") if of_model else ("not_found",))),
    )


OPERATIONS = (
    _operation("/admin/workers/{id}/drain", drain, "Finish, then end an engine", GraceRequest, {"grace": 30}),
    _operation("/admin/workers/{id}/restart", restart, "Replace an engine", GraceRequest, {"grace": 3}),
    _operation("/admin/workers/{id}/stop", stop, "End an engine now", None, None),
    _operation("/admin/models/{name:.+}/load", load, "Start an engine of a model", None, None),
    _operation("/admin/models/{name:.+}/unload", unload, "End all engines of a model", GraceRequest, {"grace": 30}),
    _operation("/admin/models/{name:.+}/scale", scale, "Have so many engines", ScaleRequest, {"replicas": 2}),
    Operation(
        method=hdrs.METH_DELETE,
        path="/admin/models/{name:.+}",
        handler=forget,
        summary="Forget a model that is gone",
        tag="Admin",
        access=("admin",),
        answer=ModelOrder,
        errors=("model_not_found", "model_in_use"),
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
