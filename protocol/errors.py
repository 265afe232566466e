"""What can go wrong with a job, by name.

Workers say *what* happened; the gateway alone decides what that means over HTTP
(`gateway/schema/errors.py`). A code is added here and in that table, nowhere else.
"""

from enum import StrEnum


class Code(StrEnum):
    """Why a job failed. The value is what travels and what API callers see as `code`."""

    INVALID_REQUEST = "invalid_request"
    """The request is well formed but this model cannot take it (template error, token id out of range)."""
    UNSUPPORTED = "unsupported_parameter"
    """A parameter that this engine does not implement."""
    CONTEXT_LENGTH = "context_length_exceeded"
    """Prompt plus requested output exceed the context."""
    OUT_OF_MEMORY = "out_of_memory"
    """The job does not fit the worker's memory; it was refused before it was allocated."""
    RATE_LIMITED = "rate_limit_exceeded"
    """The caller asks for more of something than the worker does for one caller at a time."""
    NOT_FINITE = "output_not_finite"
    """The model computed something that is no number."""
    CANCELLED = "cancelled"
    """The gateway asked for it; never shown to a client."""
    DRAINING = "draining"
    """The worker is going away and did not start the job; another one may."""
    WORKER_LOST = "worker_lost"
    """The engine process died, or stopped answering, with the job in flight."""
    ENGINE_ERROR = "engine_error"
    """The engine raised; the message is for the log, not for the client."""


class JobError(Exception):
    """A job that fails for a reason its caller should read.

    Args:
        code: what went wrong.
        message: for the API caller: no paths, no tracebacks, no secrets.
        param: the request field at fault, where there is one.
        compile_s: processor time that went into the job's grammar.

    """

    def __init__(self, code: Code, message: str, param: str | None = None, *, compile_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.compile_s = compile_s


def context_message(limit: int, excess: str) -> str:
    """Return what a caller reads whose request is longer than a model's context of `limit` tokens.

    Clients know this error by OpenAI's first sentence; `excess` is a clause that says what is too long.
    """
    return f"This model's maximum context length is {limit} tokens. However, {excess}."
