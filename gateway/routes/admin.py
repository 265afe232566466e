"""`/admin`: what an operator sees and does, besides keys."""

import msgspec
from aiohttp import hdrs, web

from gateway.access.audit import audit
from gateway.access.gate import CALLER, GATE
from gateway.bodies.body import answer
from gateway.context import EMBEDDING_CACHE, EVENTS, KEY_SYNC, LOADED, POOL
from gateway.http.openapi import Operation, mount
from gateway.memory_account import MEMORY
from gateway.schema.admin import AdminStats, Cleared, Configuration, EventList, WorkerInfo, WorkerList
from gateway.schema.errors import invalid
from gateway.serving.caller import may_use
from gateway.telemetry.events import KEPT


async def stats(request: web.Request) -> web.Response:
    """Answer with cache hit rates, rate limiting, a summary of the configuration, performance."""
    app = request.app
    now, vectors, gate, key_sync = app[POOL].take_snapshot(), app[EMBEDDING_CACHE], app[GATE], app[KEY_SYNC]
    beats = [worker.beat for worker in now.workers if worker.beat is not None]
    lookups, hits = sum(beat.prefix_lookups for beat in beats), sum(beat.prefix_hits for beat in beats)
    disk_hits = sum(beat.prefix_disk_hits for beat in beats)
    config = app[LOADED].config
    body = AdminStats(
        cache={
            "enabled": vectors is not None,
            "entries": len(vectors) if vectors is not None else 0,
            "bytes": vectors.used_bytes if vectors is not None else 0,
            "hits": vectors.counts.hits if vectors is not None else 0,
            "misses": vectors.counts.misses if vectors is not None else 0,
            "hit_rate": _rate(vectors.counts.hits, vectors.counts.misses) if vectors is not None else 0.0,
        },
        prefix_cache={
            "lookups": lookups,
            "hits": hits,
            "disk_hits": disk_hits,
            "hit_rate": _rate(hits + disk_hits, lookups - hits - disk_hits),
            "bytes": sum(beat.prefix_bytes for beat in beats),
            # Workers may share a folder: each tells the whole of it.
            "disk_bytes": max((beat.prefix_disk_bytes for beat in beats), default=0),
        },
        rate_limiting={
            "enabled": config.rate_limit_enabled,
            "tracked_keys": len(gate.usage),
            "refused": gate.refused["rate_limit_exceeded"],
        },
        keys={
            "required": gate.auth,
            "count": len(gate.keyring),
            "loaded": gate.keyring.loaded,
            "trouble": key_sync.trouble is not None,
            "refused": dict(gate.refused),
        },
        memory=app[MEMORY].report(),
        configuration={
            "env": config.env,
            "host": config.host,
            "port": config.port,
            "require_https": config.require_https,
            "cache_enabled": config.cache_enabled,
            "log_level": config.log_level,
        },
        performance={
            "total_requests": now.total_requests,
            "total_tokens": now.total_tokens,
            "total_time_s": round(now.total_time_s, 6),
            "errors": now.error_count,
            "cancelled": now.cancelled,
            **msgspec.structs.asdict(now.performance),
        },
    )
    return answer(body)


async def configuration(request: web.Request) -> web.Response:
    """Answer with every setting, secrets masked."""
    loaded = request.app[LOADED]
    return answer(
        Configuration(
            file=loaded.file.name if loaded.file is not None else None,
            settings=loaded.masked_settings(),
            origins=loaded.origins,
        )
    )


async def workers(request: web.Request) -> web.Response:
    """Answer with all engine processes."""
    now = request.app[POOL].take_snapshot()
    own = {model.name for model in request.app[POOL].models() if may_use(request, model)}
    watched = {report.engine: report for report in now.supervisors}
    found = []
    for worker in filter(lambda worker: worker.model in own, now.workers):
        beat, report = worker.beat, watched.get(worker.uid)
        found.append(
            WorkerInfo(
                id=worker.uid,
                model=worker.model,
                state=worker.state,
                pid=worker.pid,
                rows=worker.rows,
                slots=worker.slots,
                silent_s=round(worker.silent_s, 3),
                moved_s=round(worker.moved_s, 3),
                running=beat.running if beat else 0,
                waiting=beat.waiting if beat else 0,
                active_bytes=beat.active_bytes if beat else 0,
                resident_bytes=beat.resident_bytes if beat else 0,
                supervisor_pid=report.pid if report else None,
                restarts=report.restarts if report else None,
                last_end=(report.ended or None) if report else None,
                revision=worker.revision,
                adapters=worker.adapters,
                unserved_adapters=worker.unserved_adapters,
            )
        )
    return answer(WorkerList(data=found))


async def clear_cache(request: web.Request) -> web.Response:
    """Forget all cached vectors, and what workers keep of earlier prompts and images, in memory and on disk."""
    vectors = request.app[EMBEDDING_CACHE]
    workers = request.app[POOL].scaling.clear_caches()
    cleared = Cleared(
        entries=len(vectors) if vectors is not None else 0,
        bytes=vectors.used_bytes if vectors is not None else 0,
        workers=len(workers),
        prefix_bytes=sum(worker.beat.prefix_bytes for worker in workers if worker.beat is not None),
    )
    if vectors is not None:
        vectors.clear()
    audit("cache.clear", by=request[CALLER].id, entries=cleared.entries, workers=cleared.workers)
    return answer(cleared)


async def events(request: web.Request) -> web.Response:
    """Answer with what happened, the newest first; `limit` says how much of it (100)."""
    text = request.query.get("limit", "100")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= KEPT):
        raise invalid(f"'limit' must be a number from 1 to {KEPT}.", "limit")
    return answer(EventList(data=request.app[EVENTS].list_latest(int(text))))


def _rate(hits: int, misses: int) -> float:
    return round(hits / (hits + misses), 4) if hits + misses else 0.0


OPERATIONS = tuple(
    Operation(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        tag="Admin",
        answer=kind,
        errors=errors,
        access=("admin",),
        pool_wide=handler is not workers,
    )
    for method, path, handler, summary, kind, errors in (
        (hdrs.METH_GET, "/admin/stats", stats, "Caches, limits, speed", AdminStats, ()),
        (hdrs.METH_GET, "/admin/config", configuration, "The configuration", Configuration, ()),
        (hdrs.METH_GET, "/admin/workers", workers, "Engine processes", WorkerList, ()),
        (hdrs.METH_POST, "/admin/cache/clear", clear_cache, "Forget cached vectors and prompts", Cleared, ()),
        (hdrs.METH_GET, "/admin/events", events, "What happened", EventList, ("invalid_request",)),
    )
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
