"""`/docs` (Swagger UI), `/redoc` and `/openapi.json`, all served from this package.

No page loads anything from elsewhere. The content security policy guarantees it: ReDoc's bundle would fetch a logo.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import orjson
from aiohttp import hdrs, web

from gateway.access.record import OPEN
from gateway.openapi import OPERATIONS as MOUNTED
from gateway.openapi import Operation, document, mount

DOCUMENT: web.AppKey[bytes] = web.AppKey("document", bytes)
PAGES = Path(__file__).parent.parent / "static" / "docs"
ASSETS = frozenset(
    {
        "favicon-32x32.png",
        "pages.css",
        "redoc-page.js",
        "redoc.standalone.js",
        "swagger-page.js",
        "swagger-ui-bundle.js",
        "swagger-ui.css",
    }
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = MappingProxyType(
    {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
)


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI document of every route that was mounted."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


async def write_document(app: web.Application) -> None:
    """Make the document once, when all routes are there."""
    app[DOCUMENT] = orjson.dumps(document(app[MOUNTED], title="MLX pool", version=_version()))


async def swagger(_request: web.Request) -> web.FileResponse:
    """Swagger UI."""
    return web.FileResponse(PAGES / "swagger.html", headers=HEADERS)


async def redoc(_request: web.Request) -> web.FileResponse:
    """ReDoc."""
    return web.FileResponse(PAGES / "redoc.html", headers=HEADERS)


async def asset(request: web.Request) -> web.FileResponse:
    """A script or style of these pages; names come from a closed list."""
    name = request.match_info["name"]
    if name not in ASSETS:
        raise web.HTTPNotFound
    return web.FileResponse(
        PAGES / name, headers={"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"}
    )


def _version() -> str:
    try:
        return version("mlx-pool")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


OPERATIONS = tuple(
    Operation(method=hdrs.METH_GET, path=path, handler=handler, summary="", tag="", documented=False, access=(OPEN,))
    for path, handler in (
        ("/openapi.json", openapi),
        ("/docs", swagger),
        ("/redoc", redoc),
        ("/docs/assets/{name}", asset),
    )
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
    app.on_startup.append(write_document)
