"""Grammar processes as their engine holds them: started, asked, killed. Keeps no state that a fresh one would miss."""

import itertools
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.config import grammar_environment
from worker.grammar.compiling.wire import Compile, Compiled, Follow, Specials, Status, Step, TokenTable

START_S = 120.0
"""For a tokenizer of a quarter million tokens on a busy machine."""
STEP_S = 10.0
"""A step that takes longer, by the clock on the wall, is asked again of another process: this one stands still. What
takes too much processor time ends long before."""
ORDER = struct.Struct("<BBI")
FORK, KILL = 0, 1


class ProcessLostError(Exception):
    """The process ended; or, where it `stood_still`, did not answer in time and was killed."""

    def __init__(self, *, stood_still: bool = False) -> None:
        super().__init__("it stood still" if stood_still else "it ended")
        self.stood_still = stood_still


class ForkServerHandle:
    """What an engine has of its `worker.grammar.compiling.fork_server`. Any thread may call `fork_process`."""

    def __init__(self, vocabulary: TokenTable, tokenizer: IO[bytes], *, slots: int) -> None:
        """Start it; `tokenizer` is a file that holds the text of a `tokenizer.json`.

        Raises `OSError`, `ProcessLostError`.
        """
        self._slots = slots
        self._words = (vocabulary.size + 31) // 32
        self._numbers = itertools.count(1)
        environment = grammar_environment()
        # A matrix library that an engine preloads would start threads, which no fork may have.
        environment.pop("LD_PRELOAD", None)
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), tokenizer.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                [sys.executable, "-m", "worker.grammar.compiling.fork_server", *map(str, inherited)],
                cwd=Path(__file__).parents[3],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
            )
        self._orders = ours
        # Also where nobody says so: garbage takes its process along.
        self._end = weakref.finalize(self, _end, self._process, ours)
        line = Connection(os.dup(ours.fileno()))
        try:
            line.send_bytes(msgspec.msgpack.encode(vocabulary))
            if not line.poll(START_S):
                raise ProcessLostError(stood_still=True)
            answer = msgspec.msgpack.decode(line.recv_bytes(), type=Specials)
        except (EOFError, OSError) as error:
            self._end()
            raise ProcessLostError from error
        except ProcessLostError:
            self._end()
            raise
        finally:
            line.close()
        ours.setblocking(False)
        self.error = answer.error
        self.specials = frozenset(answer.ids)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def fork_process(self, *, nice: int = 0) -> "GrammarProcess":
        """Fork a process for one grammar, which is compiled at the lower priority `nice`. Raises `ProcessLostError`."""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        try:
            with theirs, tempfile.TemporaryFile() as file:
                file.truncate(self._slots * self._words * 4 + 4)
                memory = mmap.mmap(file.fileno(), 0)
                socket.send_fds(self._orders, [ORDER.pack(FORK, nice, number)], [theirs.fileno(), file.fileno()])
        except OSError as error:
            ours.close()
            raise ProcessLostError from error
        return GrammarProcess(ours, memory, slots=self._slots, kill=lambda: _order(self._orders, KILL, number))

    def kill(self) -> None:
        """End it now, with all that it has forked."""
        self._end()


class GrammarProcess:
    """A process that compiles one grammar, then follows it. For one thread at a time; `kill` for any."""

    def __init__(self, line: socket.socket, memory: mmap.mmap, *, slots: int, kill: Callable[[], None]) -> None:
        everything = np.frombuffer(memory, dtype=np.uint32)
        self.masks: NDArray[np.uint32] = everything[:-1].reshape(slots, -1)
        self.free = list(range(slots))
        self.following: dict[int, Any] = {}
        """By slot, the rows (constraints) whose masks are computed here."""
        self.pid = 0
        """Known once it has answered."""
        self.closed: list[int] = []
        """Slots that the process may forget."""
        self._at_work = everything[-1:].view(np.int32)
        self._at_work[0] = -1
        # Reads and writes then fail by themselves after that time, and cost nothing more.
        limit = struct.pack("ll", int(STEP_S), int(STEP_S % 1 * 1e6))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._line = Connection(line.detach())
        self._end = weakref.finalize(self, _leave, self._line, kill)

    @property
    def at_work(self) -> int:
        """The slot whose mask it is computing, or -1."""
        return int(self._at_work[0])

    @property
    def alive(self) -> bool:
        """Whether it may still be asked, as far as anybody has noticed."""
        return self._end.alive

    def send_request(self, request: Compile) -> None:
        """Have a grammar compiled; `read_answer` tells what came of it. Raises `ProcessLostError`."""
        self._send(msgspec.msgpack.encode(request))

    def read_answer(self, wait_s: float) -> Compiled | None:
        """Return what came of it; None where that is not known yet. Raises `ProcessLostError`."""
        try:
            if not self._line.poll(wait_s):
                return None
        except OSError as error:
            raise ProcessLostError from error
        compiled = msgspec.msgpack.decode(self._receive(), type=Compiled)
        self.pid = compiled.pid
        return compiled

    def begin_step(self, follow: list[Follow]) -> None:
        """Have a step of these rows taken; `finish_step` waits for it. Raises `ProcessLostError`."""
        closed, self.closed = self.closed, []
        self._send(msgspec.msgpack.encode(Step(follow, closed)))

    def finish_step(self) -> list[Status]:
        """Return how they stand; the masks are in `masks` now. Raises `ProcessLostError`."""
        return [Status(status) for status in self._receive()]

    def kill(self) -> None:
        """End it now."""
        self._end()

    def _send(self, frame: bytes) -> None:
        try:
            self._line.send_bytes(frame)
        except BlockingIOError as error:
            self.kill()
            raise ProcessLostError(stood_still=True) from error
        except OSError as error:
            self.kill()
            raise ProcessLostError from error

    def _receive(self) -> bytes:
        try:
            return self._line.recv_bytes()
        except BlockingIOError as error:
            self.kill()
            raise ProcessLostError(stood_still=True) from error
        except (EOFError, OSError) as error:
            self.kill()
            raise ProcessLostError from error


def _order(orders: socket.socket, what: int, number: int) -> None:
    # Where it can't be said, its end of the socket tells a child that rests; one that works has bounds of its own.
    with suppress(OSError):
        orders.send(ORDER.pack(what, 0, number))


def _leave(line: Connection, kill: Callable[[], None]) -> None:
    line.close()
    kill()


def _end(process: "subprocess.Popen[bytes]", orders: socket.socket) -> None:
    # Its children are its own to end, so it is told first; and then it does not take long.
    orders.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.kill()
    process.wait()
