"""How a supervisor hands over to its engine process: the command line it starts, and what reads it there.

Both ends are here so that they can't drift apart. This module must not import an engine before the hand-over.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from worker import logs
from worker.config import WorkerConfig

PR_SET_PDEATHSIG = 1
SPARE = "spare"


def engine_command(config: WorkerConfig, worker_uid: str, lifeline_fd: int, *, spare: bool = False) -> list[str]:
    """Return the argument list of the engine process. Nothing in a configuration is secret, so `ps` may show it.

    A `spare` imports what an engine needs, says so, and begins when it is told to.
    """
    text = msgspec.json.encode(config, enc_hook=str).decode()
    flags = [SPARE] if spare else []
    return [sys.executable, "-m", "worker.process.launch", text, worker_uid, str(lifeline_fd), str(os.getpid()), *flags]


def read_config(text: str) -> WorkerConfig:
    """Read what `engine_command` wrote as its first argument."""
    return msgspec.json.decode(text, type=WorkerConfig, dec_hook=_read_path)


def _read_path(_type: type, value: Any) -> Path:
    return Path(value)


def _die_with_parent(parent_pid: int) -> None:
    """Linux: the kernel kills us when the supervisor dies, even where no thread of ours can run any more.

    Elsewhere (and in a process that still runs) the lifeline pipe does it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(0)


def main() -> int:
    """Enter the engine process."""
    config_text, worker_uid, lifeline_fd, parent_pid, *flags = sys.argv[1:]
    _die_with_parent(int(parent_pid))
    config = read_config(config_text)
    logs.configure(config.log_level, json_of=config.served_name if config.log_json else None)
    if flags == [SPARE]:
        from worker.process import spare

        if not spare.wait(config, lifeline_fd=int(lifeline_fd)):
            command = [sys.executable, "-m", "worker.process.launch", *sys.argv[1:-1]]
            os.execv(sys.executable, command)  # noqa: S606 - ourselves, anew
    from worker.process import main as process

    return process.main(config, worker_uid=worker_uid, lifeline_fd=int(lifeline_fd))


if __name__ == "__main__":
    sys.exit(main())
