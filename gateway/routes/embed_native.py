"""`POST /embed/text`, `/embed/image` and `/embed/multimodal`: vectors as plain lists, of JSON bodies and of forms."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from gateway.bodies.body import answer_in_pieces, read
from gateway.bodies.form import read_form
from gateway.context import IMAGE_RESOLVER
from gateway.embedding_cache import Vector
from gateway.http.openapi import Operation, mount
from gateway.memory_account import SHARE
from gateway.schema.embed import (
    EmbedAnswer,
    EmbedImageForm,
    EmbedImageRequest,
    EmbedTextRequest,
    ImageRequest,
    MultimodalForm,
    MultimodalRequest,
    image_inputs,
)
from gateway.schema.errors import ApiError
from gateway.schema.parts.embed_options import Inputs
from gateway.serving.caller import model_of, text_memory
from gateway.serving.embedding_service import (
    FLOAT_BYTES,
    IMAGES,
    Embedded,
    embed,
    no_images_error,
    options_of,
    rows_of_slice,
    vector_bytes,
    vector_json,
)
from gateway.serving.generation import ERRORS, forget_urls
from protocol.messages import Kind

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

FORM = "multipart/form-data"
BodyRequest = EmbedImageRequest | MultimodalRequest


async def text(request: web.Request) -> web.StreamResponse:
    """Answer with one vector per text."""
    wanted = await read(request, EmbedTextRequest, beside=options_of(request, EmbedTextRequest))
    model = model_of(request, wanted.model, Kind.EMBEDDING)
    return await _answer(request, model, await embed(request, model, wanted, wanted.inputs))


async def image(request: web.Request) -> web.StreamResponse:
    """Answer with one vector per image."""
    return await _images(request, EmbedImageForm, EmbedImageRequest, field="images", file="file")


async def multimodal(request: web.Request) -> web.StreamResponse:
    """Answer with one vector per text and image."""
    return await _images(request, MultimodalForm, MultimodalRequest, field="image", file="image")


async def _images(
    request: web.Request, form: type[ImageRequest], body: type[BodyRequest], *, field: str, file: str
) -> web.StreamResponse:
    async with _read_images(request, form, body, field=field, file=file) as (wanted, inputs):
        model = model_of(request, wanted.model, Kind.EMBEDDING, IMAGES)
        return await _answer(request, model, await embed(request, model, wanted, inputs))


@asynccontextmanager
async def _read_images(
    request: web.Request, form: type[ImageRequest], body: type[BodyRequest], *, field: str, file: str
) -> AsyncIterator[tuple[ImageRequest, Inputs]]:
    """Yield the request and its images, which are held for as long as the block lasts. Raises `ApiError`."""
    resolver, share, beside = request.app[IMAGE_RESOLVER], request[SHARE], options_of(request, form)
    if request.content_type == FORM:
        with resolver.holding(share) as hold:
            sent, files = await read_form(
                request, form, file=file, beside=beside, hold=hold, admit=lambda model: _admit(request, model, file)
            )
            yield sent, image_inputs(sent, files, file)
        return
    if request.content_type != "application/json":
        raise ApiError("unsupported_media_type", f"The body must be 'application/json' or '{FORM}'.")
    wanted = await read(request, body, beside=beside)
    images = wanted.image_references
    # The text of an image is a third larger than the image itself, and nobody reads it again.
    wanted = msgspec.structs.replace(wanted, **{field: []})
    rest, urls = sum(map(text_memory, wanted.captions)), sum(text_memory(image.url) for image in images)
    share.settle_bytes(rest + urls)
    async with resolver.resolve_images(images, share) as resolved:
        forget_urls(images)
        share.release_bytes(urls)
        yield (
            wanted,
            image_inputs(wanted, [(resolved.buffers[one.buffer], one.digest) for one in resolved.images], field),
        )


def _admit(request: web.Request, name: str | None, file: str) -> None:
    """Check that there is a model for images before those of a form are read. Raises `ApiError` and `JobFailed`."""
    model = model_of(request, name, Kind.EMBEDDING, IMAGES)
    if model.ready is not None and IMAGES not in model.ready.capabilities:
        raise no_images_error(model, file)


async def _answer(request: web.Request, model: "ModelState", found: Embedded) -> web.StreamResponse:
    head = EmbedAnswer(
        embeddings=[],
        shape=[len(found.vectors), len(vector_bytes(found.vectors[0])) // FLOAT_BYTES],
        model=model.name,
        processing_time=round(found.took_s, 6),
        cached=found.hits == len(found.vectors),
    )
    opening, _, rest = msgspec.json.encode(head).partition(b"[]")
    return await answer_in_pieces(request, _write(found.vectors, opening + b"[", b"]" + rest))


def _write(vectors: list[Vector], opening: bytes, rest: bytes) -> Iterator[bytes]:
    """Yield the answer, in pieces that take a millisecond each."""
    rows, between = rows_of_slice(vectors), opening
    for start in range(0, len(vectors), rows):
        yield between + b",".join(map(vector_json, vectors[start : start + rows]))
        between = b","
    yield rest


_DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
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
        errors=ERRORS,
    ),
    Operation(
        method=hdrs.METH_POST,
        path="/embed/image",
        handler=image,
        summary="Images to vectors",
        tag="Embeddings",
        access=("embed:image",),
        body=EmbedImageRequest,
        example={"images": [_DOT]},
        form=EmbedImageForm,
        file="file",
        answer=EmbedAnswer,
        errors=ERRORS,
    ),
    Operation(
        method=hdrs.METH_POST,
        path="/embed/multimodal",
        handler=multimodal,
        summary="Texts with images to vectors",
        tag="Embeddings",
        access=("embed:image",),
        body=MultimodalRequest,
        example={"text": "A dot", "image": _DOT},
        form=MultimodalForm,
        file="image",
        answer=EmbedAnswer,
        errors=ERRORS,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
