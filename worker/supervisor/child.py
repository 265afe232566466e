"""One engine process as its supervisor holds it: a session of its own, a lifeline, three threads that wait.

The lifeline's other end closes when this process dies, however it dies, and the engine leaves with it. The engine says
how far it has come by single bytes on it, so that this is known without a gateway; a spare is told on it to begin.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from worker.logs import message_of_line

PIPE_BYTES = 65_536
LAST_LINE_CHARS = 300
TAIL_WAIT_S = 1.0
"""How long the news of a death may wait for the last words. They are in the pipe by then, but whoever reads our stderr
may have stopped reading, or a grandchild may never stop talking."""


class Child:
    """A started engine process. `on_exit(code, last_line)` is called once, on a thread of the child's own."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        environment: Mapping[str, str],
        on_exit: Callable[[int, str], None],
        on_word: Callable[[bytes], None] = lambda _: None,
        encode_output: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Start it; `command` gets the lifeline's file descriptor. Raises `OSError` where the system refuses.

        `on_word` is called with each byte that the engine says (see `worker.process.launch`), on another thread.
        `encode_output` makes lines of our log of what it writes to stderr.
        """
        self._lifeline, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                command(theirs.fileno()),
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            self._lifeline.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._on_exit = on_exit
        self._on_word = on_word
        self._encode_output = encode_output
        self._last_line = ""
        self._heard = threading.Event()
        self._ended, self._ending = socket.socketpair()
        self._listener = threading.Thread(target=self._listen, name="lifeline", daemon=True)
        self._listener.start()
        threading.Thread(target=self._copy, args=(self._process.stderr,), name="stderr", daemon=True).start()
        threading.Thread(target=self._wait, name="wait", daemon=True).start()

    def terminate(self) -> None:
        """Ask it to drain."""
        self._process.terminate()

    def send_word(self, word: bytes) -> bool:
        """Say a byte on its lifeline; False if nobody is there any more to hear it."""
        try:
            return self._lifeline.send(word, socket.MSG_DONTWAIT) == len(word)
        except OSError:
            return False

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
        self._ending.close()
        # What it said just before its end still counts, on stderr as on its lifeline.
        self._heard.wait(TAIL_WAIT_S)
        self._listener.join(TAIL_WAIT_S)
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_RDWR)
        self._lifeline.close()
        self._on_exit(code, self._last_line)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            # One of its own children may hold the other end open, but has nothing to say.
            while self._more(self._lifeline.fileno()) and (word := self._lifeline.recv(1)):
                self._on_word(word)

    def _more(self, fd: int) -> bool:
        """Wait until there is something to read (or its end), True; or nothing, and the process has ended: False.

        All that it wrote is there to be read before its end is known here, so False means that all has been read.
        """
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        return fd in dict(poll.poll())

    def _copy(self, stream: IO[bytes]) -> None:
        """Pass stderr on, whole lines at a time, and remember the last one: it often is the reason of a death."""
        with stream:
            rest = b""
            while True:
                if not self._heard.is_set() and not self._more(stream.fileno()):
                    # Whoever goes on writing now is a grandchild.
                    self._pass_on(rest)
                    rest = b""
                    self._heard.set()
                if not (chunk := os.read(stream.fileno(), PIPE_BYTES)):
                    break
                rest += chunk
                end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
                if not end and len(rest) > PIPE_BYTES:
                    end = len(rest)
                self._pass_on(rest[:end])
                rest = rest[end:]
            self._pass_on(rest)
        # Nobody else asks for it then.
        self._listener.join()
        self._ended.close()
        self._heard.set()

    def _pass_on(self, data: bytes) -> None:
        lines = [line for line in data.splitlines() if line.strip()]
        if lines:
            self._last_line = message_of_line(lines[-1].decode(errors="replace").strip())[-LAST_LINE_CHARS:]
        if self._encode_output is not None:
            data = self._encode_output(data)
        # Nobody reads our stderr any more: the engine must not be blocked or ended by that.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(sys.stderr.fileno(), data) :]
