"""The decoding processes of one engine: who asks for an image gets a future, and nobody else waits for it.

Two processes at most, each driven by a thread that sleeps while the process works. A tenant has one of them at a time,
so that there is always one that nobody's endless images hold.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Code, JobError
from worker.decoding.fitting import Fit
from worker.decoding.limits import NICE
from worker.decoding.process import DecoderLostError, DecodingProcess, ImageRefusedError
from worker.decoding.turns import DecodeTask, DecodeTurns
from worker.decoding.wire import Decode

PROCESSES = 2
TRIES = 2
"""For an image whose process ended for another reason than the image."""


class Decoders:
    """Decodes image files for one engine. Processes are started with the first images, and end with this object."""

    def __init__(self) -> None:
        self._turns = DecodeTurns()
        self._threads = 0
        self._lock = threading.Lock()
        self._desk, self._at_once = _Desk(nice=0), threading.Lock()
        self._end = weakref.finalize(self, self._turns.close)

    def submit_image(
        self,
        tenant: str,
        file: bytes,
        param: str,
        finish: Callable[[NDArray[np.uint8]], Any],
        *,
        low: bool = False,
        fit: Fit | None = None,
    ) -> Future[Any]:
        """Decode a file in its tenant's turn, then call `finish` with its pixels, (height, width, 3), on a thread.

        The future holds what `finish` returns, or a `JobError` that names `param`. To cancel it ends the work at once.
        """
        task = DecodeTask(tenant, file, Decode(low, fit), param, finish, Future())
        self._turns.add_image(task)
        with self._lock:
            if self._threads < PROCESSES:
                self._threads += 1
                threading.Thread(target=_serve, args=(self._turns,), name="decoding", daemon=True).start()
        return task.future

    def decode_image(self, file: bytes, param: str, *, low: bool = False) -> NDArray[np.uint8]:
        """Decode a file at once, while the caller waits, in a process of its own. Raises `JobError`.

        For files that were decoded before: that cost little, and costs as much again.
        """
        task = DecodeTask("", file, Decode(low), param, lambda pixels: pixels, Future())
        with self._at_once:
            outcome = _outcome(self._desk, task)
        if isinstance(outcome, Exception):
            raise outcome
        pixels: NDArray[np.uint8] = outcome
        return pixels


class _Desk:
    """One process at a time, and the task that it is on."""

    def __init__(self, *, nice: int = NICE) -> None:
        self._nice = nice
        self._lock = threading.Lock()
        self._process: DecodingProcess | None = None
        self._task: DecodeTask | None = None

    def decode(self, task: DecodeTask) -> NDArray[np.uint8]:
        """Send a file and wait for what comes of it. Raises `ImageRefusedError`, `DecoderLostError`, `OSError`."""
        process = self._begin(task)
        try:
            return process.decode_image(task.request, task.file)
        finally:
            with self._lock:
                self._task = None
                if not process.alive:
                    self._process = None

    def _begin(self, task: DecodeTask) -> DecodingProcess:
        with self._lock:
            process = self._process = self._process or DecodingProcess(nice=self._nice)
            self._task = task
        # Called at once where that has happened already.
        task.future.add_done_callback(lambda future: self._stop(task) if future.cancelled() else None)
        return process

    def _stop(self, task: DecodeTask) -> None:
        with self._lock:
            if self._task is task and self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()


def _serve(turns: DecodeTurns) -> None:
    """Decode what comes until there will be no more. Holds no `Decoders`: their end is what ends this."""
    desk = _Desk()
    while (task := turns.take_image()) is not None:
        outcome = _outcome(desk, task)
        turns.give_back(task.tenant)
        # Where it was cancelled, nobody asks.
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)
        del task, outcome
    desk.close()


def _outcome(desk: _Desk, task: DecodeTask) -> Any:
    """Return what came of a task, or the exception that it ended with."""
    lost: Exception | None = None
    for _ in range(TRIES):
        if task.future.cancelled():
            return None
        try:
            return task.finish(desk.decode(task))
        except ImageRefusedError as refused:
            return JobError(Code.INVALID_REQUEST, str(refused), task.param)
        except (DecoderLostError, OSError) as error:
            lost = error
        except Exception as error:
            return error
    failure = JobError(Code.ENGINE_ERROR, f"The image could not be decoded: {lost}.", task.param)
    failure.__cause__ = lost
    return failure
