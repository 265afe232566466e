"""What happened lately, for an operator: the gateway's own log lines but those of requests that went well. Bounded."""

import logging
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.access.keys.text import masked
from gateway.telemetry.logs import REQUEST

KEPT = 1000
_CHATTY = ("gateway.http.middleware", "gateway.http.sse")
"""Loggers that write of each request: only their warnings are events."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened; `time` is seconds since 1970."""

    time: float
    level: str
    source: str
    message: str
    request_id: str | None = None


class Events(logging.Handler):
    """A ring of the last events. As a handler of the logger `gateway` it hears of everything there."""

    def __init__(self, redact: Callable[[str], str] = masked) -> None:
        super().__init__(logging.INFO)
        self._redact = redact
        self._ring: deque[Event] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's message, without its traceback."""
        if record.name in _CHATTY and record.levelno < logging.WARNING:
            return
        self._ring.append(
            Event(
                time=record.created,
                level=record.levelname.lower(),
                source=record.name,
                message=self._redact(record.getMessage())[:1000],
                request_id=REQUEST.get(),
            )
        )

    def list_latest(self, limit: int) -> list[Event]:
        """Return the latest events, newest first."""
        return [*reversed(self._ring)][:limit]
