"""Who changed what: one JSON line for each act, in a file of its own that is only ever appended to."""

import logging
import logging.handlers
import os
import time
from pathlib import Path

import orjson

FILE = "audit.log"
log = logging.getLogger(__name__)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return orjson.dumps({"time": stamp, **getattr(record, "fields", {})}, default=str).decode()


def open_audit(folder: Path) -> logging.Handler:
    """Start writing to the folder's file, which may be rotated from outside. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / FILE
    os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(_Lines())
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    return handler


def close_audit(handler: logging.Handler) -> None:
    """Stop writing."""
    log.removeHandler(handler)
    handler.close()


def audit(act: str, *, by: str, subject: str = "", **details: object) -> None:
    """Note an act (`key.create`) of a key's holder `by` (its id). Never a secret."""
    fields = {"act": act, "by": by or "anybody", "subject": subject, **details}
    told = " ".join(f"{name}={value}" for name, value in fields.items() if name != "act" and value != "")
    log.info("Audit: %s %s", act, told, extra={"fields": fields})
