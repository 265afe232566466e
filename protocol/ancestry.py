"""Whether the honcho that started this process still lives. A killed honcho takes nobody with it by itself.

honcho runs each line of a Procfile under a helper process of its own; that helper survives its honcho.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path


class Ancestry:
    """The helper (our parent) and honcho itself (its parent), as they were when we started."""

    def __init__(self) -> None:
        self._helper = os.getppid()
        self._honcho = parent_of(self._helper)

    def alive(self) -> bool:
        """False once either is gone."""
        if os.getppid() != self._helper:
            return False
        if self._honcho is None:
            return True
        try:
            os.kill(self._honcho, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def parent_of(pid: int, *, platform: str = sys.platform) -> int | None:
    """The parent of process `pid`; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        if platform == "linux":
            # The name in parentheses may hold anything; the fields count from behind it.
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        command = ["/bin/ps", "-o", "ppid=", "-p", str(pid)]
        return int(subprocess.run(command, capture_output=True, timeout=5, check=True).stdout)  # noqa: S603
    return None
