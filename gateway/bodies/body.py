"""Reading a JSON body and writing a JSON answer, with every refusal that HTTP itself asks for."""

import asyncio
import io
import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from gateway.access.gate import CALLER
from gateway.answer_notes import note_headers
from gateway.bodies.pace import Pace
from gateway.bodies.parsing import PARSING
from gateway.context import HTTP, IGNORED, REQUEST_ID, UNENFORCED
from gateway.memory_account import SHARE
from gateway.schema.base import Answer, Request
from gateway.schema.decode import convert, decode, parse
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import ARGUMENTS
from gateway.schema.structure import SLICE_BYTES, Bounds, Structure, text_bytes

R = TypeVar("R", bound=Request)

CURL_TYPE = "application/x-www-form-urlencoded"
"""What `curl -d` says of any body. An object in one is JSON: no web page's form can begin with its brace."""
SMALL_BYTES = 32 * 1024
"""A body that is parsed at once, whatever it holds: two milliseconds at most."""
SMALL_FACTOR = 8
"""So much more memory than its text a small body takes once it is parsed."""
WHOLE_BYTES = 256 * 1024
"""An answer that is larger goes out while it is made, as fast as it is read."""
TEXT_WORK = 1024
"""Counting a text costs as much as so many of its characters, however short it is."""

logger = logging.getLogger(__name__)


async def read(request: web.Request, kind: type[R], *, beside: Mapping[str, Any] | None = None) -> R:
    """Read the body as a checked `kind`, over fields given `beside` it.

    The request's share of memory holds what that takes, until the request is over or settles for less.
    Raises `ApiError`, or aiohttp's own 413 for a body over the limit.
    """
    if request.content_type not in ("application/json", CURL_TYPE):
        raise _not_json()
    declared = request.content_length
    if declared is not None and declared > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=declared)
    if not request.content.is_eof():
        body = await _rest(request)
    elif request.content.total_bytes > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=request.content.total_bytes)
    else:
        body = request.content.read_nowait()
        request[SHARE].hold_bytes(len(body))
    if request.content_type == CURL_TYPE and not body[:64].lstrip().startswith(b"{"):
        raise _not_json()
    if len(body) <= SMALL_BYTES:
        request[SHARE].hold_bytes(len(body) * SMALL_FACTOR)
        wanted = decode(body, kind, beside=beside, ignored=request[IGNORED])
        request[UNENFORCED] += wanted.list_unenforced()
        return wanted
    bodies = [body]
    del body
    async with request.app[PARSING].wait_turn(request[CALLER].tenant):
        return await _decode_slowly(request, bodies, kind, beside)


def _not_json() -> ApiError:
    return ApiError("unsupported_media_type", "The body must be sent with 'Content-Type: application/json'.")


async def _rest(request: web.Request) -> bytes:
    """Read the body. `request.read()` would keep it for the request's whole life, and it may be 20 MB of images."""
    data, share, content = io.BytesIO(), request[SHARE], request.content
    pace = Pace(content)
    while chunk := await pace.read_in_time(content.readany()):
        if data.tell() + len(chunk) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=data.tell() + len(chunk))
        share.hold_bytes(len(chunk))
        data.write(chunk)
    return data.getvalue()


async def _decode_slowly(
    request: web.Request, bodies: list[bytes], kind: type[R], beside: Mapping[str, Any] | None
) -> R:
    """Decode a large body: its structure is counted before it is parsed, and others run between the steps.

    `bodies` holds the body alone, and is emptied: once it is parsed, nobody needs its text.
    """
    share, size = request[SHARE], len(bodies[0])
    found = Structure()
    await _count(found, bodies[0], kind.bounds)
    if excess := found.find_excess(kind.bounds):
        raise invalid(f"The body holds {excess}.", None)
    share.hold_bytes(text_bytes(bodies[0]) + found.memory_bytes)
    raw = parse(bodies.pop())
    share.release_bytes(size)
    await asyncio.sleep(0)
    wanted = convert(raw, kind, beside=beside, ignored=request[IGNORED])
    del raw
    await asyncio.sleep(0)
    await _count_inner(wanted)
    wanted.check_values()
    request[UNENFORCED] += wanted.list_unenforced()
    await asyncio.sleep(0)
    return wanted


async def _count(found: Structure, text: bytes, bounds: Bounds) -> None:
    """Count a text into `found`, in slices. Stops beyond the bounds."""
    view = memoryview(text)
    quick = Structure()
    for start in range(0, len(text), SLICE_BYTES):
        quick.count_upper_bound(bytes(view[start : start + SLICE_BYTES]))
        await asyncio.sleep(0)
    if not quick.find_excess(bounds):
        found.add_counts(quick)
        return
    for start in range(0, len(text), SLICE_BYTES):
        found.count_slice(bytes(view[start : start + SLICE_BYTES]))
        if found.find_excess(bounds):
            return
        await asyncio.sleep(0)


async def _count_inner(wanted: Request) -> None:
    """Refuse texts within a request that would be parsed in turn and hold too much together. Raises `ApiError`."""
    found, work = Structure(), 0
    for where, text in wanted.inner_json():
        inner = Structure()
        for start in range(0, len(text), SLICE_BYTES):
            piece = text[start : start + SLICE_BYTES]
            inner.count_slice(piece.encode())
            work += len(piece) + TEXT_WORK
            if work > SLICE_BYTES:
                work = 0
                await asyncio.sleep(0)
        found.add_counts(inner)
        if excess := found.find_excess(ARGUMENTS):
            raise invalid(f"The arguments of all calls together hold {excess}.", where)


async def answer_in_pieces(request: web.Request, pieces: Iterator[bytes]) -> web.StreamResponse:
    """Send a JSON body in pieces that each take a millisecond to make. A large one is made as its reader takes it."""
    begun, size = [], 0
    for piece in pieces:
        begun.append(piece)
        size += len(piece)
        await asyncio.sleep(0)
        if size > WHOLE_BYTES:
            return await _send(request, chain(begun, pieces))
    return web.Response(body=b"".join(begun), content_type="application/json")


async def _send(request: web.Request, pieces: Iterator[bytes]) -> web.StreamResponse:
    """Send pieces. Raises `ConnectionError` where the client is gone, or takes too long to read a piece."""
    headers = {"Content-Type": "application/json", "X-Request-ID": request[REQUEST_ID], **note_headers(request)}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        for piece in pieces:
            async with asyncio.timeout(request.app[HTTP].write_timeout_s):
                await response.write(piece)
            await asyncio.sleep(0)
    except TimeoutError:
        logger.warning("Client stopped reading its answer: dropped")
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client reads too slowly") from None
    await response.write_eof()
    return response


def answer(body: Answer, *, status: int = 200) -> web.Response:
    """Answer with a JSON body."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
