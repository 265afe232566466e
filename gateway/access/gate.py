"""What stands between a request and its handler: who sends it, whether they may, whether it is not too much.

Decided by the route object that the request was resolved to, never by its path; a route without a policy is closed.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.access.connection import Connections, client_address
from gateway.access.guesses import LoginGuesses
from gateway.access.keys.key import MASTER, METERED, OPEN
from gateway.access.keys.keyring import ANYBODY, Caller, Keyring
from gateway.access.limiter import Limiter, MemoryLimiter
from gateway.access.limits import Remaining
from gateway.access.price import Work, ours
from gateway.access.rate_limiter import LimitRefusal
from gateway.access.usage import UsageLedger
from gateway.http.connection import invite_body, of_request
from gateway.http.openapi import ROUTES
from gateway.schema.errors import ApiError
from gateway.telemetry.logs import KEY, LineBudget

if TYPE_CHECKING:
    from gateway.http.openapi import Operation

log = logging.getLogger(__name__)

_REASONS = MappingProxyType(
    {"invalid": "not known", "revoked": "revoked", "expired": "expired", "blocked": "one of too many"}
)
_REFUSALS = MappingProxyType({"invalid": "invalid_api_key", "revoked": "invalid_api_key", "expired": "expired_api_key"})


class Gate:
    """The rules, and what they look at. Without `auth` everyone may do everything."""

    def __init__(
        self,
        *,
        auth: bool,
        keyring: Keyring,
        usage: UsageLedger,
        connections: Connections | None = None,
        limiter: Limiter | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.auth = auth
        self.keyring = keyring
        self.usage = usage
        self.connections = connections or Connections()
        self.limiter = limiter or MemoryLimiter(usage)
        self.refused: Counter[str] = Counter()
        """How often each error code was the answer here."""
        self.guesses = LoginGuesses(lambda: usage.clock_ns() / 1e9)
        self._wall = wall
        self._login_lines = LineBudget(burst=20, period_s=1.0)

    def identify_caller(self, request: web.Request) -> Caller:
        """Return who holds the key of a request. Raises `ApiError` (401; 503 where nobody can know yet)."""
        text = _key_of(request)
        if text is None:
            raise self._refusal("missing_api_key")
        # Where nobody has failed lately there is nothing to look up.
        wait_s = self.guesses.wait_s(client_address(request)) if self.guesses else 0.0
        apart = bool(wait_s) and not self.guesses.is_trusted(client_address(request))
        found = (
            self.keyring.find_issued(text, self._wall()) if apart else self.keyring.identify_caller(text, self._wall())
        )
        if isinstance(found, Caller):
            if found.id == MASTER:
                self.guesses.trust_address(client_address(request))
            return found
        if found == "unavailable":
            raise self._refusal("keys_unavailable")
        blocked = bool(wait_s) and found == "invalid"
        self._note_failure(client_address(request), text, "blocked" if blocked else found)
        if blocked:
            words = f"Too many wrong API keys came from this address. Try again in {wait_s:.3f} s."
            raise self._refusal("rate_limit_exceeded", words, retry_after_s=wait_s)
        raise self._refusal(_REFUSALS[found], "The API key has been revoked." if found == "revoked" else None)

    def recognize_caller(self, request: web.Request) -> Caller | None:
        """Return who asks for an open route; None for whoever has no key that is good for anything."""
        if not self.auth:
            return ANYBODY
        try:
            return self.identify_caller(request)
        except ApiError:
            return None

    def _note_failure(self, address: str, text: str, reason: str) -> None:
        count = self.guesses.count_failure(address, text, reason)
        if count & (count - 1) == 0 and (skipped := self._login_lines.take_line()) is not None:
            log.warning("Failed login %d from %s: the key is %s%s", count, address, _REASONS[reason], skipped)

    def check_permission(self, caller: Caller, operation: "Operation | None") -> None:
        """Raise `ApiError` (403) where the route asks for more than `caller` has."""
        if operation is None or not operation.access:
            raise self._refusal("insufficient_permissions", "No API key opens this address.")
        if not caller.has_permission(*operation.access):
            wanted = " or ".join(f"'{name}'" for name in operation.access)
            raise self._refusal("insufficient_permissions", f"The API key lacks the permission {wanted}.")
        if operation.pool_wide and caller.models:
            message = "The API key is limited to some models, and this address concerns all of them."
            raise self._refusal("insufficient_permissions", message)

    def limit_error(self, refused: LimitRefusal, subject: str) -> ApiError:
        """Return what a caller over a limit is told."""
        wait_s = refused.wait_ns / 1e9
        words = f"Rate limit reached for {subject}." + (f" Try again in {wait_s:.3f} s." if wait_s else "")
        return self._refusal("rate_limit_exceeded", words, retry_after_s=wait_s or None)

    def _refusal(self, code: str, message: str | None = None, *, retry_after_s: float | None = None) -> ApiError:
        self.refused[code] += 1
        error = ApiError(code, message, retry_after_s=retry_after_s)
        if error.status == 401:
            error.more_headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="mlx-pool"'
        return error


class RequestQuota:
    """One metered request: let in under the limits of its key, counted as used, and refused in HTTP's words."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller
        self._limited = gate.limiter.open_request(caller)
        self._running = False

    async def start_request(self) -> None:
        """Let the request in. Raises `ApiError` (429)."""
        refused = await self._limited.start_request()
        if refused is not None:
            subject = "requests" if refused.family == "requests" else "requests that run at the same time"
            raise self._gate.limit_error(refused, subject)
        self._running = True
        self._gate.usage.count_use(self._caller.id, requests=1)

    @property
    def counts_tokens(self) -> bool:
        """Whether a reservation could matter."""
        return self._limited.counts_tokens

    async def reserve_tokens(self, tokens: int) -> None:
        """Take tokens for what the request may cost, once. Raises `ApiError` (429)."""
        refused = await self._limited.reserve_tokens(tokens)
        if refused is not None:
            error = self._gate.limit_error(refused, "tokens")
            error.more_headers["x-ratelimit-reset-tokens"] = duration(refused.wait_ns)
            raise error

    def end_request(self) -> None:
        """Count the request as over. `settle_tokens` tells what it cost, as soon as nothing of it runs any more."""
        if self._running:
            self._limited.end_request()

    def settle_tokens(self, spent: int) -> None:
        """Replace what was reserved by what was spent."""
        self._limited.settle_tokens(spent)
        if spent:
            self._gate.usage.count_use(self._caller.id, tokens=spent)

    def limit_headers(self) -> dict[str, str]:
        """Return what is left, as OpenAI says it; nothing for what has no bound."""
        requests, tokens = self._limited.read_remaining()
        return _left("requests", requests) | _left("tokens", tokens)


GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
QUOTA: web.RequestKey[RequestQuota] = web.RequestKey("quota", RequestQuota)
"""Only on requests that are metered, as is the next one."""
WORK: web.RequestKey[Work] = web.RequestKey("work", Work)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through who may; count what it cost, however it ended."""
    gate = request.app[GATE]
    if (answer := gate.connections.answer_preflight(request)) is not None:
        return answer
    operation = request.app[ROUTES].get(request.match_info.route)
    gate.connections.check_request(request, monitoring=operation is not None and operation.quiet)
    if not gate.auth:
        _vouch(request)
    if not gate.auth or (operation is not None and OPEN in operation.access):
        request[CALLER] = ANYBODY
        await invite_body(request)
        return await handler(request)
    caller = request[CALLER] = gate.identify_caller(request)
    KEY.set(caller.id)
    _vouch(request)
    if request.match_info.http_exception is not None:
        # No such route: the handler says so, to those who may know.
        return await handler(request)
    gate.check_permission(caller, operation)
    if operation is None or METERED.isdisjoint(operation.access):
        gate.usage.count_use(caller.id)
        await invite_body(request)
        return await handler(request)
    quota = request[QUOTA] = RequestQuota(gate, caller)
    work = request[WORK] = Work()
    try:
        await quota.start_request()
        await invite_body(request)
        return await handler(request)
    except Exception as error:
        if ours(error):
            work.forgive_all()
        raise
    finally:
        quota.end_request()
        work.settle_when_done(quota.settle_tokens)


def _vouch(request: web.Request) -> None:
    """Tell the listener that whoever sent this is no stranger."""
    connection = of_request(request)
    if connection is not None:
        connection.mark_known()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Say what is left, and what browsers want to be told, before headers go out (for `on_response_prepare`)."""
    if hdrs.ORIGIN in request.headers:
        response.headers.update(request.app[GATE].connections.cors_headers(request))
    quota = request.get(QUOTA)
    if quota is not None:
        for name, value in quota.limit_headers().items():
            response.headers.setdefault(name, value)


def duration(ns: int) -> str:
    """Write a duration as OpenAI does, `12ms`, `1s`, `6m0s`: in whole milliseconds, rounded up."""
    ms = -(-ns // 1_000_000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _left(family: str, left: Remaining | None) -> dict[str, str]:
    if left is None:
        return {}
    return {
        f"x-ratelimit-limit-{family}": str(left.limit),
        f"x-ratelimit-remaining-{family}": str(left.remaining),
        f"x-ratelimit-reset-{family}": duration(left.reset_ns),
    }


def _key_of(request: web.Request) -> str | None:
    """Return the key that came with a request: as a bearer token, in a header of its own, or in the query."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("X-API-Key") or request.query.get("api_key") or None
