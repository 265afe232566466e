"""How a request came: from whom, to which host, over what, from which web page. Asked before any key."""

import ipaddress
from dataclasses import dataclass, field
from types import MappingProxyType

from aiohttp import hdrs, web

from gateway.schema.errors import ApiError
from gateway.values import Network

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_FORWARDED = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"})
"""What proxies add to a request."""
HOPS = 32
"""Proxies of a chain that are looked at."""
_PORTS = MappingProxyType({"http": "80", "https": "443"})
_SAFE = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_PREFLIGHT = MappingProxyType(
    {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, PATCH, DELETE",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "*, Authorization",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }
)
_EXPOSED = (
    "x-request-id, x-process-time, retry-after, retry-after-ms, x-should-retry, x-ignored-parameters, "
    "x-unenforced-schema, "
    + ", ".join(
        f"x-ratelimit-{what}-{family}" for what in ("limit", "remaining", "reset") for family in ("requests", "tokens")
    )
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

    def check_request(self, request: web.Request, *, monitoring: bool = False) -> None:
        """Raise `ApiError`: `misdirected_request`, `https_required`, `origin_not_allowed`.

        This machine may always call itself by its local names: no web page can have made such a name lead here.
        `monitoring`: the route is one that machines ask every few seconds. Where the proxy stands on this machine, it
        may ask such a route itself over plain HTTP.
        """
        name = _name(request.headers.get(hdrs.HOST, ""))
        from_here = _is_loopback(name) and _is_loopback(peer_address(request))
        if self.hosts and name not in self.hosts and not from_here:
            raise ApiError("misdirected_request")
        if self.https and not self._secure(request) and not (monitoring and from_here and self._is_own(request)):
            raise ApiError("https_required")
        if request.method not in _SAFE:
            origin = request.headers.get(hdrs.ORIGIN)
            foreign = not origin and request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
            if foreign or (origin and not self._welcome(request, origin)):
                raise ApiError("origin_not_allowed")

    def answer_preflight(self, request: web.Request) -> web.Response | None:
        """Return the answer to a browser that asks first; None where this is no such question, or the answer is no."""
        origin = request.headers.get(hdrs.ORIGIN)
        asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asks or not origin or not self._listed(origin):
            return None
        return web.Response(status=204, headers=_PREFLIGHT)

    def cors_headers(self, request: web.Request) -> dict[str, str]:
        """Return what lets a page of an allowed origin read the answer."""
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
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            # What the browser says of the page and this server: whatever stands between can't have changed the port.
            own = site == "same-origin"
        else:
            scheme, _, place = origin.partition("://")
            port = _PORTS.get(scheme, "")
            own = bool(place) and _place(place, port) == _place(request.headers.get(hdrs.HOST, ""), port)
        return own or self._listed(origin)

    def _secure(self, request: web.Request) -> bool:
        if request.secure:
            return True
        said = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        return said == "https" and self._trusts(peer_address(request))

    def _is_own(self, request: web.Request) -> bool:
        """Return whether a request is a trusted proxy's own, not passed on for somebody else."""
        return self._trusts(peer_address(request)) and _FORWARDED.isdisjoint(map(str.lower, request.headers))

    def _trusts(self, address: str) -> bool:
        found = _parse(address)
        return found is not None and any(found in network for network in self.proxies)

    def find_client(self, request: web.Request) -> str:
        """Return the address that a request comes from: the last one that no proxy in `proxies` has."""
        address = peer_address(request)
        if not self.proxies or not self._trusts(address):
            return address
        chain = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
        for hop in reversed(chain[-HOPS:]):
            found = _parse(_without_port(hop.strip()))
            if found is None:
                break
            address = str(found)
            if not self._trusts(address):
                break
        return address


CONNECTIONS: web.AppKey[Connections] = web.AppKey("connections", Connections)
_NOBODY = Connections()


def client_address(request: web.Request) -> str:
    """Return the address of a request's client, as far as it can be trusted; `local` where it has none."""
    return request.app.get(CONNECTIONS, _NOBODY).find_client(request)


def peer_address(request: web.BaseRequest) -> str:
    """Return the address of the other end of a request's connection."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(peer, tuple):
        return "local"
    # The system writes IPv4 in one way only; IPv6 may name an interface, or hold an IPv4 address.
    return str(_parse(peer[0]) or "local") if ":" in peer[0] else peer[0]


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_loopback(name: str) -> bool:
    """Return whether a host name or an address is this machine's own, seen from itself."""
    found = _parse(name)
    return name == "localhost" if found is None else found.is_loopback


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _place(host: str, port: str) -> tuple[str, str]:
    """Return a host in lower case, and its port, or the one given."""
    name = _name(host)
    rest = host.rpartition("]")[2] if host.startswith("[") else host
    return name, rest.rpartition(":")[2] if rest.count(":") == 1 else port


def _name(host: str) -> str:
    """Return a host without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower() if host.count(":") < 2 else host.lower()
