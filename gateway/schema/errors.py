"""One table: error code to HTTP status, OpenAI type and retry policy. Nothing else decides these.

A message here or in an `ApiError` is written for the API caller: no paths, no tracebacks, no secrets.
"""

import math
import secrets
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from gateway.job_failure import JobFailed
from gateway.schema.base import Answer

AT_CAPACITY = "Too many requests. Service is at capacity."
PATIENCE_S = 120.0
"""SDKs wait no longer than this, and would try again at once instead."""
_INTERNAL = "The server failed to process the request."

_INVALID = "invalid_request_error"
_RATE = "rate_limit_error"
_AUTHENTICATION = "authentication_error"
_PERMISSION = "permission_error"
_SERVER = "server_error"


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorPolicy:
    """What a code means over HTTP.

    `retry_after_s` None: trying again can't help, and SDKs are told so. `public` replaces whatever message
    came with the error; `default` stands in where none came.
    """

    status: int
    type: str
    retry_after_s: float | None = None
    public: str | None = None
    default: str = _INTERNAL


TABLE = MappingProxyType(
    {
        "invalid_request": ErrorPolicy(status=400, type=_INVALID, default="The request is invalid."),
        "unsupported_parameter": ErrorPolicy(status=400, type=_INVALID, default="A parameter is not supported."),
        "context_length_exceeded": ErrorPolicy(
            status=400, type=_INVALID, default="The request exceeds the model's context."
        ),
        "missing_api_key": ErrorPolicy(
            status=401,
            type=_AUTHENTICATION,
            default="No API key was given. Send it as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'.",
        ),
        "invalid_api_key": ErrorPolicy(status=401, type=_AUTHENTICATION, default="The API key is not valid."),
        "expired_api_key": ErrorPolicy(status=401, type=_AUTHENTICATION, default="The API key has expired."),
        "insufficient_permissions": ErrorPolicy(
            status=403, type=_PERMISSION, default="The API key does not allow this."
        ),
        "model_not_allowed": ErrorPolicy(
            status=403, type=_PERMISSION, default="The API key does not allow the use of this model."
        ),
        "https_required": ErrorPolicy(status=403, type=_PERMISSION, default="This server is to be used over HTTPS."),
        "origin_not_allowed": ErrorPolicy(
            status=403, type=_PERMISSION, default="Web pages of this origin may not use this server."
        ),
        "misdirected_request": ErrorPolicy(status=421, type=_INVALID, default="This server does not go by that name."),
        "not_found": ErrorPolicy(status=404, type=_INVALID, default="There is nothing at this address."),
        "model_not_found": ErrorPolicy(status=404, type=_INVALID, default="The model does not exist."),
        "method_not_allowed": ErrorPolicy(status=405, type=_INVALID, default="This method is not allowed here."),
        "key_revoked": ErrorPolicy(
            status=409, type=_INVALID, default="The API key is revoked, for good: nothing about it can be changed."
        ),
        "model_in_use": ErrorPolicy(status=409, type=_INVALID, default="Workers of the model are here."),
        "request_timeout": ErrorPolicy(status=408, type=_INVALID, default="The request body did not arrive in time."),
        "body_too_large": ErrorPolicy(status=413, type=_INVALID, default="The request body is too large."),
        "unsupported_media_type": ErrorPolicy(status=415, type=_INVALID, default="Send the body as application/json."),
        "queue_full": ErrorPolicy(status=429, type=_RATE, retry_after_s=1.0, public=AT_CAPACITY),
        "rate_limit_exceeded": ErrorPolicy(
            status=429, type=_RATE, retry_after_s=1.0, default="The API key's rate limit is reached."
        ),
        "engine_error": ErrorPolicy(status=500, type=_SERVER, public=_INTERNAL),
        "output_not_finite": ErrorPolicy(
            status=500, type=_SERVER, default="The model computed something that is no number."
        ),
        "internal_error": ErrorPolicy(status=500, type=_SERVER, public=_INTERNAL),
        "worker_crashed": ErrorPolicy(
            status=500,
            type=_SERVER,
            default="The model crashed more than once on this request; it will not be tried again.",
        ),
        "cancelled": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=1.0, public="The request was cancelled by the server."
        ),
        "keys_unavailable": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=2.0, default="API keys can't be checked at the moment."
        ),
        "draining": ErrorPolicy(status=503, type=_SERVER, retry_after_s=1.0, default="The server is shutting down."),
        "model_not_ready": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=5.0, default="The model is not ready yet."
        ),
        "shutting_down": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=1.0, default="The server is shutting down."
        ),
        "slow_reader": ErrorPolicy(
            status=503, type=_SERVER, default="The client reads too slowly; its stream was dropped."
        ),
        "too_many_connections": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=1.0, default="The server has too many open connections."
        ),
        "worker_lost": ErrorPolicy(
            status=503, type=_SERVER, retry_after_s=1.0, default="The model stopped while answering."
        ),
        "queue_timeout": ErrorPolicy(status=504, type=_SERVER, default="The request waited too long for a free slot."),
        "out_of_memory": ErrorPolicy(status=507, type=_SERVER, default="The request does not fit the model's memory."),
    }
)
"""Every code that an API caller can see."""


class ErrorDetail(Answer, frozen=True, kw_only=True):
    """What went wrong, for the API caller. `error_id` names the same event in the server's log."""

    message: str
    type: str
    param: str | None
    code: str
    error_id: str


class ErrorBody(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Body of every answer with a status of 400 or above, and the last frame of a stream that failed.

    `detail` repeats the message where a full queue refused the request.
    """

    error: ErrorDetail
    detail: str | None = None


class FailureNote(NamedTuple):
    """What a request's line says of an error. The error itself leads to the frames it went through, and to a body."""

    code: str
    status: int
    error_id: str


class ApiError(Exception):
    """An error as its caller will see it.

    Args:
        code: a key of `TABLE`; anything else counts as `internal_error`.
        message: for the API caller; None or empty: the table's own words.
        param: the request field at fault, where there is one.
        retry_after_s: seconds after which another try makes sense; overrides the table's, but never makes a
            deterministic failure look transient.
        status: overrides the table's status (for refusals of the HTTP layer itself).
        detail: for the log only.

    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        param: str | None = None,
        *,
        retry_after_s: float | None = None,
        status: int | None = None,
        detail: str | None = None,
    ) -> None:
        self.code = code if code in TABLE else "internal_error"
        policy = TABLE[self.code]
        self.message = policy.public or message or policy.default
        super().__init__(self.message)
        self.type = policy.type
        self.status = policy.status if status is None else status
        self.param = param
        self.retry_after_s = policy.retry_after_s
        if policy.retry_after_s is not None and retry_after_s is not None:
            self.retry_after_s = max(retry_after_s, 0.001)
        self.detail = detail or (message if message != self.message else None)
        self.error_id = secrets.token_hex(6)
        self.more_headers: dict[str, str] = {}

    @classmethod
    def of_job(cls, failure: JobFailed) -> "ApiError":
        """Return what a failed job means over HTTP; the engine's own words stay in the log where the table says so."""
        return cls(str(failure.code), failure.message, failure.param, retry_after_s=failure.retry_after_s)

    @property
    def note(self) -> FailureNote:
        """What may be kept of it."""
        return FailureNote(self.code, self.status, self.error_id)

    def body(self) -> bytes:
        """Return the JSON body, also used as the last frame of a failed stream."""
        error = ErrorDetail(
            message=self.message, type=self.type, param=self.param, code=self.code, error_id=self.error_id
        )
        return msgspec.json.encode(ErrorBody(error=error, detail=AT_CAPACITY if self.code == "queue_full" else None))

    def headers(self) -> dict[str, str]:
        """Return what tells SDKs whether, and when, to try again. `retry-after` is whole seconds, rounded up."""
        if self.retry_after_s is None:
            return {"x-should-retry": "false"} | self.more_headers
        found = {
            "retry-after": str(math.ceil(self.retry_after_s)),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }
        if self.retry_after_s > PATIENCE_S:
            found["x-should-retry"] = "false"
        return found | self.more_headers


def invalid(message: str, param: str | None) -> ApiError:
    """Make a 400 `invalid_request`."""
    return ApiError("invalid_request", message, param)


def unsupported(param: str, reason: str | None = None) -> ApiError:
    """Make a 400 `unsupported_parameter`; `reason` completes a sentence that opens with the parameter's name."""
    return ApiError("unsupported_parameter", f"'{param}' {reason or 'is not supported by this server.'}", param)
