"""What health and metrics say of models that were unloaded, whose workers have left, and that are forgotten."""

import signal
from collections.abc import Callable

from stress.running_pool import FAKE, RunningPool, wait_until

HEALTHS = ("/health", "/health/ready")
OTHER = (*FAKE, "--served-name", "other")


def healths(pool: RunningPool) -> set[int]:
    return {pool.get(path).status for path in HEALTHS}


def states(pool: RunningPool) -> dict[str, str]:
    return {model["id"]: model["state"] for model in pool.get("/health").json()["models"]}


def samples(pool: RunningPool, name: str) -> dict[str, float]:
    """The values of a metric, by model."""
    lines = [line for line in pool.get("/metrics").body.decode().splitlines() if line.startswith(f'{name}{{model="')]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def test_health_is_green_when_a_model_was_unloaded_on_purpose(start_pool: Callable[..., RunningPool]) -> None:
    """200 with one model stopped and with all; 503 again from the order to load until it is up."""
    pool = start_pool(FAKE, OTHER)
    wait_until(lambda: set(states(pool).values()) == {"ready"} and len(states(pool)) == 2)
    for name, left in (("other", {"fake": 1.0}), ("fake", {})):
        # A worker may be known a moment before its supervisor is.
        wait_until(lambda name=name: pool.post(f"/admin/models/{name}/unload", {"grace": 0}).status == 200)
        wait_until(lambda name=name: states(pool)[name] == "stopped")
        assert healths(pool) == {200}
        assert samples(pool, "pool_model_up") == left
        assert pool.get(f"/health/{name}").status == 503
    assert pool.chat("hello", model="other").error["code"] == "model_not_ready"
    assert pool.post("/admin/models/other/load", None).status == 200
    pool.wait_healthy()
    assert states(pool) == {"fake": "stopped", "other": "ready"}
    assert pool.chat("hello", model="other").status == 200


def test_health_is_green_when_a_worker_was_told_to_end(start_pool: Callable[..., RunningPool]) -> None:
    """Its model is retired, which nobody misses; it can be forgotten, and is not listed then."""
    pool = start_pool(FAKE, OTHER)
    wait_until(lambda: set(states(pool).values()) == {"ready"} and len(states(pool)) == 2)
    assert pool.request("DELETE", "/admin/models/other").error["code"] == "model_in_use"
    pool.supervisors[1].stop()
    wait_until(lambda: states(pool)["other"] == "retired")
    assert healths(pool) == {200}
    assert samples(pool, "pool_model_up") == {"fake": 1.0}
    assert pool.request("DELETE", "/admin/models/other").json() == {"model": "other", "act": "forget", "replicas": 0}
    assert states(pool) == {"fake": "ready"}
    assert [model["id"] for model in pool.get("/v1/models").json()["data"]] == ["fake"]
    assert pool.request("DELETE", "/admin/models/other").status == 404
    pool.add_worker(OTHER)
    wait_until(lambda: states(pool).get("other") == "ready")


def test_health_is_red_until_a_lost_model_is_forgotten(start_pool: Callable[..., RunningPool]) -> None:
    """A killed supervisor tells nobody why: its model is missed, until somebody says otherwise."""
    pool = start_pool(FAKE, OTHER)
    wait_until(lambda: set(states(pool).values()) == {"ready"} and len(states(pool)) == 2)
    pool.supervisors[1].signal(signal.SIGKILL)
    wait_until(lambda: states(pool)["other"] == "lost")
    assert healths(pool) == {503}
    assert samples(pool, "pool_model_up") == {"fake": 1.0, "other": 0.0}
    assert pool.request("DELETE", "/admin/models/other").status == 200
    assert healths(pool) == {200}
    assert samples(pool, "pool_model_up") == {"fake": 1.0}


def test_health_is_green_again_when_a_mistyped_model_was_removed(start_pool: Callable[..., RunningPool]) -> None:
    """Red while its engine can't start; green once its worker was told to end."""
    pool = start_pool(
        FAKE,
        ("--model-path", "/tmp/no-such-model", "--served-name", "typo"),
        healthy=False,
        expected="Traceback|no-such",
    )
    wait_until(lambda: states(pool).get("typo") in ("backoff", "crash_loop", "starting"))
    wait_until(lambda: states(pool).get("fake") == "ready")
    wait_until(lambda: pool.get("/health").status == 503)
    pool.supervisors[1].stop()
    wait_until(lambda: states(pool)["typo"] == "retired")
    assert healths(pool) == {200}
