"""Engines come, go and are replaced under load, and no request notices."""

import threading
from collections.abc import Callable

from stress.clients import Client, ParallelClients
from stress.fake_answers import fake_answer
from stress.running_pool import FAKE, ROOT, RunningPool, chat_body, wait_until

PLUGIN = {"gateway": ("--plugins", "stress.fleet_routes"), "environment": {"PYTHONPATH": str(ROOT / "scripts")}}


class Load:
    """Clients that ask again and again until told to stop."""

    def __init__(self, pool: RunningPool, clients: int = 8) -> None:
        self.done: list[Client] = []
        self._pool = pool
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(at,), daemon=True) for at in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, at: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            body = chat_body(f"fake: slow@0.01 tokens@{30 + at} {at} {number}", stream=bool(at % 2))
            self.done += ParallelClients(self._pool, [body]).join()

    def stop(self) -> None:
        """No more requests; every one has to have been answered in full."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert [client.code for client in self.done if client.code or not client.well_formed] == []
        assert [client.text() for client in self.done] == [fake_answer(client.body) for client in self.done]


def test_nobody_fails_when_a_model_is_scaled_up_and_down(start_pool: Callable[..., RunningPool]) -> None:
    """1, 3, 1 replicas under load: none failed, and what is not wanted any more is gone."""
    pool = start_pool(FAKE, **PLUGIN)
    load = Load(pool)
    assert pool.post("/test/scale/3", {}).status == 200
    wait_until(lambda: pool.replicas() == 3)
    assert len(pool.pids()) == 5
    assert pool.post("/test/scale/1", {}).status == 200
    wait_until(lambda: pool.replicas() == 1 and len(pool.pids()) == 3)
    load.stop()
    wait_until(pool.idle)
    assert pool.post("/test/scale/0", {}).status == 200
    wait_until(lambda: pool.get("/health").json()["models"][0]["state"] == "stopped")
    assert pool.chat("hello").error["code"] == "model_not_ready"
    assert pool.post("/test/scale/1", {}).status == 200
    pool.wait_healthy()


def test_nobody_fails_when_engines_are_replaced_one_after_the_other(start_pool: Callable[..., RunningPool]) -> None:
    """A rolling restart under load, of two supervisors with one served name; both are other processes then."""
    pool = start_pool(FAKE, FAKE, **PLUGIN)
    wait_until(lambda: pool.replicas() == 2)
    before = {pool.engine_pid(0), pool.engine_pid(1)}
    load = Load(pool)
    assert pool.post("/test/roll", {}).status == 200
    assert pool.replicas() == 2
    assert not before & {pool.engine_pid(0), pool.engine_pid(1)}
    load.stop()
    wait_until(pool.idle)
