"""What each error code means over HTTP."""

import msgspec
import pytest

from gateway.job_failure import JobFailed
from gateway.schema.errors import AT_CAPACITY, TABLE, ApiError, ErrorBody
from protocol.errors import Code

STATUSES = {
    "invalid_request": 400, "unsupported_parameter": 400, "context_length_exceeded": 400, "model_not_found": 404,
    "not_found": 404, "method_not_allowed": 405, "body_too_large": 413, "unsupported_media_type": 415,
    "queue_full": 429, "queue_timeout": 504, "model_not_ready": 503, "out_of_memory": 507, "worker_lost": 503,
    "worker_crashed": 500, "draining": 503, "shutting_down": 503, "slow_reader": 503, "cancelled": 503,
    "missing_api_key": 401, "invalid_api_key": 401, "expired_api_key": 401, "insufficient_permissions": 403,
    "model_not_allowed": 403, "https_required": 403, "origin_not_allowed": 403, "misdirected_request": 421,
    "rate_limit_exceeded": 429, "keys_unavailable": 503,
    "request_timeout": 408, "key_revoked": 409, "model_in_use": 409, "too_many_connections": 503,
    "engine_error": 500, "internal_error": 500, "output_not_finite": 500,
}  # fmt: skip
TRANSIENT = {
    "queue_full",
    "rate_limit_exceeded",
    "keys_unavailable",
    "model_not_ready",
    "worker_lost",
    "draining",
    "shutting_down",
    "cancelled",
    "too_many_connections",
}


def test_table_is_complete_when_the_protocol_grows() -> None:
    """Every code that a worker can send, and no other surprise, is in the table."""
    assert {code.value for code in Code} <= set(TABLE)
    assert {code: policy.status for code, policy in TABLE.items()} == STATUSES


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_retry_headers_follow_the_policy_when_an_error_is_sent(code: str) -> None:
    """Transient failures say when to come back, within what SDKs obey; all others forbid it."""
    headers = ApiError(code, "m").headers()
    if code in TRANSIENT:
        assert 0 < int(headers["retry-after"]) <= 120
        assert int(headers["retry-after-ms"]) <= int(headers["retry-after"]) * 1000
        assert "x-should-retry" not in headers
    else:
        assert headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_body_has_the_one_shape_when_an_error_is_sent(code: str) -> None:
    """All five fields are there, the id is fresh, and only a full queue repeats its message as `detail`."""
    first, second = ApiError(code, "words", "field"), ApiError(code, "words", "field")
    body = msgspec.json.decode(first.body(), type=ErrorBody)
    raw = msgspec.json.decode(first.body())
    assert set(raw["error"]) == {"message", "type", "param", "code", "error_id"}
    assert (body.error.code, body.error.param, body.error.error_id) == (code, "field", first.error_id)
    assert first.error_id != second.error_id
    assert raw.get("detail") == (AT_CAPACITY if code == "queue_full" else None)


def test_exact_wait_is_told_when_the_pool_knows_it() -> None:
    """Milliseconds are exact, seconds rounded up; a wait never makes a deterministic failure look transient."""
    headers = ApiError.of_job(JobFailed("queue_full", "x", retryable=True, retry_after_s=2.25)).headers()
    assert headers == {"retry-after": "3", "retry-after-ms": "2250"}
    headers = ApiError("rate_limit_exceeded", "x", retry_after_s=3600.0).headers()
    assert headers == {"retry-after": "3600", "retry-after-ms": "3600000", "x-should-retry": "false"}
    failure = JobFailed("out_of_memory", "too big", retry_after_s=2.0)
    assert ApiError.of_job(failure).headers() == {"x-should-retry": "false"}


def test_engine_words_stay_inside_when_an_engine_fails() -> None:
    """The message of an engine error is for the log: the client sees a generic one."""
    error = ApiError.of_job(JobFailed(Code.ENGINE_ERROR, "KeyError at /opt/models/x.py:5"))
    assert b"/opt" not in error.body()
    assert error.detail == "KeyError at /opt/models/x.py:5"
    assert error.code == "engine_error"


def test_worker_words_reach_the_client_when_the_request_is_at_fault() -> None:
    """Messages written for callers, and their `param`, arrive."""
    error = ApiError.of_job(JobFailed(Code.CONTEXT_LENGTH, "9 + 5 tokens, 10 fit", param="max_tokens"))
    assert (error.status, error.message, error.param) == (400, "9 + 5 tokens, 10 fit", "max_tokens")


def test_unknown_code_is_internal_when_a_worker_is_newer() -> None:
    """A code that this gateway does not know is a 500 without the foreign text."""
    error = ApiError.of_job(JobFailed("flux_capacitor", "secret"))
    assert (error.status, error.code) == (500, "internal_error")
    assert b"secret" not in error.body()
