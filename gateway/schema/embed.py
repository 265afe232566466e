"""`POST /embed/text`, `/embed/image` and `/embed/multimodal`: requests as JSON and as forms, and the one answer."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from gateway.schema.base import Answer
from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_IMAGES, EmbeddingText, EmbeddingTexts, ImageAddress
from gateway.schema.parts.embed_options import EmbedOptions, InputImage, Inputs, TextOptions, places
from gateway.schema.parts.image_references import ImageReference

Images = Annotated[list[ImageAddress], Meta(min_length=1, max_length=MAX_IMAGES)]
Captions = Annotated[list[EmbeddingText], Meta(min_length=1, max_length=MAX_IMAGES)]


class EmbedTextRequest(TextOptions, frozen=True, kw_only=True):
    """Texts to embed, up to 2,048. The options may also be given by header or by query; the body wins."""

    texts: EmbeddingTexts

    @property
    def inputs(self) -> Inputs:
        """The texts, in order."""
        return Inputs(keys=[*self.texts], place=lambda at: "texts" if at is None else f"texts[{at}]")


class EmbedImageForm(EmbedOptions, frozen=True, kw_only=True):
    """What may come with the files of a form: options, which may also be given by header or by query."""

    @property
    def captions(self) -> list[str]:
        """The texts that go with the images."""
        return []


class EmbedImageRequest(EmbedImageForm, frozen=True, kw_only=True):
    """Images to embed, up to 16: data: URLs, or addresses on the public internet."""

    images: Images

    @property
    def image_references(self) -> list[ImageReference]:
        """The images, with their places in the request."""
        return [ImageReference(where=f"images[{at}]", url=url) for at, url in enumerate(self.images)]


class MultimodalForm(TextOptions, frozen=True, kw_only=True):
    """What may come with the files of a form: a `text` for each, in the same order, and options."""

    text: EmbeddingText | Captions

    @property
    def captions(self) -> list[str]:
        """The texts that go with the images."""
        return [self.text] if isinstance(self.text, str) else self.text


class MultimodalRequest(MultimodalForm, frozen=True, kw_only=True):
    """A text and an image that become one vector, or up to 16 such pairs as two lists."""

    image: ImageAddress | Images

    @property
    def image_references(self) -> list[ImageReference]:
        """The images, with their places in the request."""
        if isinstance(self.image, str):
            return [ImageReference(where="image", url=self.image)]
        return [ImageReference(where=f"image[{at}]", url=url) for at, url in enumerate(self.image)]


ImageRequest = EmbedImageForm | MultimodalForm


def image_inputs(wanted: ImageRequest, images: Sequence[tuple[bytes, bytes]], field: str) -> Inputs:
    """Return the inputs of a request whose `images` (file, SHA-256) came as `field`. Raises `ApiError`."""
    captions: Sequence[str | None] = wanted.captions or [None] * len(images)
    if len(captions) != len(images):
        message = f"'{field}' has {len(images)} images, 'text' {len(captions)} texts; each image needs one."
        raise invalid(message, field)
    inputs = [
        InputImage(data=data, digest=digest, text=text) for (data, digest), text in zip(images, captions, strict=True)
    ]
    keys = [_key(one) for one in inputs]
    return Inputs(
        keys=[*keys],
        place=places("text" if wanted.captions else field, len(keys)),
        image_place=places(field, len(keys)),
        images=dict(zip(keys, inputs, strict=True)),
    )


def _key(image: InputImage) -> bytes:
    """Return what the cache knows it by: its digest, or one of both where a text goes with it."""
    if image.text is None:
        return image.digest
    return hashlib.sha256(b"pair" + image.digest + image.text.encode("utf-8", "surrogatepass")).digest()


class EmbedAnswer(Answer, frozen=True, kw_only=True):
    """One vector per input, in order.

    `shape` is [vectors, dimensions], `processing_time` seconds, `cached` whether every vector was known already.
    """

    embeddings: list[list[float]]
    shape: list[int]
    model: str
    processing_time: float
    cached: bool
