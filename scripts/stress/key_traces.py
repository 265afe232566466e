"""Every key that a test shows to a gateway, and where it must never turn up: in a log.

Processes' logs are searched when they are thrown away (`running_pool`), lines of this very process as they are written
(`conftest.py`). A whole key is known by its form, whoever made it; any other by having been shown.
"""

import logging
import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlsplit

from gateway.access.keys.text import id_of
from gateway.telemetry.logs import JsonLines, TextLines

CLIENT_KEY = "sk-of-every-client-library-in-the-tests"
LOGGERS = ("gateway", "worker", "protocol", "asyncio", "aiohttp.client", "aiohttp.internal", "aiohttp.server")
_WHOLE = re.compile(r"mlx_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")
_LEAST = 10
"""Shorter ones (`x`, `none`, `bad`) are words that a log may well hold."""

_shown = {CLIENT_KEY, "not-needed"}
_SCHEME = re.compile(r"bearer\s+", re.IGNORECASE)


def shown(text: str) -> str:
    """Note a key; returns it. Of one of our own form the secret alone is enough to be found by."""
    if len(text) >= _LEAST:
        _shown.add(text[13:] if id_of(text) else text)
    return text


def sent(path: str, headers: Mapping[str, str]) -> None:
    """Note the keys that a request carries, wherever they may stand."""
    for name, value in headers.items():
        if name.lower() in ("authorization", "x-api-key"):
            shown(_SCHEME.sub("", value).strip())
    for value in parse_qs(urlsplit(path).query).get("api_key", ()):
        shown(value)


def traces(text: str) -> list[str]:
    """Return the lines of a log that hold a key."""
    if not (_WHOLE.search(text) or any(key in text for key in _shown)):
        return []
    return [line for line in text.splitlines() if _WHOLE.search(line) or any(key in line for key in _shown)]


def note_minted_keys(mint: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    """Wrap `gateway.access.keys.text.mint` so that every key that it makes is noted."""

    def minted(*args: str | None) -> tuple[str, str]:
        key_id, text = mint(*args)
        return key_id, shown(text)

    return minted


class KeyLogHandler(logging.Handler):
    """Reads every line of this process as it would be written, in both forms."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []
        self._forms = (TextLines(), JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        """Note the record and raise nothing: whoever logs must not fail for it."""
        if not (record.exc_info or hasattr(record, "fields") or traces(record.getMessage())):
            return
        for form in self._forms:
            self.found += traces(form.format(record))
