"""One decoding process as its engine holds it: started, asked, killed. Keeps nothing that a fresh one would miss."""

import os
import signal
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker import image_files as images
from worker.decoding.limits import MEMORY_BYTES, NICE, TOO_MUCH_MEMORY, WALL_S
from worker.decoding.wire import Decode, Decoded, fill, receive, send

END_S = 5.0
"""From the end of a process's words to its own."""
BROKEN = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
"""Signals that a decoder ends with which a file has broken."""


class ImageRefusedError(Exception):
    """The file is no good, or takes too much. The message is for its sender."""


class DecoderLostError(Exception):
    """The process ended, or was killed, for a reason that has nothing to do with the file."""


class DecodingProcess:
    """`decode` may be called by one thread at a time; `kill` by any."""

    def __init__(self, *, nice: int = NICE, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start it, at a lower priority where `nice` is above 0. Raises `OSError`."""
        self._connection, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                [sys.executable, "-m", "worker.decoding.child", *map(str, (theirs.fileno(), nice, memory_bytes))],
                cwd=Path(__file__).parents[2],
                # Nothing of ours, least of all keys: only where its modules are.
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._connection.settimeout(WALL_S)
        # Also where nobody says so: garbage takes its process along.
        self._end = weakref.finalize(self, _end, self._process, self._connection)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def decode_image(self, request: Decode, file: bytes) -> NDArray[np.uint8]:
        """Pixels of a file, RGB, shape (height, width, 3). Raises `ImageRefusedError`, `DecoderLostError`.

        After `DecoderLostError`, and after any refusal that leaves `alive` false, the process is gone.
        """
        try:
            send(self._connection, request, file)
            head, size_bytes = receive(self._connection, images.MAX_PIXELS * 3)
            answer = msgspec.msgpack.decode(head, type=Decoded)
            if answer.error:
                raise ImageRefusedError(answer.error)
            pixels = np.empty(size_bytes, dtype=np.uint8)
            fill(self._connection, pixels.data)
            return pixels.reshape(answer.height, answer.width, 3)
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise self._loss() from error

    def _loss(self) -> ImageRefusedError | DecoderLostError:
        """Why the process ended, or that it did not answer in time, and is killed."""
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            return DecoderLostError("no answer in time")
        if status == TOO_MUCH_MEMORY:
            return ImageRefusedError("The image takes too much memory to decode.")
        if status == -signal.SIGPROF:
            return ImageRefusedError("The image takes too long to decode.")
        if -status in BROKEN:
            return ImageRefusedError("The image can't be decoded: the file is damaged.")
        return DecoderLostError(f"exit status {status}")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now."""
        self._process.kill()


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    process.kill()
    process.wait()
    connection.close()
