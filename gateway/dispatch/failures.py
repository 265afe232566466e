"""What the dispatcher tells the clients of jobs that it gives up. Words only."""

from gateway.dispatch.jobs.stream import JobFailed
from gateway.dispatch.model import ModelState
from protocol.errors import Code

LOST_MESSAGE = "The model's process ended while it was working on this request."
CRASHED_MESSAGE = "The model's process died each time that it worked on this request; it will not be tried again."


def crashed() -> JobFailed:
    """Engines died of it."""
    return JobFailed("worker_crashed", CRASHED_MESSAGE)


def lost(model: ModelState) -> JobFailed:
    """It lost its worker, and no other took over."""
    return JobFailed(Code.WORKER_LOST, LOST_MESSAGE, retryable=True, retry_after_s=model.retry_after_s)


def too_late() -> JobFailed:
    """It waited longer than its model allows."""
    return JobFailed("queue_timeout", "The request waited too long for its turn.")


def queue_full(model: ModelState) -> JobFailed:
    """There is no place to wait."""
    message = "Too many requests. Service is at capacity."
    return JobFailed("queue_full", message, retryable=True, retry_after_s=model.retry_after_s)


def not_ready(model: ModelState) -> JobFailed:
    """Nobody is there to work on it, nor about to come."""
    message = f"The model {model.name!r} is not up ({model.state})."
    return JobFailed("model_not_ready", message, retryable=True, retry_after_s=model.retry_after_s)
