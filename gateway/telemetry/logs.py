"""Log lines, as text or as JSON, each with the id of the request it belongs to.

Nothing that a client wrote gets in but its request id, method and path; control characters never do, nor do keys.
"""

import json
import logging
import logging.handlers
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson

from gateway.access.keys.text import masked

if TYPE_CHECKING:
    from gateway.config import GatewayConfig

REQUEST: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this code runs for; tasks inherit it."""

TRACE: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The trace that this request belongs to, where requests are traced."""

CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""The address of the client whose request this code runs for."""

KEY: ContextVar[str | None] = ContextVar("key", default=None)
"""The id of the API key that this code runs for; never the key."""

LEAST = 8
"""Characters of the shortest secret that is looked for in lines."""
_UNPRINTED = (*range(32), *range(127, 160), 0x061C, *range(0x200B, 0x2010), *range(0x2028, 0x202F),
              *range(0x2060, 0x2070), 0xFEFF)  # fmt: skip
"""Controls, separators of lines, and characters that turn the direction of a line or can't be seen."""
_CONTROL = MappingProxyType({code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _UNPRINTED})
_TRACEBACK = MappingProxyType({code: text for code, text in _CONTROL.items() if code not in (9, 10)})
_JSON = MappingProxyType({code: f"\\u{code:04x}" for code in _UNPRINTED})


class Redaction:
    """Takes keys out of a text: those of our form by their form, and the secrets that are given, however escaped."""

    def __init__(self, *secrets: str | None) -> None:
        # A shorter one stands in half of all lines.
        forms = {form for secret in secrets if secret and len(secret) >= LEAST for form in _spellings(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if forms else None

    def __call__(self, text: str) -> str:
        """Return the text without keys."""
        return self._secrets.sub("…", masked(text)) if self._secrets is not None else masked(text)


def _spellings(secret: str) -> set[str]:
    """Return a secret as it is, and as URLs, JSON and Python's `repr` write it."""
    quoted = {json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False)}
    return {secret, quote(secret, safe=""), quote(secret), *quoted, repr(secret)[1:-1], repr(secret.encode())[2:-1]}


class TextLines(logging.Formatter):
    """`2025-01-16 10:30:45 | INFO | Running on http://127.0.0.1:8000 [request_id=…]`, in local time."""

    def __init__(self, redact: Callable[[str], str] = masked) -> None:
        super().__init__("%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return one line, whatever is in the message; a traceback follows on lines of its own."""
        record.message = record.message.translate(_CONTROL)
        suffix = "".join(f" [{name}={value}]" for name, value in _context() if value)
        if details := getattr(record, "details", ""):
            suffix += f" [{details.translate(_CONTROL)}]"
        return super().formatMessage(record) + suffix

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole record, without any key."""
        return _encodable(self._redact(super().format(record)).translate(_TRACEBACK))


class JsonLines(logging.Formatter):
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, `request_id`, and a record's `fields`."""

    def __init__(self, redact: Callable[[str], str] = masked) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, traceback included."""
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{created}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(_encodable(record.getMessage())),
        }
        line |= {name: value for name, value in _context() if value}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self._redact(_encodable(self.formatException(record.exc_info)))
        return self._redact(json_line(line))


def json_line(fields: dict[str, object]) -> str:
    """Return an object as JSON on one line, whatever takes a character for the end of a line."""
    try:
        text = orjson.dumps(fields, default=str).decode()
    except TypeError:  # half of a surrogate pair
        text = json.dumps(fields, default=str)
    return text.translate(_JSON)


def _context() -> tuple[tuple[str, str | None], ...]:
    return ("request_id", REQUEST.get()), ("client", CLIENT.get()), ("key", KEY.get()), ("trace_id", TRACE.get())


def _encodable(text: str) -> str:
    """Return a text that can be written as UTF-8: clients may send halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


class LineBudget:
    """Bounds how often something is logged: `burst` lines at once, then one in `period_s`; the others are counted."""

    def __init__(self, *, burst: int, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._period_s = period_s
        self._clock = clock
        self._left = float(burst)
        self._refilled_at = clock()
        self._skipped = 0

    def take_line(self) -> str | None:
        """Return the end of a line that may be written: empty, or how many were not. None: leave it out, too."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._refilled_at) / self._period_s)
        self._refilled_at = now
        if self._left < 1:
            self._skipped += 1
            return None
        self._left -= 1
        skipped, self._skipped = self._skipped, 0
        return f" ({skipped} more of these were not logged)" if skipped else ""


def setup_logging(config: "GatewayConfig") -> None:
    """Send everything to stderr, and to a file too where one is configured. Raises `OSError`.

    Without a size, the file may be rotated from outside: it is opened again once it has been moved away.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if config.log_file is not None and config.log_file_bytes:
        handlers.append(
            logging.handlers.RotatingFileHandler(
                config.log_file, maxBytes=config.log_file_bytes, backupCount=config.log_file_count, encoding="utf-8"
            )
        )
    elif config.log_file is not None:
        handlers.append(logging.handlers.WatchedFileHandler(config.log_file, encoding="utf-8"))
    redact = Redaction(config.api_key)
    formatter = JsonLines(redact) if config.log_json else TextLines(redact)
    for handler in handlers:
        handler.setFormatter(formatter)
    # aiohttp's own access log writes whole addresses, and a query may hold a key.
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
    level = "DEBUG" if config.debug else config.log_level.upper()
    logging.basicConfig(level=level, handlers=handlers, force=True)
