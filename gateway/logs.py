"""Log lines, as text or as JSON, each with the id of the request it belongs to.

Nothing that a client wrote gets in but its request id, method and path; control characters never do.
"""

import logging
import logging.handlers
import time
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

import orjson

from gateway.access.keys import masked

if TYPE_CHECKING:
    from gateway.config import GatewayConfig

REQUEST: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that this code runs for; tasks inherit it."""

TRACE: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The trace that this request belongs to, where requests are traced."""

_CONTROL = MappingProxyType({code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))})


class TextLines(logging.Formatter):
    """`2025-01-16 10:30:45 | INFO | Request started: GET /ping [request_id=…]`, in local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """One line, whatever is in the message; a traceback follows on lines of its own."""
        record.message = record.message.translate(_CONTROL)
        request_id = REQUEST.get()
        suffix = f" [request_id={request_id}]" if request_id else ""
        if trace_id := TRACE.get():
            suffix += f" [trace_id={trace_id}]"
        return super().formatMessage(record) + suffix

    def format(self, record: logging.LogRecord) -> str:
        """The whole record, without the secret of any key."""
        return masked(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, `request_id`, and a record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, traceback included."""
        created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{created}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST.get():
            line["request_id"] = request_id
        if trace_id := TRACE.get():
            line["trace_id"] = trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return masked(orjson.dumps(line, default=str).decode())


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
    formatter = JsonLines() if config.log_json else TextLines()
    for handler in handlers:
        handler.setFormatter(formatter)
    # aiohttp's own access log writes whole addresses, and a query may hold a key.
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
    level = "DEBUG" if config.debug else config.log_level.upper()
    logging.basicConfig(level=level, handlers=handlers, force=True)
