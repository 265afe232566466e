"""Which URLs images may be fetched from, as far as their text can say. Pure; the addresses are another matter.

There is one parser: the `URL` that passes here is the very object that the connection is made for.
"""

import re
from dataclasses import dataclass

from yarl import URL

MAX_LENGTH = 8192

_TEXT = re.compile(r"https?://[!-\[\]-~]+", re.IGNORECASE | re.ASCII)
"""Printable ASCII without the backslash, which some parsers take for a slash, and others for part of a name."""
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)+{_LABEL}\.?")
"""At least two labels: a single one can only mean something on the local network."""
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


class BadUrl(ValueError):
    """An image is not fetched from there. The message is for the API caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlRules:
    """`domains` None: any. A domain stands for itself and for all names below it."""

    domains: tuple[str, ...] | None = None
    ports: tuple[int, ...] = (80, 443)


def read_url(text: str, rules: UrlRules) -> URL:
    """Read a URL that images may be fetched from. Raises `BadUrl`."""
    if len(text) > MAX_LENGTH:
        raise BadUrl(f"The image's URL has more than {MAX_LENGTH} characters.")
    if not _TEXT.fullmatch(text):
        raise BadUrl("An image must be given as a data: URL or as an http(s) URL in plain ASCII.")
    try:
        # `encoded`: as it was written. A signature in the query would not survive being put in order.
        url = URL(text, encoded=True)
        host, port = (url.raw_host or "").lower(), url.port
    except ValueError:
        raise BadUrl("The image's URL is not well formed.") from None
    if "@" in url.raw_authority:
        raise BadUrl("The image's URL must not hold credentials.")
    if port not in rules.ports:
        raise BadUrl("Images are not fetched from this port.")
    if not is_address(host) and not _NAME.fullmatch(host):
        raise BadUrl("The image's URL has no complete host name.")
    if rules.domains is not None and not _below(host.removesuffix("."), rules.domains):
        raise BadUrl("Images are not fetched from this host by this server.")
    return url.with_fragment(None)


def is_address(host: str) -> bool:
    """Return whether a host is numeric in any spelling: C libraries read `0x7f.1` and `2130706433` as 127.0.0.1."""
    return ":" in host or _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None


def _below(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
