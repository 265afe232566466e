"""A spare engine process: everything is imported, nothing is loaded, nothing is open. It waits to be needed.

Importing takes longer than loading a small model; an engine that dies is replaced without it. A spare must never stand
in with other code than a fresh process would run.
"""

import os
import sys
from pathlib import Path

from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.lifeline import GO, IS_SPARE
from worker.process.main import engine_type

EXIT_USELESS = 3
"""The engine can't even be imported: whoever starts next with the same settings tells why."""


def wait(config: WorkerConfig, *, lifeline_fd: int) -> bool:
    """Import what the engine needs, say so, and wait for the word to begin; end the process where none comes.

    Returns whether what was imported is still what the disk holds: a process that was upgraded has to start anew.
    """
    try:
        engine_type(config)
    except EngineLoadError:
        sys.exit(EXIT_USELESS)
    before = _files()
    os.write(lifeline_fd, IS_SPARE)
    if os.read(lifeline_fd, len(GO)) != GO:
        sys.exit(0)
    return before == _files()


def _files() -> dict[str, tuple[int, int, int] | None]:
    """Return what every imported module was read from: its file, told from any other of that name."""
    paths = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    return {path: _identity(path) for path in paths if isinstance(path, str)}


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
