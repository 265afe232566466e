"""The one shape of every error, in bodies and in streams."""

from gateway.schema.base import Answer


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
