"""Routes for tests that change a running pool's workers: a plugin of the gateway (`--plugins fleet_routes`)."""

import asyncio

from aiohttp import web

from gateway.context import POOL


async def scale(request: web.Request) -> web.Response:
    """`POST /test/scale/{replicas}`: the first model."""
    pool = request.app[POOL]
    pool.scale(pool.models()[0], int(request.match_info["replicas"]), grace_s=2.0)
    return web.Response()


async def roll(request: web.Request) -> web.Response:
    """`POST /test/roll`: the first model; answers when all are replaced."""
    pool = request.app[POOL]
    await pool.roll(pool.models()[0], grace_s=0.5)
    return web.Response()


async def tasks(_request: web.Request) -> web.Response:
    """`GET /test/tasks`: how many there are in the gateway's loop."""
    return web.Response(text=str(len(asyncio.all_tasks())))


def setup(app: web.Application) -> None:
    """Add them."""
    app.router.add_get("/test/tasks", tasks)
    app.router.add_post("/test/scale/{replicas}", scale)
    app.router.add_post("/test/roll", roll)
