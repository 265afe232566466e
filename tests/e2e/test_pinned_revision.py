"""A model of the hub, served by a whole pool: one snapshot for all replicas and restarts."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from stress.running_pool import RunningPool, wait_until

from tests.support.hub_server import HubServer


@pytest.mark.mlx
def test_replicas_and_restarts_serve_one_snapshot_when_the_hub_moves_on(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A real model: its killed engine comes back, and another joins, with what the run began with, offline."""
    model = model_folder("qwen3")
    flags = ("--model-path", HubServer.NAME, "--served-name", "m")
    with HubServer() as server:
        first = server.publish(model)
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        pool = start_pool(flags, environment=environment)
        server.publish(model)
        server.asked.clear()
        os.kill(pool.engine_pid(), signal.SIGKILL)
        pool.add_worker(flags)
        wait_until(lambda: pool.replicas() == 2, what="both serve")
        told = pool.get("/admin/workers").json()["data"]
        assert [worker["revision"] for worker in told] == [first, first]
        assert server.asked == []
    assert pool.chat("hello", max_tokens=2).status == 200
