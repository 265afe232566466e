"""Work of a preparation that takes long in one call: on a thread beside, while the preprocessor prepares other jobs."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from worker.turns import TenantTurns

Result = TypeVar("Result")


class Aside:
    """One such call at a time; tenants take turns. Safe to use from any thread.

    Two at once would take both cores of a small machine from the engine, and twice the memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: TenantTurns[Callable[[], None]] = TenantTurns()
        self._busy = False

    def run_aside(self, tenant: str, work: Callable[[], Result]) -> Generator[Future[Any], None, Result]:
        """Yield what there is to wait for; returns what `work` returns, raises what it raises.

        Cancelled before its turn, `work` is not begun.
        """
        pending: Future[Result] = Future()

        def call() -> None:
            if not pending.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:
                pending.set_exception(error)
            else:
                pending.set_result(result)

        with self._lock:
            self._calls.add_item(tenant, call)
            start, self._busy = not self._busy, True
        if start:
            threading.Thread(target=self._serve, name="aside", daemon=True).start()
        yield pending
        return pending.result()

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._busy = False
                    return
                call = self._calls.pop_next()
            call()
