"""What happens around every request: its id, its time, its log lines, and one shape for every error."""

import asyncio
import logging
import re
import time
import uuid
from types import MappingProxyType

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestPayloadError

from gateway.access.connection import client_address
from gateway.access.gate import guard
from gateway.access.keys.text import masked
from gateway.answer_notes import note_headers
from gateway.context import FAILURE, GENERATION_STATS, IGNORED, REDACT, REQUEST_ID, RESPONSE_COUNTS, UNENFORCED
from gateway.http.connection import of_request, respond
from gateway.http.openapi import ROUTES, Operation
from gateway.job_failure import JobFailed
from gateway.memory_account import account_memory
from gateway.schema.errors import ApiError
from gateway.telemetry.logs import CLIENT, KEY, REQUEST

CLIENT_LEFT = 499
"""Logged, never sent: the client was gone before its answer was."""

PATH_CHARS = 200
PARTS = 6
_PLAIN = re.compile(r"[A-Za-z0-9._-]{0,16}")
_LEGAL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HTTP_CODES = MappingProxyType(
    {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
)

logger = logging.getLogger(__name__)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id and the answer its time; write its one line, without query, headers or body."""
    request_id = request[REQUEST_ID] = _request_id(request)
    request[IGNORED], request[UNENFORCED] = set(), []
    tokens = (REQUEST, REQUEST.set(request_id)), (CLIENT, CLIENT.set(client_address(request))), (KEY, KEY.set(None))
    started = time.perf_counter()
    status = CLIENT_LEFT
    if logger.isEnabledFor(logging.DEBUG):
        path = _safe_path(request, request.app[ROUTES].get(request.match_info.route))
        logger.debug("Request started: %s %s", request.method, path)
    try:
        response = await handler(request)
        if not response.prepared:
            response.headers["X-Request-ID"] = request_id
            response.headers["X-Process-Time"] = f"{time.perf_counter() - started:.4f}"
            response.headers.update(note_headers(request))
        status = response.status
        return response
    except ConnectionError:
        # The client left between two writes, a moment before this task would have been cancelled for it. Nobody gets
        # this answer; raising instead would make aiohttp log a traceback.
        return web.Response(status=CLIENT_LEFT)
    finally:
        _report_end(request, status, time.perf_counter() - started)
        for variable, token in tokens:
            variable.reset(token)


def _report_end(request: web.Request, status: int, duration_s: float) -> None:
    """Count an answer and write its line. A stream that broke after its headers has the status of what broke it."""
    operation = request.app[ROUTES].get(request.match_info.route)
    failure = request.get(FAILURE)
    if failure is not None and status < 400:
        status = failure.status
    # A client may invent methods: what is not ours has one name, or the counts would grow without bound.
    route = (operation.path, operation.method) if operation is not None else ("other", "other")
    request.app[RESPONSE_COUNTS][(*route, status)] += 1
    path = _safe_path(request, operation)
    level = logging.DEBUG if operation is not None and operation.quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {}
    if failure is not None:
        fields |= {"code": failure.code, "error_id": failure.error_id}
    fields |= _generation(request, duration_s)
    details = " ".join(f"{name}={value}" for name, value in fields.items()).replace("time_s=", "time=")
    known = {"method": request.method, "path": path, "status": status, "duration_s": round(duration_s, 6)}
    logger.log(
        level,
        "Request completed: %s %s status=%d duration=%.3fs",
        request.method,
        path,
        status,
        duration_s,
        extra={"fields": known | fields, "details": details},
    )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into the one shape of errors. Cancellation and lost connections pass."""
    connection = of_request(request)
    try:
        if connection is not None:
            connection.on_request()
            if connection.place.refused:
                raise ApiError("too_many_connections")
        if not _is_plain(request):
            # A small body can hold a very large one.
            raise ApiError("unsupported_media_type", "Request bodies with a 'Content-Encoding' are not accepted.")
        return await handler(request)
    except ApiError as error:
        return _refusal(request, error)
    except JobFailed as failure:
        return _refusal(request, ApiError.of_job(failure))
    except web.HTTPException as error:
        return _http_refusal(request, error)
    except RequestPayloadError:
        return _refusal(request, ApiError("invalid_request", "The request body is malformed."))
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        unknown = ApiError("internal_error")
        logger.exception("Unhandled error: error_id=%s", unknown.error_id)
        return _refusal(request, unknown)


MIDDLEWARES = (observe, answer_errors, guard, account_memory)
"""In the order in which the application needs them."""


def _refusal(request: web.Request, error: ApiError) -> web.Response:
    """Answer with an error. The request's line names it; a line of its own has what is ours to look into."""
    request[FAILURE] = error.note
    if error.status >= 500 or error.detail:
        logger.log(
            logging.WARNING if error.status >= 500 else logging.DEBUG,
            "Request failed: code=%s status=%d error_id=%s%s",
            error.code,
            error.status,
            error.error_id,
            f" ({error.detail})" if error.detail else "",
        )
    return respond(error)


def _http_refusal(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    """Show aiohttp's own refusals in our shape; redirects stay what they are."""
    if error.status < 400:
        raise error
    code = _HTTP_CODES.get(error.status) or ("invalid_request" if error.status < 500 else "internal_error")
    message = f"The request body is larger than {request.client_max_size} bytes." if error.status == 413 else None
    if error.status == 404 and (path := _meant_path(request)) is not None:
        message = f"There is nothing at this path. Did you mean '{path}'?"
    response = _refusal(request, ApiError(code, message, status=error.status))
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _meant_path(request: web.Request) -> str | None:
    """Return the path that a client with a wrong base URL meant: without `/v1`, with two, or with slashes too many."""
    rest = "/".join(part for part in request.path.split("/") if part not in ("", "v1"))
    known = {operation.path for operation in request.app[ROUTES].values()}
    # A model's name may be anything: it is not repeated.
    found = "models/{id}" if rest.startswith("models/") else rest
    return next((path for path in (f"/v1/{found}", f"/{found}") if path in known or found == "models/{id}"), None)


def _generation(request: web.Request, duration_s: float) -> dict[str, object]:
    """Return what a generation amounted to, for its request's line; nothing where nothing was generated."""
    generated = request.get(GENERATION_STATS)
    if generated is None:
        return {}
    words, chars = generated.count_words()
    prompt, completion = generated.prompt_and_completion()
    return {
        "model": generated.model,
        "request_type": generated.request_type,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "tokens": generated.tokens,
        "words": words,
        "chars": chars,
        "time_s": round(duration_s, 3),
        "tps": round(generated.tokens / duration_s, 2) if duration_s > 0 else 0.0,
    }


def _is_plain(request: web.Request) -> bool:
    """Return whether the body comes as it is: every encoding that any header names is `identity`."""
    named = ",".join(request.headers.getall(hdrs.CONTENT_ENCODING, ()))
    return not named or all(name.strip().lower() in ("identity", "") for name in named.split(","))


def _request_id(request: web.Request) -> str:
    """Return the id that came with a request, if it is a legal one and no key; else a new one."""
    given = request.headers.get("X-Request-ID", "")
    legal = _LEGAL_ID.fullmatch(given) and request.app.get(REDACT, masked)(given) == given
    return given if legal else str(uuid.uuid4())


def _safe_path(request: web.Request, operation: Operation | None) -> str:
    """Return the path of a request for the log, without what a client chose that could be part of a key."""
    resource = request.match_info.route.resource
    if operation is not None and resource is not None:
        return resource.canonical
    parts = request.app.get(REDACT, masked)(request.rel_url.path[:PATH_CHARS]).split("/")
    return "/".join(part if _PLAIN.fullmatch(part) else "…" for part in parts[:PARTS]) + "/…" * (len(parts) > PARTS)
