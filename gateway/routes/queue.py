"""`GET /v1/queue/stats`."""

from collections.abc import Sequence

from aiohttp import hdrs, web

from gateway.access.gate import CALLER
from gateway.bodies.body import answer
from gateway.context import POOL
from gateway.dispatch.stats import ModelSnapshot, Snapshot
from gateway.http.openapi import Operation, mount
from gateway.schema.queue import Counts, QueueReport, QueueState, QueueStats, Speeds
from gateway.serving.caller import may_use
from protocol.messages import Kind


async def stats(request: web.Request) -> web.Response:
    """Answer with what waits, what runs, what was done: by the models that the caller may use."""
    now = _own(request)
    by_kind = {kind: [model for model in now.models if model.kind is kind] for kind in Kind}
    total = _state(now.models)
    report = QueueReport(
        status="ok",
        queue_stats=QueueStats(
            running=total.running,
            queue_size=total.queue_size,
            max_queue_size=total.max_queue_size,
            active_requests=total.active_requests,
            max_concurrency=total.max_concurrency,
            chat_queue=_state(by_kind[Kind.CHAT]) if by_kind[Kind.CHAT] else None,
            vision_queue=_state(by_kind[Kind.VISION]) if by_kind[Kind.VISION] else None,
            embedding_queue=_state(by_kind[Kind.EMBEDDING]) if by_kind[Kind.EMBEDDING] else None,
        ),
        metrics=Counts(
            total_requests=now.total_requests,
            total_tokens=now.total_tokens,
            total_time=round(now.total_time_s, 6),
            request_types=now.request_types,
            error_count=now.error_count,
            performance=Speeds(
                avg_tps=round(now.performance.avg_tps, 2),
                max_tps=round(now.performance.max_tps, 2),
                min_tps=round(now.performance.min_tps, 2),
                recent_requests=now.performance.recent_requests,
            ),
        ),
    )
    return answer(report)


def _own(request: web.Request) -> Snapshot:
    pool = request.app[POOL]
    if not request[CALLER].models:
        return pool.take_snapshot()
    own = [variant for model in pool.models() for variant in model.variants if may_use(request, variant)]
    # A model's adapters wait in its queue.
    return pool.take_snapshot().of({model.name for model in own}, {(model.base or model).name for model in own})


def _state(models: Sequence[ModelSnapshot]) -> QueueState:
    return QueueState(
        running=any(model.running for model in models),
        queue_size=sum(model.queue_size for model in models),
        max_queue_size=sum(model.max_queue_size for model in models),
        active_requests=sum(model.active_requests for model in models),
        max_concurrency=sum(model.max_concurrency for model in models),
    )


OPERATIONS = (
    Operation(
        method=hdrs.METH_GET,
        path="/v1/queue/stats",
        handler=stats,
        summary="Queues and throughput",
        tag="Operation",
        access=("models",),
        answer=QueueReport,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
