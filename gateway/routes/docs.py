"""`/docs` (Swagger UI), `/redoc` and `/openapi.json`, all served from this package.

No page loads anything from elsewhere. The content security policy guarantees it: ReDoc's bundle would fetch a logo.
"""

import mimetypes
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType

import orjson
from aiohttp import hdrs, web

from gateway.access.keys.key import OPEN
from gateway.http.openapi import OPERATIONS as MOUNTED
from gateway.http.openapi import Operation, document, mount
from gateway.version import installed_version

DOCUMENT = "openapi.json"
FILES: web.AppKey[dict[str, bytes]] = web.AppKey("files", dict)
"""By name."""
PIECE_BYTES = 16 * 1024
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
    """Answer with the OpenAPI document of every route that was mounted."""
    return _send(request, DOCUMENT, {hdrs.CONTENT_TYPE: "application/json"})


async def write_document(app: web.Application) -> None:
    """Make the document once, when all routes are there."""
    app[FILES][DOCUMENT] = orjson.dumps(document(app[MOUNTED], title="MLX pool API", version=installed_version()))


async def swagger(request: web.Request) -> web.Response:
    """Send the page of Swagger UI."""
    return _send(request, "swagger.html", HEADERS)


async def redoc(request: web.Request) -> web.Response:
    """Send the page of ReDoc."""
    return _send(request, "redoc.html", HEADERS)


async def asset(request: web.Request) -> web.Response:
    """Send a script or style of these pages; names come from a closed list."""
    name = request.match_info["name"]
    if name not in ASSETS:
        raise web.HTTPNotFound
    return _send(request, name, {"Cache-Control": "max-age=86400", "X-Content-Type-Options": "nosniff"})


def _send(request: web.Request, name: str, headers: Mapping[str, str]) -> web.Response:
    """Send a file, piece by piece as its reader takes it: strangers may ask for it, and not read it.

    From memory: a file that is open while nobody reads takes a descriptor.
    """
    data = request.app[FILES][name]

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]
            await request.writer.drain()

    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
    given = {hdrs.CONTENT_TYPE: kind, hdrs.CONTENT_LENGTH: str(len(data)), **headers}
    return web.Response(body=pieces(), headers=given)


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
    app[FILES] = {name: (PAGES / name).read_bytes() for name in (*ASSETS, "swagger.html", "redoc.html")}
    mount(app, OPERATIONS)
    app.on_startup.append(write_document)
