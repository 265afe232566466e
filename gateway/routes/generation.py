"""What chat and plain completions share: expected errors, usage, and the wait for several jobs at once."""

from gateway.dispatch.stream import JobStream
from gateway.errors import ApiError
from gateway.schema.answers import Timings, Usage, timings_of, usage_of
from gateway.schema.sampling import Generation
from protocol.messages import Usage as JobUsage

TENANT = ""
"""Callers are not told apart: all share one prefix cache."""

READING_ERRORS = ("invalid_request", "unsupported_parameter", "body_too_large", "unsupported_media_type")
MODEL_ERRORS = (
    "context_length_exceeded",
    "model_not_found",
    "queue_full",
    "engine_error",
    "internal_error",
    "worker_crashed",
    "model_not_ready",
    "worker_lost",
    "draining",
    "shutting_down",
    "queue_timeout",
)
ERRORS = (*READING_ERRORS, *MODEL_ERRORS, "out_of_memory")


def cost(stream: JobStream) -> JobUsage:
    """What a finished job cost. Raises `ApiError` where the worker broke the protocol."""
    if stream.usage is None:
        raise ApiError("internal_error", detail="a job ended without its usage")
    return stream.usage


def closing_extras(wanted: Generation, costs: list[JobUsage]) -> tuple[Usage | None, Timings | None]:
    """What the last frame of a stream carries."""
    return usage_of(costs) if wanted.include_usage else None, timings_asked(wanted, costs)


def timings_asked(wanted: Generation, costs: list[JobUsage]) -> Timings | None:
    """Timings where they were asked for."""
    return timings_of(costs) if wanted.return_timing else None
