"""The only wiring of the gateway: what it holds, what happens around a request, which routes there are."""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.access_setup import guard_application
from gateway.bodies.parsing import PARSING, ParsingTurns
from gateway.config import BODY_BYTES, GatewayConfig, LoadedConfig, honcho_process
from gateway.context import (
    EMBEDDING_CACHE,
    FETCHER,
    HTTP,
    IMAGE_RESOLVER,
    LISTENER,
    POOL,
    RESPONSE_COUNTS,
    HttpSettings,
)
from gateway.dispatch.pool import Pool
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.embedding_cache import EmbeddingCache
from gateway.http.listener import LOOPBACK, Listener
from gateway.http.middleware import MIDDLEWARES
from gateway.media.fetcher import Fetcher
from gateway.media.image_resolver import ImageResolver
from gateway.media.remote_urls import UrlRules
from gateway.memory_account import MEMORY, MemoryAccount, release_when_idle
from gateway.routes import (
    admin,
    admin_keys,
    admin_workers,
    chat,
    completions,
    docs,
    embed_native,
    embeddings,
    health,
    info,
    metrics,
    models,
    queue,
    similarity,
    tokenize,
)
from gateway.telemetry.lag import LAG, LoopLag, measure_lag
from protocol.parent_watch import ParentWatch
from protocol.settings import ConfigError

if TYPE_CHECKING:
    from gateway.telemetry.tracing import Tracing

log = logging.getLogger("gateway")

PARENT_CHECK_S = 1.0


def make_app(config: GatewayConfig, loaded: LoadedConfig | None = None) -> web.Application:
    """Build the application. The pool's socket opens when it starts. `loaded`: where `config` is from."""
    tracing = _tracing(config)
    middlewares = MIDDLEWARES if tracing is None else (tracing.make_middleware(), *MIDDLEWARES)
    app = web.Application(middlewares=middlewares, client_max_size=BODY_BYTES)
    app[RESPONSE_COUNTS] = Counter()
    app[HTTP] = HttpSettings(
        sse_ping_interval_s=config.sse_ping_interval_s, write_timeout_s=config.write_timeout_s, tier=config.tier
    )
    limits = PoolTimeouts(
        resume_s=config.resume_timeout_s, stall_s=config.stall_timeout_s, load_s=config.load_timeout_s
    )
    app[POOL] = Pool(config.run_dir, aliases=config.aliases, limits=limits, told=tracing.job_ended if tracing else None)
    app[LISTENER] = Listener(proxies=(*LOOPBACK, *config.trusted_proxies), unread_s=2 * config.write_timeout_s)
    app[LAG] = LoopLag()
    app.cleanup_ctx.append(measure_lag)
    app[MEMORY] = MemoryAccount(config.body_memory_bytes)
    app[PARSING] = ParsingTurns()
    app[FETCHER] = fetcher = _fetcher(config)
    app[IMAGE_RESOLVER] = ImageResolver(remote=fetcher)
    app[EMBEDDING_CACHE] = (
        EmbeddingCache(
            capacity_bytes=config.cache_bytes, capacity_entries=config.cache_entries, ttl_s=config.cache_ttl_s
        )
        if config.cache_enabled
        else None
    )
    if tracing is not None:
        app.on_cleanup.append(lambda _app: asyncio.to_thread(tracing.close))
    guard_application(app, loaded or LoadedConfig(config=config, file=None, origins={}))
    app.cleanup_ctx.append(_pool)
    app.cleanup_ctx.append(_fetching)
    app.cleanup_ctx.append(release_when_idle)
    if honcho_process():
        app.cleanup_ctx.append(_follow_honcho)
    app.on_shutdown.append(lambda app: app[POOL].drain(config.drain_s))
    families = (chat, completions, embeddings, embed_native, similarity, models, info, tokenize, health)
    for family in (*families, queue, metrics, admin, admin_keys, admin_workers, docs):
        family.setup(app)
    for name in config.plugins:
        _plug_in(app, name)
    return app


def _tracing(config: GatewayConfig) -> "Tracing | None":
    """Set tracing up, where it is on. Raises `ConfigError` where what it needs is not installed."""
    if not config.tracing:
        return None
    try:
        from gateway.telemetry.tracing import open_tracing
    except ImportError as error:
        raise ConfigError(f"--tracing: {error}; 'scripts/install otel' in the pool's folder adds it") from error
    return open_tracing()


def _plug_in(app: web.Application, name: str) -> None:
    """Let a module of the operator's own add its routes. Raises `ConfigError`; what the module raises itself passes."""
    try:
        setup = importlib.import_module(name).setup
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plugins: {error}") from error
    setup(app)


async def _pool(app: web.Application) -> AsyncIterator[None]:
    await app[POOL].start()
    yield
    await app[POOL].close()


def _fetcher(config: GatewayConfig) -> Fetcher | None:
    if config.remote_images == "off":
        return None
    domains = None if config.remote_images == "on" else config.remote_images
    return Fetcher(UrlRules(domains=domains, ports=config.remote_image_ports))


async def _fetching(app: web.Application) -> AsyncIterator[None]:
    fetcher = app[FETCHER]
    if fetcher is None:
        yield
        return
    await fetcher.open()
    yield
    await fetcher.close()


async def _follow_honcho(_app: web.Application) -> AsyncIterator[None]:
    """Leave when honcho has ended: one that was killed tells nobody, and its next run needs our port."""
    parent = ParentWatch()

    async def watch() -> None:
        while parent.alive():  # noqa: ASYNC110 - a process that ends sets no event
            await asyncio.sleep(PARENT_CHECK_S)
        log.warning("honcho ended: the gateway ends, too")
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = asyncio.create_task(watch(), name="parent")
    yield
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher
