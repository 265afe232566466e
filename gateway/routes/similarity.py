"""`POST /similarity`. Texts are embedded as everywhere; a worker does the arithmetic: it would stop the event loop."""

import asyncio
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from aiohttp import hdrs, web

from gateway.access.price import comparing
from gateway.bodies.body import read
from gateway.context import POOL
from gateway.embedding_cache import Vector
from gateway.http.openapi import Operation, mount
from gateway.memory_account import SHARE
from gateway.schema.errors import ApiError, invalid
from gateway.schema.similarity import Pair, SimilarityAnswer, SimilarityRequest
from gateway.serving.caller import charge, model_of, reserve_price, tenant
from gateway.serving.embedding_service import FLOAT_BYTES, SLICE_NUMBERS, Embedded, embed, vector_bytes
from gateway.serving.generation import ERRORS
from protocol.messages import Kind, Scores, SimilarityJob

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState


async def compare(request: web.Request) -> web.Response:
    """Compare each on the left with each on the right."""
    began = time.perf_counter()
    wanted = await read(request, SimilarityRequest)
    model = model_of(request, wanted.model, Kind.EMBEDDING)
    inputs = wanted.inputs
    found = await embed(request, model, wanted, inputs) if inputs.keys else None
    job, buffers = await _job(wanted, found, owner=tenant(request))
    price = comparing(wanted.pairs, job.dimensions)
    rows, in_all = len(wanted.left), wanted.top_k is None
    metric = wanted.metric
    # Texts and numbers are in the buffers now, or in what was found.
    del wanted, inputs
    if found is None:
        request[SHARE].settle_bytes(sum(map(len, buffers)))
        await reserve_price(request, price)
    else:
        # What was reserved for the texts covers as much.
        charge(request, price)
    scores = await _run(request, model, job, buffers)
    head = SimilarityAnswer(
        metric=metric,
        shape=[rows, scores.columns],
        processing_time=round(time.perf_counter() - began, 6),
        model=model.name if found else None,
        cached=found.hits == len(found.vectors) if found else None,
        pairs=None if in_all else _pairs(scores),
    )
    body = msgspec.json.encode(head)
    if in_all:
        body = b"".join((body[:-1], b',"scores":[', *await _rows(scores), b"]}"))
    return web.Response(body=body, content_type="application/json")


async def _job(wanted: SimilarityRequest, found: Embedded | None, *, owner: str) -> tuple[SimilarityJob, list[bytes]]:
    """Build the job, and the vectors of both sides."""
    texts = iter(found.vectors if found else [])
    sides = [wanted.left] if wanted.right is None else [wanted.left, wanted.right]
    buffers = [await _pack(side, texts) for side in sides]
    left, *right = (len(data) // FLOAT_BYTES // len(side) for data, side in zip(buffers, sides, strict=True))
    if right and right[0] != left:
        raise invalid(f"'right' has vectors of {right[0]} numbers, 'left' of {left}.", "right")
    wanted.check_work(left)
    job = SimilarityJob(
        job=0,
        attempt=0,
        dimensions=left,
        left=0,
        right=None if wanted.right is None else 1,
        metric=wanted.metric,
        top_k=wanted.top_k,
        tenant=owner,
    )
    return job, buffers


async def _run(request: web.Request, model: "ModelState", job: SimilarityJob, buffers: list[bytes]) -> Scores:
    async with request.app[POOL].run_job(model, job, buffers, share=request[SHARE]) as stream:
        result = await stream.wait_result()
    if not isinstance(result, Scores):
        raise ApiError("internal_error", detail="a similarity job was not answered by scores")
    return result


async def _pack(side: Sequence[Any], texts: Iterator[Vector]) -> bytes:
    """Pack the vectors of one side, taken from `texts` where it holds such: little-endian float32."""
    if isinstance(side[0], str):
        return b"".join(vector_bytes(vector) for vector in islice(texts, len(side)))
    rows = max(1, SLICE_NUMBERS // len(side[0]))
    pieces: list[bytes] = []
    for start in range(0, len(side), rows):
        pieces += [array("f", vector).tobytes() for vector in side[start : start + rows]]
        await asyncio.sleep(0)
    return b"".join(pieces)


async def _rows(scores: Scores) -> list[bytes]:
    """Encode the rows of `scores` with the commas between them, as pieces."""
    numbers = array("d", scores.data)
    rows = max(1, SLICE_NUMBERS // scores.columns)
    step = rows * scores.columns
    pieces: list[bytes] = []
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step].tolist()
        table = [part[at : at + scores.columns] for at in range(0, len(part), scores.columns)]
        pieces += (orjson.dumps(table)[1:-1], b",")
        await asyncio.sleep(0)
    return pieces[:-1]


def _pairs(scores: Scores) -> list[Pair]:
    places = zip(scores.left, scores.right, array("d", scores.data), strict=True)
    return [Pair(left=left, right=right, score=score) for left, right, score in places]


OPERATIONS = (
    Operation(
        method=hdrs.METH_POST,
        path="/similarity",
        handler=compare,
        summary="How alike texts or vectors are",
        tag="Embeddings",
        access=("embed:text",),
        body=SimilarityRequest,
        example={"left": ["a cat"], "right": ["a kitten", "a share price"], "metric": "cosine"},
        answer=SimilarityAnswer,
        errors=ERRORS,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
