"""From inputs to vectors, for every endpoint that embeds: what the cache knows, and one job for the rest."""

import asyncio
import re
import time
from array import array
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from gateway.access.estimate import IMAGE_TOKENS
from gateway.access.price import KNOWN_INPUT
from gateway.context import EMBEDDING_CACHE, GENERATION_STATS, POOL, REQUEST_ID, GenerationStats
from gateway.embedding_cache import CacheKey, EmbeddingCache, Vector
from gateway.job_failure import JobFailed
from gateway.memory_account import SHARE
from gateway.schema.decode import read_option
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.embed_options import OPTIONS, EmbedOptions, Inputs, option_types
from gateway.serving.caller import charge, count_job, reserve_inputs, tenant
from protocol.messages import Ready, Vectors

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

SLICE = 128
"""Vectors that are written between two turns of the event loop."""
SLICE_NUMBERS = 16_384
"""Numbers that are packed or written between two turns of the event loop."""
HEAVY_SIGNS = 65_536
"""Characters and token ids of a request that is looked at in several turns."""
FLOAT_BYTES = 4
VECTOR_BYTES = FLOAT_BYTES + FLOAT_BYTES * 4 / 3
"""Memory that one number of a vector takes: as a worker sends it, and as base64."""
IMAGES = "embed_image"
"""The capability of models that take images."""

_PLACE = re.compile(r"(input|image)s?(?:\[(\d+)\])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """One vector per input, in order; `hits` of them were known; `result` is what a worker said of the others."""

    vectors: list[Vector]
    hits: int
    result: Vectors | None
    took_s: float

    @property
    def tokens(self) -> int:
        """Of all inputs."""
        return sum(count for _, count in self.vectors)


def options_of(request: web.Request, kind: type[EmbedOptions]) -> dict[str, Any]:
    """Return the options that headers and query give; a header wins over the query. Raises `ApiError`."""
    given = {}
    for name in filter(OPTIONS.__contains__, kind.__struct_fields__):
        text, where = request.headers.get(OPTIONS[name]), OPTIONS[name]
        if text is None and name in request.query:
            text, where = request.query[name], name
        if text is not None:
            given[name] = text, where
    if not given:
        # Reading the types takes longer than answering from the cache.
        return {}
    types = option_types(kind)
    return {name: read_option(text, types[name], where) for name, (text, where) in given.items()}


async def embed(request: web.Request, model: "ModelState", options: EmbedOptions, inputs: Inputs) -> Embedded:
    """Compute the vectors of all inputs, each once at most. Raises `ApiError`."""
    began = time.perf_counter()
    generated = request[GENERATION_STATS] = GenerationStats(request_type="embedding", model=model.name)
    if model.ready is not None:
        options.check_model(model.ready)
        if inputs.images and IMAGES not in model.ready.capabilities:
            raise no_images_error(model, (inputs.image_place or inputs.place)(None))
    keys = inputs.keys
    # Looking at all of them once may take tens of milliseconds: others run in between.
    heavy = sum(map(len, keys)) > HEAVY_SIGNS
    await _turn(heavy)
    await reserve_inputs(request, [*keys, *(image.text for image in inputs.images.values() if image.text)])
    found = await _recall(request, options, model, keys, heavy=heavy)
    hits = len(keys) - found.count(None)
    charge(request, hits * KNOWN_INPUT)
    result: Vectors | None = None
    if hits < len(keys):
        missing = [*dict.fromkeys(key for key, vector in zip(keys, found, strict=True) if vector is None)]
        result = await _compute(request, options, model, inputs, missing)
        fresh = await _keep(request, options, model, missing, result)
        await _turn(heavy)
        found = [vector or fresh[key] for key, vector in zip(keys, found, strict=True)]
    took_s = time.perf_counter() - began
    answer = Embedded(
        vectors=[vector for vector in found if vector is not None], hits=hits, result=result, took_s=took_s
    )
    generated.tokens = answer.tokens
    request.app[POOL].count_embeddings(model, inputs=len(keys), tokens=answer.tokens)
    if result is None:
        request.app[POOL].stats.count_answer(model, "embedding", took_s=took_s, prompt_tokens=answer.tokens)
    return answer


def no_images_error(model: "ModelState", where: str) -> ApiError:
    """Return the error for images that are sent to a model of texts."""
    return invalid(f"The model '{model.name}' embeds texts only; it takes no images.", where)


def vector_bytes(vector: Vector) -> bytes:
    """Return the vector as it travels: little-endian float32."""
    return a2b_base64(vector[0])


def rows_of_slice(vectors: list[Vector]) -> int:
    """Return how many vectors are written as numbers between two turns of the event loop."""
    return max(1, SLICE_NUMBERS * FLOAT_BYTES * 4 // 3 // max(1, len(vectors[0][0])))


def vector_json(vector: Vector) -> bytes:
    """Return the vector as a JSON list."""
    return orjson.dumps(array("f", a2b_base64(vector[0])).tolist())


async def _recall(
    request: web.Request, options: EmbedOptions, model: "ModelState", keys: list[CacheKey], *, heavy: bool
) -> list[Vector | None]:
    """Return what the cache knows of each input."""
    cache = request.app[EMBEDDING_CACHE]
    # Before a worker was ready, nothing is known that a cached vector could be checked against.
    if cache is None or model.ready is None:
        return [None] * len(keys)
    space = _space(request, options, model, model.ready)
    found: list[Vector | None] = []
    for start in range(0, len(keys), SLICE):
        found += cache.find_vectors(space, keys[start : start + SLICE])
        await _turn(heavy)
    return found


def _space(request: web.Request, options: EmbedOptions, model: "ModelState", ready: Ready) -> bytes:
    """Return the cache's namespace for such vectors: by tenant, or it would tell one what another has embedded."""
    return EmbeddingCache.namespace_of(tenant(request), model.name, ready.revision, options.cache_namespace(ready))


async def _turn(heavy: bool) -> None:
    """Give the event loop a turn, where what was done before may have taken long."""
    if heavy:
        await asyncio.sleep(0)


async def _keep(
    request: web.Request, options: EmbedOptions, model: "ModelState", keys: list[CacheKey], result: Vectors
) -> dict[CacheKey, Vector]:
    """Cut a worker's answer into vectors, and remember them."""
    cache = request.app[EMBEDDING_CACHE]
    fresh: dict[CacheKey, Vector] = {}
    for start in range(0, len(keys), SLICE):
        _cut(result, keys, start, fresh)
        if cache is not None and model.ready is not None:
            # Looked up now: the worker may have become ready only since the request came.
            space = _space(request, options, model, model.ready)
            for key in keys[start : start + SLICE]:
                cache.store_vector(space, key, fresh[key])
        await asyncio.sleep(0)
    return fresh


async def _compute(
    request: web.Request, options: EmbedOptions, model: "ModelState", inputs: Inputs, keys: list[CacheKey]
) -> Vectors:
    share = request[SHARE]
    if model.ready is not None:
        share.hold_bytes(int(len(keys) * (options.dimensions or model.ready.dimensions) * VECTOR_BYTES))
    job, buffers = inputs.make_job(keys, options, request_id=request[REQUEST_ID], tenant=tenant(request))
    charge(request, len(job.images) * IMAGE_TOKENS)
    try:
        async with request.app[POOL].run_job(model, job, buffers, share=share) as stream:
            count_job(request, stream)
            result = await stream.wait_result()
    except JobFailed as failure:
        raise _located(failure, inputs, keys) from None
    if not isinstance(result, Vectors) or len(result.token_counts) != len(keys):
        raise ApiError("internal_error", detail="an embedding job was not answered by one vector per input")
    if len(result.data) != FLOAT_BYTES * result.dimensions * len(keys):
        raise ApiError("internal_error", detail="an embedding job was answered by vectors of another size than it says")
    return result


def _located(failure: JobFailed, inputs: Inputs, keys: list[CacheKey]) -> ApiError:
    """Return the failure with the request's own name for the input at fault: a worker counts those of its job."""
    error = ApiError.of_job(failure)
    match = _PLACE.fullmatch(failure.param or "")
    if match is not None:
        name, number = match.groups()
        # Without a number it is the only one, or all of them.
        at = int(number) if number else (0 if len(keys) == 1 else len(keys))
        where = (name == "image" and inputs.image_place) or inputs.place
        place = where(inputs.keys.index(keys[at]) if at < len(keys) else None)
        error.message = error.message.replace(f"'{failure.param}'", f"'{place}'")
        error.param = place
    return error


def _cut(result: Vectors, keys: list[CacheKey], start: int, into: dict[CacheKey, Vector]) -> None:
    """Cut a slice of the vectors out of a worker's answer."""
    size = FLOAT_BYTES * result.dimensions
    for at, key in enumerate(keys[start : start + SLICE], start):
        data = result.data[at * size : (at + 1) * size]
        into[key] = (b2a_base64(data, newline=False), result.token_counts[at])
