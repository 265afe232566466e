"""Reading a JSON body and writing a JSON answer, with every refusal that HTTP itself asks for."""

import asyncio
import io
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.errors import ApiError
from gateway.schema.base import Answer, Request
from gateway.schema.decode import decode

R = TypeVar("R", bound=Request)
T = TypeVar("T")
BODY_S = 300.0
"""A body that has not come by then is waited for no longer."""


async def read(request: web.Request, kind: type[R], *, beside: Mapping[str, Any] | None = None) -> R:
    """The body as a checked `kind`, over fields given `beside` it.

    Raises `ApiError`, or aiohttp's own 413 for a body over the limit.
    """
    if request.content_type != "application/json":
        raise ApiError("unsupported_media_type", "The body must be sent with 'Content-Type: application/json'.")
    declared = request.content_length
    if declared is not None and declared > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=declared)
    return decode(await in_time(_whole(request)), kind, beside=beside)


async def in_time(body: Coroutine[Any, Any, T]) -> T:
    """What a client has to send, unless it takes `BODY_S`. Raises `ApiError`."""
    try:
        async with asyncio.timeout(BODY_S):
            return await body
    except TimeoutError:
        raise ApiError("request_timeout") from None


async def _whole(request: web.Request) -> bytes:
    """The body. `request.read()` would keep it for the request's whole life, and it may be 20 MB of images."""
    data = io.BytesIO()
    async for chunk in request.content.iter_any():
        if data.write(chunk) and data.tell() > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=data.tell())
    return data.getvalue()


def answer(body: Answer, *, status: int = 200) -> web.Response:
    """A JSON body."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
