"""Fetches images over HTTP(S), under every rule about what a server may be told to connect to.

Of a remote server nothing is passed on but the file itself, and at most its status: no header, no text. What is not
allowed and what does not exist look alike, so that nobody learns by asking what there is in our network.
"""

import asyncio
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs
from yarl import URL

from gateway.media.addresses import is_public
from gateway.media.fair_semaphore import FairSemaphore
from gateway.media.image_resolver import Hold
from gateway.media.inline import ImageFile, too_large
from gateway.media.lookup import TENANT, Allowed, Lookup, NotAllowed, SystemLookup, make_connector
from gateway.media.remote_urls import BadUrl, UrlRules, read_url
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import MAX_IMAGE_BYTES

REDIRECTS = frozenset({301, 302, 303, 307, 308})
OUTCOMES = ("done", "refused", "failed")
UNREACHABLE = "The image could not be fetched from its URL."


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """Bounds of one fetch, redirects included, and of all together; `wait_s` for a place among `at_once`.

    A server may be silent for `silence_s`; after `patience_s` it must have sent `least_bytes_per_s`, on average.
    A tenant has at most `per_host` fetches under way from one host, and its fair share of all (see `FairSemaphore`).
    """

    total_s: float = 15.0
    wait_s: float = 15.0
    connect_s: float = 5.0
    silence_s: float = 10.0
    patience_s: float = 5.0
    least_bytes_per_s: int = 10_000
    redirects: int = 3
    at_once: int = 64
    per_host: int = 16


class Fetcher:
    """Fetches images. `allowed` and `lookup` are there for tests: nothing in a configuration reaches them."""

    def __init__(
        self,
        rules: UrlRules,
        *,
        limits: FetchLimits | None = None,
        allowed: Allowed = is_public,
        lookup: Lookup | None = None,
    ) -> None:
        self._rules = rules
        self._limits = limits or FetchLimits()
        self._allowed = allowed
        self._lookup = lookup
        self._places = FairSemaphore(self._limits.at_once, per_host=self._limits.per_host)
        self._session: aiohttp.ClientSession | None = None
        self.counts = Counter(dict.fromkeys(OUTCOMES, 0))
        """Fetches by outcome; those that were cancelled count nowhere."""

    async def open(self) -> None:
        """Get ready. Nothing is connected yet."""
        limits = self._limits
        self._session = aiohttp.ClientSession(
            connector=make_connector(self._lookup or SystemLookup(), self._allowed, at_once=limits.at_once),
            timeout=aiohttp.ClientTimeout(
                total=limits.total_s, sock_connect=limits.connect_s, sock_read=limits.silence_s
            ),
            headers={
                hdrs.ACCEPT: "image/png, image/jpeg, image/webp, image/gif",
                hdrs.ACCEPT_ENCODING: "identity",
                hdrs.USER_AGENT: "mlx-pool",
            },
            # Compressed bodies stay compressed, and so are no images: nothing grows in our hands.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """End everything."""
        if self._session is not None:
            await self._session.close()

    async def fetch_image(self, url: str, where: str, hold: Hold, *, tenant: str = "") -> ImageFile:
        """Fetch an image in its tenant's turn. Raises `ApiError` with `where` as its `param`."""
        try:
            target = read_url(url, self._rules)
        except BadUrl as error:
            self.counts["refused"] += 1
            raise invalid(str(error), where) from None
        async with self._turn(tenant, target.raw_host or ""):
            try:
                async with asyncio.timeout(self._limits.total_s):
                    file = await self._follow(target, where, hold)
            except ApiError:
                self.counts["failed"] += 1
                raise
            except TimeoutError:
                self.counts["failed"] += 1
                raise invalid("The image did not arrive in time from its URL.", where) from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                self.counts["refused" if _not_allowed(error) else "failed"] += 1
                raise invalid(UNREACHABLE, where) from None
        self.counts["done"] += 1
        return file

    @asynccontextmanager
    async def _turn(self, tenant: str, host: str) -> AsyncIterator[None]:
        """Wait for a place among those who fetch. Raises `ApiError` if that takes too long."""
        try:
            async with asyncio.timeout(self._limits.wait_s):
                await self._places.acquire(tenant, host)
        except TimeoutError:
            raise ApiError("queue_full") from None
        caller = TENANT.set(tenant)
        try:
            yield
        finally:
            TENANT.reset(caller)
            self._places.release(tenant, host)

    async def _follow(self, url: URL, where: str, hold: Hold) -> ImageFile:
        """Follow all redirects, checked as the first URL was, to a file."""
        if self._session is None:
            raise RuntimeError("the fetcher is not open")
        for _ in range(self._limits.redirects + 1):
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    return await _read(response, where, hold, self._limits)
                # Where it leads to is the remote server's secret; a `BadUrl` must not tell.
                url = read_url(str(url.join(URL(response.headers.get(hdrs.LOCATION, ""), encoded=True))), self._rules)
        raise ValueError("too many redirects")


async def _read(response: aiohttp.ClientResponse, where: str, hold: Hold, limits: FetchLimits) -> ImageFile:
    if response.status != 200:
        raise invalid(f"The server of the image's URL answered with status {response.status}.", where)
    if (response.content_length or 0) > MAX_IMAGE_BYTES:
        raise too_large(where)
    digest, data = hashlib.sha256(), io.BytesIO()
    clock = asyncio.get_running_loop().time
    began = clock()
    async for chunk in response.content.iter_any():
        hold(len(chunk))
        data.write(chunk)
        if data.tell() > MAX_IMAGE_BYTES:
            raise too_large(where)
        if (took_s := clock() - began) > limits.patience_s and data.tell() < took_s * limits.least_bytes_per_s:
            raise TimeoutError
        digest.update(chunk)
    return ImageFile(data.getvalue(), digest.digest())


def _not_allowed(error: BaseException | None) -> bool:
    """Return whether an address was the reason, however deep it lies."""
    while error is not None:
        if isinstance(error, NotAllowed | BadUrl):
            return True
        error = error.__cause__ or error.__context__
    return False
