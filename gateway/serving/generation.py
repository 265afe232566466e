"""What routes that run jobs on conversations and texts share: expected errors, usage, models for images."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.dispatch.jobs.stream import JobStream
from gateway.job_failure import JobFailed
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.answers import Timings, UsageBody, timings_of, usage_of
from gateway.schema.parts.image_references import ImageReference
from gateway.schema.parts.sampling import Generation
from gateway.serving.caller import model_of
from protocol.errors import Code
from protocol.messages import Kind
from protocol.messages import Usage as JobUsage

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

READING_ERRORS = ("invalid_request", "unsupported_parameter", "body_too_large", "unsupported_media_type")
MODEL_ERRORS = (
    "context_length_exceeded",
    "model_not_found",
    "queue_full",
    "engine_error",
    "output_not_finite",
    "internal_error",
    "worker_crashed",
    "model_not_ready",
    "worker_lost",
    "draining",
    "shutting_down",
    "queue_timeout",
)
ERRORS = (*READING_ERRORS, *MODEL_ERRORS, "out_of_memory")


def model_for(request: web.Request, name: str | None, images: list[ImageReference]) -> "ModelState":
    """Return the model for a conversation: one that sees, where there is something to see.

    Raises `JobFailed`, or `ApiError` where the images are the problem.
    """
    try:
        return model_of(request, name, Kind.VISION if images else Kind.CHAT)
    except JobFailed as failure:
        if images and failure.code == Code.INVALID_REQUEST:
            raise invalid(failure.message, images[0].where) from None
        raise


@contextmanager
def map_image_param(images: list[str]) -> Iterator[None]:
    """Give an image that a worker refused (`images[2]`) the name that it has in the request, one of `images`."""
    try:
        yield
    except JobFailed as failure:
        if found := re.fullmatch(r"images\[(\d{1,2})\]", failure.param or ""):
            failure.param = dict(enumerate(images)).get(int(found[1]), "messages")
        raise


def forget_urls(images: list[ImageReference]) -> list[str]:
    """Empty the list, which everyone who had the images in hand shares; returns the images' names in the request."""
    names = [image.where for image in images]
    images.clear()
    return names


def usage_of_job(stream: JobStream) -> JobUsage:
    """Return what a finished job cost. Raises `ApiError` where the worker broke the protocol."""
    if stream.usage is None:
        raise ApiError("internal_error", detail="a job ended without its usage")
    return stream.usage


def closing_extras(wanted: Generation, costs: list[JobUsage]) -> tuple[UsageBody | None, Timings | None]:
    """Return what the last frame of a stream carries."""
    return usage_of(costs) if wanted.include_usage else None, timings_asked(wanted, costs)


def timings_asked(wanted: Generation, costs: list[JobUsage]) -> Timings | None:
    """Return timings where they were asked for."""
    return timings_of(costs) if wanted.return_timing else None
