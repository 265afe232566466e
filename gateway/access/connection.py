"""How a request came: to which host, over what, from which web page. Asked of every route, before any key."""

import ipaddress
from dataclasses import dataclass, field
from types import MappingProxyType

from aiohttp import hdrs, web

from gateway.errors import ApiError
from gateway.settings import Network

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_SAFE = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_PREFLIGHT = MappingProxyType(
    {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PATCH, DELETE",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "*, Authorization",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
)
_EXPOSED = "x-request-id, x-process-time, retry-after, retry-after-ms, x-should-retry, " + ", ".join(
    f"x-ratelimit-{what}-{family}" for what in ("limit", "remaining", "reset") for family in ("requests", "tokens")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Connections:
    """What is let in.

    Args:
        hosts: names by which clients may call this server; empty: any. Where nobody is asked for a key this keeps out
            web pages whose name was made to lead here (DNS rebinding).
        origins: of web pages that may call from a browser (`*`: all).
        https: whether plain HTTP is refused; what a proxy in `proxies` says of its own client counts.

    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    https: bool = False
    proxies: tuple[Network, ...] = field(default=())

    def check(self, request: web.Request) -> None:
        """Raises `ApiError`: `misdirected_request`, `https_required`, `origin_not_allowed`."""
        if self.hosts and _name(request.headers.get(hdrs.HOST, "")) not in self.hosts:
            raise ApiError("misdirected_request")
        if self.https and not self._secure(request):
            raise ApiError("https_required")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin and request.method not in _SAFE and not self._welcome(request, origin):
            raise ApiError("origin_not_allowed")

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks first; None where this is no such question, or the answer is no."""
        origin = request.headers.get(hdrs.ORIGIN)
        asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asks or not origin or not self._listed(origin):
            return None
        return web.Response(status=204, headers=_PREFLIGHT)

    def headers(self, request: web.Request) -> dict[str, str]:
        """What lets a page of an allowed origin read the answer."""
        origin = request.headers.get(hdrs.ORIGIN)
        if not origin or not self._listed(origin):
            return {}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED,
            hdrs.VARY: hdrs.ORIGIN,
        }

    def _listed(self, origin: str) -> bool:
        return origin in self.origins or "*" in self.origins

    def _welcome(self, request: web.Request, origin: str) -> bool:
        own = _name(origin.partition("://")[2]) == _name(request.headers.get(hdrs.HOST, ""))
        return own or self._listed(origin)

    def _secure(self, request: web.Request) -> bool:
        if request.secure:
            return True
        said = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        return said == "https" and self._trusted(request)

    def _trusted(self, request: web.Request) -> bool:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        try:
            address = ipaddress.ip_address(peer[0]) if peer else None
        except ValueError:
            return False
        return address is not None and any(address in network for network in self.proxies)


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower() if host.count(":") < 2 else host.lower()
