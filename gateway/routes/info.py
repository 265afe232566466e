"""`GET /info`: one model, what it costs and what it does."""

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.access.gate import CALLER
from gateway.bodies.body import answer
from gateway.context import EMBEDDING_CACHE, POOL
from gateway.dispatch.stats import Throughput
from gateway.embedding_cache import EmbeddingCache
from gateway.http.openapi import Operation, mount
from gateway.job_failure import JobFailed
from gateway.schema.errors import ApiError
from gateway.schema.info import CacheUse, EmbeddingRates, MemoryUse, ModelInfo, VersionAnswer
from gateway.serving.caller import visible_model
from gateway.version import installed_version
from protocol.messages import Kind

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState


async def info(request: web.Request) -> web.Response:
    """Tell of the model that `?model=` names; else the default embedding model, else any default."""
    model = _model(request, request.query.get("model"))
    ready = model.ready
    now = request.app[POOL].take_snapshot()
    rates = now.embedded.get(model.name) or Throughput().read_rates(0)
    report = ModelInfo(
        model=model.name,
        source=model.source,
        kind=model.kind.value,
        state=model.state,
        replicas=model.replicas,
        description=ready.description if ready else "",
        capabilities=ready.capabilities if ready else [],
        embedding_dim=ready.dimensions or None if ready else None,
        context_length=ready.context_length if ready else None,
        quantization=ready.quantization if ready else None,
        backend=ready.backend if ready else None,
        device=ready.device if ready else None,
        load_time=round(ready.load_s, 3) if ready else None,
        warmup_time=round(ready.warmup_s, 3) if ready and ready.warmup_enabled else None,
        memory=_memory(model),
        cache=_cache(request.app[EMBEDDING_CACHE], counted=request[CALLER].has_permission("admin")),
        throughput=EmbeddingRates(
            inputs=rates.inputs,
            tokens=rates.tokens,
            inputs_per_second=round(rates.inputs_per_s, 3),
            tokens_per_second=round(rates.tokens_per_s, 3),
        ),
    )
    return answer(report)


async def version(_request: web.Request) -> web.Response:
    """Tell which version of the pool runs, as vLLM does."""
    return answer(VersionAnswer(version=installed_version()))


def _model(request: web.Request, name: str | None) -> "ModelState":
    if name is not None:
        return visible_model(request, name, None)
    try:
        return visible_model(request, None, Kind.EMBEDDING)
    except (JobFailed, ApiError):
        return visible_model(request, None, None)


def _memory(model: "ModelState") -> MemoryUse:
    workers = [*model.workers.values()]
    beats = [worker.beat for worker in workers if worker.beat is not None]
    return MemoryUse(
        weights=sum(worker.ready.weights_bytes for worker in workers if worker.ready is not None),
        active=sum(beat.active_bytes for beat in beats),
        cache=sum(beat.cache_bytes for beat in beats),
        peak=sum(beat.peak_bytes for beat in beats),
        resident=sum(beat.resident_bytes for beat in beats),
    )


def _cache(vectors: EmbeddingCache | None, *, counted: bool) -> CacheUse:
    if vectors is None:
        return CacheUse(enabled=False)
    if not counted:
        return CacheUse(enabled=True, capacity_bytes=vectors.capacity_bytes, ttl_s=vectors.ttl_s)
    counts = vectors.counts
    lookups = counts.hits + counts.misses
    return CacheUse(
        enabled=True,
        hits=counts.hits,
        misses=counts.misses,
        hit_rate=round(counts.hits / lookups, 4) if lookups else None,
        entries=len(vectors),
        used_bytes=vectors.used_bytes,
        capacity_bytes=vectors.capacity_bytes,
        ttl_s=vectors.ttl_s,
        evicted=counts.evicted,
        expired=counts.expired,
    )


OPERATIONS = (
    Operation(
        method=hdrs.METH_GET,
        path="/info",
        handler=info,
        summary="One model: dimensions, quantisation, memory, cache, throughput",
        tag="Embeddings",
        access=("models",),
        answer=ModelInfo,
        errors=("invalid_request", "model_not_found", "model_not_ready"),
    ),
    Operation(
        method=hdrs.METH_GET,
        path="/version",
        handler=version,
        summary="The version of the pool",
        tag="Models",
        access=("models",),
        answer=VersionAnswer,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
