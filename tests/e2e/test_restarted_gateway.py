"""The gateway may be restarted under live workers: no model is loaded again, old jobs are dropped."""

import os
import re
import signal
import time
from collections.abc import Callable
from http.client import HTTPException

import pytest
from stress.running_pool import FAKE, RunningPool, wait_until

LONG = "fake: slow@0.02 tokens@5000"


def worker_uids(pool: RunningPool) -> set[str]:
    """Which engine processes the gateway knows."""
    return set(
        re.findall(r'pool_worker_engine_steps\{model="fake",worker="(\w+)"\}', pool.get("/metrics").body.decode())
    )


def serves(pool: RunningPool) -> bool:
    """Whether a chat request is answered."""
    try:
        return pool.chat("fake: tokens@3").status == 200
    except (OSError, HTTPException):
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "under load"])
def test_pool_serves_again_without_reload_when_the_gateway_is_restarted(
    start_pool: Callable[..., RunningPool],
    record: Callable[[str, object], None],
    how: signal.Signals,
    loaded: bool,
) -> None:
    """Serving again by the same engine process, freed of the old jobs."""
    pool = start_pool(FAKE, FAKE)
    uids = wait_until(lambda: found if len(found := worker_uids(pool)) == 2 else None)
    engines = {pool.engine_pid(0), pool.engine_pid(1)}
    if loaded:
        for _ in range(6):
            pool.open_chat(LONG, stream=True)
        wait_until(lambda: pool.metric("pool_worker_running_rows") == 6, what="rows run")
    began = time.monotonic()
    pool.gateway.signal(how)
    pool.gateway.wait()
    ended = time.monotonic()
    pool.start_gateway()
    wait_until(lambda: serves(pool), what="the pool serves")
    record("stopped_s", round(ended - began, 2))
    record("serving_s", round(time.monotonic() - ended, 2))
    assert {pool.engine_pid(0), pool.engine_pid(1)} == engines
    wait_until(lambda: worker_uids(pool) == uids, what="both workers are known by their old names")
    wait_until(lambda: pool.metric("pool_worker_running_rows") == 0, what="the old jobs are gone")
    assert pool.metric("pool_worker_restarts_total") == 0


def test_second_gateway_refuses_when_one_runs(start_pool: Callable[..., RunningPool]) -> None:
    """A gateway started in the run directory of another one ends with a reason, and the first one is unharmed."""
    pool = start_pool(FAKE)
    second = pool.start("second", "-m", "gateway", "--port", "0")
    assert second.wait() == 1
    assert "another gateway runs in" in second.text()
    assert serves(pool)


def test_worker_is_found_when_it_was_there_before_the_gateway(start_pool: Callable[..., RunningPool]) -> None:
    """Workers and gateway may start in any order, and a worker added later is used."""
    pool = start_pool(healthy=False)
    assert pool.get("/health").status == 503
    pool.gateway.signal(signal.SIGTERM)
    assert pool.gateway.wait() == 0
    pool.add_worker(FAKE)
    wait_until(pool.engine_pid)
    pool.start_gateway()
    pool.wait_healthy()
    pool.add_worker(FAKE)
    wait_until(lambda: pool.get("/health").json()["models"][0]["replicas"] == 2)
    os.kill(pool.engine_pid(0), signal.SIGKILL)
    assert serves(pool)
