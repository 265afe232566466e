"""`POST /embed/text`: vectors as plain lists."""

import asyncio
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from gateway.openapi import Operation, mount
from gateway.routes.body import read
from gateway.routes.caller import model_of
from gateway.routes.embedder import SLICE, Embedded, embed, numbers, options_of
from gateway.routes.generation import ERRORS
from gateway.schema.embed import EmbedAnswer, EmbedTextRequest
from protocol.messages import Kind

if TYPE_CHECKING:
    from gateway.dispatch.model import Model


async def text(request: web.Request) -> web.Response:
    """One vector per text."""
    wanted = await read(request, EmbedTextRequest, beside=options_of(request, EmbedTextRequest))
    model = model_of(request, wanted.model, Kind.EMBEDDING)
    return await _answer(model, await embed(request, model, wanted, wanted.inputs))


async def _answer(model: "Model", found: Embedded) -> web.Response:
    pieces: list[bytes] = []
    for start in range(0, len(found.vectors), SLICE):
        for vector in found.vectors[start : start + SLICE]:
            pieces += (numbers(vector), b",")
        await asyncio.sleep(0)
    head = EmbedAnswer(
        embeddings=[],
        shape=[len(found.vectors), pieces[0].count(b",") + 1],
        model=model.name,
        processing_time=round(found.took_s, 6),
        cached=found.hits == len(found.vectors),
    )
    opening, _, rest = msgspec.json.encode(head).partition(b"[]")
    body = b"".join((opening, b"[", *pieces[:-1], b"]", rest))
    return web.Response(body=body, content_type="application/json")


OPERATIONS = (
    Operation(
        method=hdrs.METH_POST,
        path="/embed/text",
        handler=text,
        summary="Texts to vectors",
        tag="Embeddings",
        access=("embed:text",),
        body=EmbedTextRequest,
        example={"texts": ["Sample text", "Another text"], "normalize": True},
        answer=EmbedAnswer,
        errors=(*ERRORS, "output_not_finite"),
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
