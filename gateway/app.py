"""The only wiring of the gateway: what it holds, what happens around a request, which routes there are."""

from collections.abc import AsyncIterator

from aiohttp import web

from gateway.config import BODY_BYTES, GatewayConfig
from gateway.context import HTTP, POOL, HttpSettings
from gateway.dispatch.pool import Pool
from gateway.middleware import MIDDLEWARES
from gateway.routes import chat, completions, docs, health, metrics, models, queue, tokenize


def make_app(config: GatewayConfig) -> web.Application:
    """The application, ready to be run. The pool's socket opens when it starts."""
    app = web.Application(middlewares=MIDDLEWARES, client_max_size=BODY_BYTES)
    app[HTTP] = HttpSettings(keep_alive_s=config.keep_alive_s, write_timeout_s=config.write_timeout_s, tier=config.tier)
    app[POOL] = Pool(config.run_dir, aliases=config.aliases)
    app.cleanup_ctx.append(_pool)
    app.on_shutdown.append(lambda app: app[POOL].drain(config.drain_s))
    for family in (chat, completions, models, tokenize, health, queue, metrics, docs):
        family.setup(app)
    return app


async def _pool(app: web.Application) -> AsyncIterator[None]:
    await app[POOL].start()
    yield
    await app[POOL].close()
