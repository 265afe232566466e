"""Who changed what, from where: one JSON line for each act, in a file of its own that is only ever appended to."""

import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

from gateway.access.keys.text import masked
from gateway.telemetry.logs import CLIENT, json_line
from protocol.private import WRITING, open_private, prepare_folder

FILE = "audit.log"
log = logging.getLogger(__name__)
complaints = logging.getLogger("gateway.access")


class _Lines(logging.Formatter):
    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return self._redact(json_line({"time": stamp, **getattr(record, "fields", {})}))


class AuditFile(logging.handlers.WatchedFileHandler):
    """The file, which is ours and private whenever it is opened; what can't be written is said without a traceback."""

    def _open(self) -> TextIOWrapper:
        fd = open_private(Path(self.baseFilename), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        return os.fdopen(fd, "a", encoding=self.encoding, errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, to a new file where the last one was taken away."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say so in the log, which has the act, too."""
        act = getattr(record, "fields", {}).get("act")
        complaints.error("The audit log lacks an act (%s): %s", act, sys.exc_info()[1])


def open_audit(folder: Path, redact: Callable[[str], str] = masked) -> logging.Handler:
    """Start writing to the folder's file, which may be rotated from outside. Raises `OSError`."""
    handler = AuditFile(prepare_folder(folder, close=WRITING) / FILE, encoding="utf-8")
    handler.setFormatter(_Lines(redact))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return handler


def close_audit(handler: logging.Handler) -> None:
    """Stop writing."""
    log.removeHandler(handler)
    handler.close()


def audit(act: str, *, by: str, subject: str = "", **details: object) -> None:
    """Note an act (`key.create`) of a key's holder `by` (its id), and the client's address. Never a secret."""
    fields = {"act": act, "by": by or "anybody", "client": CLIENT.get() or "", "subject": subject, **details}
    shown = {name: value for name, value in fields.items() if name not in ("act", "client") and value != ""}
    told = " ".join(f"{name}={value}" for name, value in shown.items())
    log.info("Audit: %s %s", act, told, extra={"fields": fields})
