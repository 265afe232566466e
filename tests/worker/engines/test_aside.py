"""Work on a thread beside the reception's: one at a time, in turns of tenants, as if it had been called."""

import threading
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import pytest

from worker.engines.aside import Aside

PATIENCE_S = 10.0


def finished(pieces: Generator[Future[Any], None, Any]) -> Any:
    """What is returned once all that there is to wait for is done."""
    while True:
        try:
            next(pieces).exception(timeout=PATIENCE_S)
        except StopIteration as end:
            return end.value


def test_result_and_error_come_back() -> None:
    """They are the caller's, and the next caller finds it free."""
    aside = Aside()
    assert finished(aside.run_aside("a", lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        finished(aside.run_aside("a", lambda: 1 // 0))
    assert finished(aside.run_aside("b", lambda: 8)) == 8


def test_tenants_take_turns_and_the_cancelled_never_begin() -> None:
    """One works at a time; a tenant with one call waits for one of another's many."""
    aside, go, begun = Aside(), threading.Event(), threading.Event()
    done: list[str] = []

    def slow() -> None:
        begun.set()
        assert go.wait(PATIENCE_S)
        done.append("slow")

    def work(tenant: str, name: str) -> Future[Any]:
        # The future's thread appends: only one works at a time.
        return next(aside.run_aside(tenant, lambda: done.append(name)))

    pending = [next(aside.run_aside("many", slow))]
    assert begun.wait(PATIENCE_S)
    pending += [work("many", f"many {number}") for number in range(3)]
    pending.append(work("one", "one"))
    assert pending[2].cancel()
    go.set()
    for future in pending:
        if not future.cancelled():
            future.result(timeout=PATIENCE_S)
    assert done == ["slow", "many 0", "one", "many 2"]
