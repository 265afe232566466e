"""`POST /v1/embeddings`: OpenAI's shape around `embedder`."""

import asyncio
import time
from collections.abc import Iterator

import msgspec
import orjson
from aiohttp import hdrs, web

from gateway.bodies.body import answer_in_pieces, read
from gateway.embedding_cache import Vector
from gateway.http.openapi import Operation, mount
from gateway.schema.embedding import EmbeddingList, EmbeddingRequest, EmbeddingUsage
from gateway.schema.parts.embed_options import BACKENDS, DEVICES
from gateway.serving.caller import model_of
from gateway.serving.embedding_service import SLICE, Embedded, embed, options_of, rows_of_slice, vector_json
from gateway.serving.generation import ERRORS
from protocol.messages import Kind, Ready

HEADS = tuple(b'{"object":"embedding","index":%d,"embedding":' % index for index in range(2048))


async def create(request: web.Request) -> web.StreamResponse:
    """Answer with one vector per input."""
    began = time.perf_counter()
    wanted = await read(request, EmbeddingRequest, beside=options_of(request, EmbeddingRequest))
    model = model_of(request, wanted.model, Kind.EMBEDDING)
    inputs = wanted.inputs
    await asyncio.sleep(0)
    if model.ready is not None:
        wanted.check_tokens(inputs, model.ready)
    found = await embed(request, model, wanted, inputs)
    as_text = wanted.encoding_format == "base64"
    usage = EmbeddingUsage(prompt_tokens=found.tokens, total_tokens=found.tokens)
    if wanted.return_timing:
        usage = _timed(usage, wanted, model.ready, found, took_s=time.perf_counter() - began)
    tail = b'],"model":%s,"usage":%s}' % (orjson.dumps(model.name), msgspec.json.encode(usage))
    return await answer_in_pieces(request, _write(found.vectors, tail, as_text=as_text))


def _write(vectors: list[Vector], tail: bytes, *, as_text: bool) -> Iterator[bytes]:
    """Yield the answer, in pieces that take a millisecond each."""
    rows, between = SLICE if as_text else rows_of_slice(vectors), b'{"object":"list","data":['
    for start in range(0, len(vectors), rows):
        pieces: list[bytes] = []
        for head, vector in zip(HEADS[start:], vectors[start : start + rows], strict=False):
            pieces += (between, head, b'"%b"}' % vector[0] if as_text else vector_json(vector) + b"}")
            between = b","
        yield b"".join(pieces)
    yield tail


def _timed(
    usage: EmbeddingUsage, wanted: EmbeddingRequest, ready: Ready | None, found: Embedded, *, took_s: float
) -> EmbeddingUsage:
    result = found.result
    backend, device = wanted.name_field(ready) if ready else ("", "")
    if result is not None:
        backend, device = result.backend, result.device
    return msgspec.structs.replace(
        usage,
        mlx_processing_time=round(result.compute_s, 6) if result else 0.0,
        total_processing_time=round(took_s, 6),
        backend_used=BACKENDS.get(backend, backend),
        device_used=DEVICES.get(device, device),
        batch_size_used=result.batch_size if result else 0,
        cache_hits=found.hits,
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
        errors=ERRORS,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
