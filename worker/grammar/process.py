"""One grammar process as its engine holds it: started, asked, killed. Keeps no state that a fresh one would miss."""

import mmap
import os
import socket
import subprocess
import sys
import tempfile
import weakref
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.config import grammar_environment
from worker.grammar.wire import Compile, Compiled, Specials, Status, Step, Vocabulary

START_S = 60.0
"""For a tokenizer of a quarter million tokens on a busy machine."""


class ProcessLostError(Exception):
    """The process ended, or did not answer in time and was killed."""


class GrammarProcess:
    """`compile` and `step` may be called by one thread each; `kill` by any."""

    def __init__(self, vocabulary: Vocabulary, *, slots: int, nice: int = 0) -> None:
        """Start it, at a lower priority where `nice` is above 0. Raises `OSError`, `ProcessLostError`."""
        words = (vocabulary.size + 31) // 32
        with tempfile.TemporaryFile() as file:
            file.truncate(slots * words * 4 + 4)
            self._memory = mmap.mmap(file.fileno(), 0)
            self._start(file.fileno(), nice)
        everything = np.frombuffer(self._memory, dtype=np.uint32)
        self.masks: NDArray[np.uint32] = everything[:-1].reshape(slots, words)
        self._at_work = everything[-1:].view(np.int32)
        self._send(self._compiling, vocabulary)
        answer = msgspec.msgpack.decode(self._receive(self._compiling, START_S), type=Specials)
        self.error = answer.error
        self.specials = frozenset(answer.ids)

    def _start(self, memory_fd: int, nice: int) -> None:
        ours = []
        theirs = []
        for _ in range(2):
            mine, other = socket.socketpair()
            ours.append(mine)
            theirs.append(other)
        read_end, write_end = os.pipe()
        inherited = (*(end.fileno() for end in theirs), read_end, memory_fd)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                [sys.executable, "-m", "worker.grammar.child", *map(str, inherited), str(nice)],
                cwd=Path(__file__).parents[2],
                env=grammar_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
            for end in theirs:
                end.close()
        # Also where nobody says so: garbage takes its process along.
        self._end = weakref.finalize(self, _end, self._process, write_end)
        self._compiling, self._steps = (Connection(end.detach()) for end in ours)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def at_work(self) -> int:
        """The slot whose mask it is computing, or -1."""
        return int(self._at_work[0])

    def compile(self, grammar: str, timeout_s: float) -> str:
        """What is wrong with a grammar, or nothing. Raises `ProcessLostError`."""
        self._send(self._compiling, Compile(grammar))
        return msgspec.msgpack.decode(self._receive(self._compiling, timeout_s), type=Compiled).error

    def step(self, step: Step, timeout_s: float) -> list[Status]:
        """Take tokens in; the masks are in `masks` then. Raises `ProcessLostError`."""
        self._send(self._steps, step)
        return [Status(status) for status in self._receive(self._steps, timeout_s)]

    def kill(self) -> None:
        """End it now."""
        self._end()

    def _send(self, connection: Connection, message: msgspec.Struct) -> None:
        try:
            connection.send_bytes(msgspec.msgpack.encode(message))
        except OSError as error:
            raise ProcessLostError from error

    def _receive(self, connection: Connection, timeout_s: float) -> bytes:
        try:
            if connection.poll(timeout_s):
                return connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise ProcessLostError from error
        self.kill()
        raise ProcessLostError


def _end(process: "subprocess.Popen[bytes]", lifeline: int) -> None:
    process.kill()
    process.wait()
    os.close(lifeline)
