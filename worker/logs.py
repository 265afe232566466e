"""How a worker's lines look: time, level, what happens; or the same as JSON. On stderr, where honcho puts a prefix."""

import json
import logging
import re
import sys
import time
from types import TracebackType
from typing import Any

FORMAT = "%(asctime)s | %(levelname)s | %(message)s"
_TEXT_HEAD = re.compile(r"^[\d-]{10} [\d:]{8} \| [A-Z]+ \| ")


class WorkerJsonLines(logging.Formatter):
    """One JSON object per line, with the gateway's names, and the model that the line is about."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, traceback included."""
        traceback = self.formatException(record.exc_info) if record.exc_info else None
        return self.encode_line(record.created, record.levelname, record.name, record.getMessage(), traceback)

    def encode_line(self, created: float, level: str, logger: str, message: str, traceback: str | None = None) -> str:
        """Return a line of these fields."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(created % 1 * 1000):03d}Z",
            "level": level,
            "logger": logger,
            "message": message,
            "model": self._model,
        }
        return json.dumps(line if traceback is None else line | {"traceback": traceback})

    def encode_output(self, data: bytes) -> bytes:
        """Return what a process wrote to stderr, with whatever is no JSON (a library's own words) as a message."""
        lines = []
        for raw in data.splitlines():
            text = raw.decode(errors="replace").strip()
            if text.startswith("{") and text.endswith("}"):
                lines.append(text)
            elif text:
                lines.append(self.encode_line(time.time(), "INFO", "stderr", text))
        return "".join(f"{line}\n" for line in lines).encode()


def message_of_line(line: str) -> str:
    """Return what a line says, be it one of text or of JSON."""
    try:
        found = json.loads(line)
    except ValueError:
        return _TEXT_HEAD.sub("", line)
    return str(found["message"]) if isinstance(found, dict) and "message" in found else line


def configure(level: str, *, json_of: str | None = None) -> None:
    """Set up this process's log. `level` is a name as in `--log-level`; `json_of` the model to name in JSON lines."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=FORMAT, datefmt="%Y-%m-%d %H:%M:%S", force=True)
    if json_of is not None:
        logging.getLogger().handlers[0].setFormatter(WorkerJsonLines(json_of))
        sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the end of a program as a line, where it would be many."""
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("worker").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))
