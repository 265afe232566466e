"""`POST /v1/embeddings`. What the vector cache knows is answered here; the rest is one job, each input once."""

import asyncio
import time
from array import array
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from aiohttp import hdrs, web

from gateway.context import GENERATED, POOL, REQUEST_ID, VECTORS, Generated
from gateway.errors import ApiError
from gateway.openapi import Operation, mount
from gateway.routes.body import read
from gateway.routes.caller import model_of, reserve_inputs, tenant
from gateway.routes.generation import ERRORS
from gateway.schema.decode import read_option
from gateway.schema.embedding import (
    BACKENDS,
    DEVICES,
    OPTION_TYPES,
    OPTIONS,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    Key,
)
from gateway.vectors import Vector
from protocol.messages import Kind, Ready, Vectors

if TYPE_CHECKING:
    from gateway.dispatch.model import Model

SLICE = 128
"""Vectors that are written between two turns of the event loop."""
HEADS = tuple(b'{"object":"embedding","index":%d,"embedding":' % index for index in range(2048))
FLOAT_BYTES = 4


async def create(request: web.Request) -> web.Response:
    """One vector per input."""
    began = time.perf_counter()
    wanted = await read(request, EmbeddingRequest, beside=_options(request))
    model = model_of(request, wanted.model, Kind.EMBEDDING)
    generated = request[GENERATED] = Generated(request_type="embedding", model=model.name)
    keys = wanted.keys
    if model.ready is not None:
        wanted.check_model(model.ready)
        wanted.check_tokens(keys, model.ready)
    reserve_inputs(request, keys)
    found = _recall(request, wanted, model, keys)
    hits = len(keys) - found.count(None)
    result: Vectors | None = None
    if hits < len(keys):
        missing = [*dict.fromkeys(key for key, vector in zip(keys, found, strict=True) if vector is None)]
        result = await _compute(request, wanted, model, missing)
        fresh = await _keep(request, wanted, model, missing, result)
        found = [vector or fresh[key] for key, vector in zip(keys, found, strict=True)]
    vectors = [vector for vector in found if vector is not None]
    generated.tokens = tokens = sum(count for _, count in vectors)
    data = await _write(vectors, as_text=wanted.encoding_format == "base64")
    took_s = time.perf_counter() - began
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    if wanted.return_timing:
        usage = _timed(usage, model.ready, result, took_s=took_s, hits=hits)
    if result is None:
        request.app[POOL].answered(model, "embedding", took_s=took_s, prompt_tokens=tokens)
    tail = b'],"model":%s,"usage":%s}' % (orjson.dumps(model.name), msgspec.json.encode(usage))
    return web.Response(body=b"".join((b'{"object":"list","data":[', *data, tail)), content_type="application/json")


def _options(request: web.Request) -> dict[str, Any]:
    """What headers and query say; a header wins over the query. Raises `ApiError`."""
    found = {}
    for name, header in OPTIONS.items():
        text, where = request.headers.get(header), header
        if text is None and name in request.query:
            text, where = request.query[name], name
        if text is not None:
            found[name] = read_option(text, OPTION_TYPES[name], where)
    return found


def _recall(request: web.Request, wanted: EmbeddingRequest, model: "Model", keys: list[Key]) -> list[Vector | None]:
    """What the cache knows of each input."""
    cache = request.app[VECTORS]
    # Before a worker was ready, nothing is known that a cached vector could be checked against.
    if cache is None or model.ready is None:
        return [None] * len(keys)
    return cache.find(cache.space(model.name, model.ready.revision, wanted.options), keys)


async def _keep(
    request: web.Request, wanted: EmbeddingRequest, model: "Model", keys: list[Key], result: Vectors
) -> dict[Key, Vector]:
    """Cut a worker's answer into vectors, and remember them."""
    cache = request.app[VECTORS]
    fresh: dict[Key, Vector] = {}
    for start in range(0, len(keys), SLICE):
        _cut(result, keys, start, fresh)
        if cache is not None and model.ready is not None:
            # Looked up now: the worker may have become ready only since the request came.
            space = cache.space(model.name, model.ready.revision, wanted.options)
            for key in keys[start : start + SLICE]:
                cache.keep(space, key, fresh[key])
        await asyncio.sleep(0)
    return fresh


async def _compute(request: web.Request, wanted: EmbeddingRequest, model: "Model", keys: list[Key]) -> Vectors:
    job = wanted.job(keys, request_id=request[REQUEST_ID], tenant=tenant(request))
    async with request.app[POOL].run(model, job) as stream:
        result = await stream.result()
    if not isinstance(result, Vectors) or len(result.token_counts) != len(keys):
        raise ApiError("internal_error", detail="an embedding job was not answered by one vector per input")
    if len(result.data) != FLOAT_BYTES * result.dimensions * len(keys):
        raise ApiError("internal_error", detail="an embedding job was answered by vectors of another size than it says")
    return result


def _cut(result: Vectors, keys: list[Key], start: int, into: dict[Key, Vector]) -> None:
    """Cut a slice of the vectors out of a worker's answer."""
    size = FLOAT_BYTES * result.dimensions
    for at, key in enumerate(keys[start : start + SLICE], start):
        data = result.data[at * size : (at + 1) * size]
        into[key] = (b2a_base64(data, newline=False), result.token_counts[at])


async def _write(vectors: list[Vector], *, as_text: bool) -> list[bytes]:
    """The entries of `data` with the commas between them, as pieces."""
    pieces: list[bytes] = []
    if as_text:
        for head, (text, _) in zip(HEADS, vectors, strict=False):
            pieces += (head, b'"', text, b'"},')
    else:
        for start in range(0, len(vectors), SLICE):
            for head, (text, _) in zip(HEADS[start:], vectors[start : start + SLICE], strict=False):
                pieces += (head, _numbers(text), b"},")
            await asyncio.sleep(0)
    pieces[-1] = pieces[-1][:-1]
    return pieces


def _numbers(text: bytes) -> bytes:
    numbers = array("f", a2b_base64(text))
    return orjson.dumps(numbers.tolist())


def _timed(
    usage: EmbeddingUsage, ready: Ready | None, result: Vectors | None, *, took_s: float, hits: int
) -> EmbeddingUsage:
    backend, device = (ready.backend, ready.device) if ready else ("", "")
    return msgspec.structs.replace(
        usage,
        mlx_processing_time=round(result.compute_s, 6) if result else 0.0,
        total_processing_time=round(took_s, 6),
        backend_used=BACKENDS.get(backend, backend),
        device_used=DEVICES.get(device, device),
        batch_size_used=result.batch_size if result else 0,
        cache_hits=hits,
    )


OPERATIONS = (
    Operation(
        method=hdrs.METH_POST,
        path="/v1/embeddings",
        handler=create,
        summary="Texts to vectors",
        tag="Embeddings",
        access=("embed:text",),
        body=EmbeddingRequest,
        example={"input": ["The cat sat on the mat.", "Stocks fell on Monday."]},
        answer=EmbeddingList,
        errors=(*ERRORS, "output_not_finite"),
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
