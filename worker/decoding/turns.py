"""Whose image is decoded next: tenants take turns, and none has more than one image in work. Knows no decoder."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.decoding.wire import Decode


class DecodeTask(msgspec.Struct, frozen=True, eq=False):
    """One image to be decoded. `finish` makes of its pixels, (height, width, 3), what `future` is to hold.

    `param` is the image's name in errors. Whoever needs the image no longer cancels the future.
    """

    tenant: str
    file: bytes
    request: Decode
    param: str
    finish: Callable[[NDArray[np.uint8]], Any]
    future: Future[Any]


class DecodeTurns:
    """Tasks of all tenants; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: OrderedDict[str, deque[DecodeTask]] = OrderedDict()
        self._busy: set[str] = set()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def add_image(self, task: DecodeTask) -> None:
        """Queue a task behind those of its tenant, until its future is cancelled."""
        with self._changed:
            self._lines.setdefault(task.tenant, deque()).append(task)
            self._changed.notify()
        task.future.add_done_callback(lambda future: self._drop(task) if future.cancelled() else None)

    def take_image(self) -> DecodeTask | None:
        """Wait for the next task; `give_back` has to follow. None once this is closed."""
        with self._changed:
            while not self._closed:
                for tenant in self._lines:
                    if tenant not in self._busy:
                        return self._pop(tenant)
                self._changed.wait()
        return None

    def give_back(self, tenant: str) -> None:
        """Note that a tenant's task is done: its next one may be taken."""
        with self._changed:
            self._busy.discard(tenant)
            self._changed.notify()

    def close(self) -> None:
        """Let everybody go who waits in `take`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pop(self, tenant: str) -> DecodeTask:
        line = self._lines[tenant]
        task = line.popleft()
        self._busy.add(tenant)
        if line:
            self._lines.move_to_end(tenant)
        else:
            del self._lines[tenant]
        return task

    def _drop(self, task: DecodeTask) -> None:
        with self._changed:
            line = self._lines.get(task.tenant, ())
            if task in line and isinstance(line, deque):
                line.remove(task)
                if not line:
                    del self._lines[task.tenant]
