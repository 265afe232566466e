"""One engine process as its supervisor holds it: a session of its own, a lifeline pipe, two threads that wait.

The pipe's other end closes when this process dies, however it dies, and the engine leaves with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

PIPE_BYTES = 65_536
LAST_LINE_CHARS = 300
TAIL_WAIT_S = 0.05
"""How long the news of a death may wait for the last words: a grandchild can hold stderr open for ever."""


class Child:
    """A started engine process. `on_exit(code, last_line)` is called once, on a thread of the child's own."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        environment: Mapping[str, str],
        on_exit: Callable[[int, str], None],
    ) -> None:
        """Start it; `command` gets the lifeline's file descriptor. Raises `OSError` where the system refuses."""
        read_end, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                command(read_end),
                env=environment,
                pass_fds=(read_end,),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
        self.pid = self._process.pid
        self._on_exit = on_exit
        self._last_line = ""
        self._copier = threading.Thread(target=self._copy, args=(self._process.stderr,), name="stderr", daemon=True)
        self._copier.start()
        threading.Thread(target=self._wait, name="wait", daemon=True).start()

    def terminate(self) -> None:
        """Ask it to drain."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _wait(self) -> None:
        code = self._process.wait()
        # What it left behind (a compiler, for one) has nobody to work for any more.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._copier.join(TAIL_WAIT_S)
        os.close(self._lifeline)
        self._on_exit(code, self._last_line)

    def _copy(self, stream: IO[bytes]) -> None:
        """Pass stderr on, whole lines at a time, and remember the last one: it often is the reason of a death."""
        with stream:
            rest = b""
            while chunk := os.read(stream.fileno(), PIPE_BYTES):
                rest += chunk
                end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
                if not end and len(rest) > PIPE_BYTES:
                    end = len(rest)
                self._pass_on(rest[:end])
                rest = rest[end:]
            self._pass_on(rest)

    def _pass_on(self, data: bytes) -> None:
        lines = [line for line in data.splitlines() if line.strip()]
        if lines:
            self._last_line = lines[-1].decode(errors="replace").strip()[-LAST_LINE_CHARS:]
        # Nobody reads our stderr any more: the engine must not be blocked or ended by that.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(sys.stderr.fileno(), data) :]
