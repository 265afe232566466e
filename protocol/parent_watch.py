"""Whether the honcho that started this process still lives. A killed honcho takes nobody with it by itself.

honcho runs each line of a Procfile under a helper process of its own; that helper survives its honcho. Units that
`honcho export` wrote have honcho's variables, too, but another parent: systemd, supervisord and the like see to their
processes themselves, and need no watch.
"""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

HELPER = re.compile(r"(?:^|[/ ])honcho(?: |$)|from multiprocessing[.]|--multiprocessing-fork")
"""Command lines of honcho, which its forked helpers share, and of those that Python starts anew or by a server."""


class ParentWatch:
    """The helper (our parent) and honcho itself (its parent), as they were when we started."""

    def __init__(self) -> None:
        self._helper = os.getppid()
        self._helped = HELPER.search(command_of(self._helper)) is not None
        self._honcho = parent_of(self._helper)
        self._exact = sys.platform == "linux"
        # An orphaned helper belongs to init: then honcho was killed before we had started.
        self._late = self._honcho == 1 and "honcho" not in command_of(1)

    def alive(self) -> bool:
        """Return False once either is gone; True for ever where no honcho started this process."""
        if not self._helped:
            return True
        if self._late or os.getppid() != self._helper:
            return False
        if self._honcho is None:
            return True
        if self._exact:
            # A number can be given to another process; who the helper belongs to can't be mistaken.
            return parent_of(self._helper) == self._honcho
        try:
            os.kill(self._honcho, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def parent_of(pid: int, *, platform: str = sys.platform) -> int | None:
    """Return the parent of process `pid`; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        if platform == "linux":
            # The name in parentheses may hold anything; the fields count from behind it.
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return int(_ps("ppid=", pid))
    return None


def command_of(pid: int, *, platform: str = sys.platform) -> str:
    """Return the command line of process `pid`; empty where the system does not tell."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if platform == "linux":
            # Small images have no `ps`, and a busy machine is slow to start one.
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return _ps("args=", pid)
    return ""


def _ps(column: str, pid: int) -> str:
    command = ["/bin/ps", "-o", column, "-p", str(pid)]
    # An environment of its own: ours may hold keys, and anybody may look at a process's while it runs.
    return subprocess.run(command, capture_output=True, timeout=5, check=True, text=True, env={}).stdout  # noqa: S603
