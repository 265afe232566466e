"""What the dispatcher tells the clients of jobs that it gives up."""

from gateway.job_failure import JobFailed
from protocol.errors import Code

LOST_MESSAGE = "The model's process ended while it was working on this request."
CRASHED_MESSAGE = "The model's process died each time that it worked on this request; it will not be tried again."


def crashed() -> JobFailed:
    """Return the failure of a job that engines died of."""
    return JobFailed("worker_crashed", CRASHED_MESSAGE)


def lost(retry_after_s: float) -> JobFailed:
    """Return the failure of a job that lost its worker, where no other took over."""
    return JobFailed(Code.WORKER_LOST, LOST_MESSAGE, retryable=True, retry_after_s=retry_after_s)


def too_late() -> JobFailed:
    """Return the failure of a job that waited longer than its model allows."""
    return JobFailed("queue_timeout", "The request waited too long for its turn.")


def queue_full(retry_after_s: float) -> JobFailed:
    """Return the failure of a job for which there is no place to wait."""
    message = "Too many requests. Service is at capacity."
    return JobFailed("queue_full", message, retryable=True, retry_after_s=retry_after_s)


def not_ready(model: str, state: str, retry_after_s: float) -> JobFailed:
    """Return the failure of a job on which nobody is there to work, nor about to come."""
    message = f"The model {model!r} is not up ({state})."
    return JobFailed("model_not_ready", message, retryable=True, retry_after_s=retry_after_s)


def shutting_down() -> JobFailed:
    """Return the failure of a job that runs while the gateway stops."""
    return JobFailed("shutting_down", "The server is shutting down.", retryable=True, retry_after_s=5.0)
