"""The images of a conversation: where each stands in the request, and what was said of it."""

from typing import Literal

import msgspec

from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_IMAGES
from gateway.schema.parts.messages import ImagePart, Message, ToolMessage, UserMessage

Detail = Literal["auto", "low", "high"]


class ImageReference(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a request. `where` is the parameter that holds `url`, for errors; `detail` is the wire's."""

    where: str
    url: str
    detail: Detail = "auto"


def list_images(messages: list[Message]) -> list[ImageReference]:
    """List all images of a conversation, in order. Raises `ApiError` if there are too many."""
    found = [
        _reference(part, f"messages[{index}].content[{number}].image_url")
        for index, message in enumerate(messages)
        if isinstance(message, UserMessage | ToolMessage) and isinstance(message.content, list)
        for number, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    if len(found) > MAX_IMAGES:
        where = found[MAX_IMAGES].where
        raise invalid(f"The request has {len(found)} images; at most {MAX_IMAGES} are allowed.", where)
    return found


def _reference(part: ImagePart, where: str) -> ImageReference:
    image = part.image_url
    if isinstance(image, str):
        return ImageReference(where=where, url=image)
    # OpenAI's `original` asks for no downscaling at all: as `high` as a model goes.
    detail: Detail = "high" if image.detail == "original" else image.detail or "auto"
    return ImageReference(where=f"{where}.url", url=image.url, detail=detail)
