"""Routes for tests that change a running pool's workers: a plugin of the gateway (`--plugins stress.fleet_routes`)."""

import asyncio
import gc
import sys

from aiohttp import web

from gateway.context import EMBEDDING_CACHE, EVENTS, POOL
from gateway.http.openapi import Operation, mount


async def scale(request: web.Request) -> web.Response:
    """Serve `POST /test/scale/{replicas}` for the first model."""
    pool = request.app[POOL]
    pool.scaling.scale_model(pool.models()[0], int(request.match_info["replicas"]), grace_s=2.0)
    return web.Response()


async def roll(request: web.Request) -> web.Response:
    """Serve `POST /test/roll` for the first model; answers when all are replaced."""
    pool = request.app[POOL]
    await pool.scaling.replace_engines(pool.models()[0], grace_s=0.5)
    return web.Response()


async def memory(request: web.Request) -> web.Response:
    """Serve `GET /test/memory`: the loop's tasks, objects after a collection, how full bounded memories are."""
    gc.collect()
    vectors = request.app[EMBEDDING_CACHE]
    return web.json_response(
        {
            "tasks": len(asyncio.all_tasks()),
            "objects": sys.getallocatedblocks(),
            "prompts": sum(len(model.affinity) for model in request.app[POOL].models()),
            "vector_bytes": vectors.used_bytes if vectors else 0,
            "events": len(request.app[EVENTS].list_latest(sys.maxsize)),
        }
    )


def setup(app: web.Application) -> None:
    """Add them."""
    # The only one that is asked for where keys are.
    operation = Operation(
        method="GET", path="/test/memory", handler=memory, summary="", tag="", access=("admin",), documented=False
    )
    mount(app, (operation,))
    app.router.add_post("/test/scale/{replicas}", scale)
    app.router.add_post("/test/roll", roll)
