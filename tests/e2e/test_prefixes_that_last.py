"""Prompts on disk outlive a killed engine and a restarted worker, belong to one key, and go when they are told to."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stress.running_pool import RunningPool, children, wait_until

pytestmark = pytest.mark.mlx

MASTER = "quince-71-harbour-velvet-orbit"
PRODUCTION = {"POOL_ENV": "production", "POOL_API_KEY": MASTER, "POOL_RATE_LIMIT_ENABLED": "false"}
TOKENS = 900
BLOCKS = TOKENS // 128


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def new_key(pool: RunningPool, name: str) -> str:
    body = {"name": name, "permissions": ["chat"]}
    return str(pool.request("POST", "/admin/api-keys", body, headers=bearer(MASTER)).json()["key"])


def ask(pool: RunningPool, key: str, prompt: list[int]) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were known."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    answer = pool.post("/v1/completions", body, headers=bearer(key)).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def admin(pool: RunningPool, method: str, path: str) -> Any:
    answer = pool.request(method, path, headers=bearer(MASTER))
    assert answer.status == 200
    return answer.json()


def test_known_prompts_survive_kills_and_restarts_but_not_their_key(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same text each time; `cached_tokens` says where it came from, and 0 to whoever else asks the same."""
    shelf = tmp_path / "shelf"
    flags = ("--model-path", str(model_folder("qwen3")), "--prefix-disk-folder", str(shelf))
    pool = start_pool(flags, environment=PRODUCTION, expected="worker_lost")
    source = random.Random(1)
    prompt, later = ([source.randrange(10, 2000) for _ in range(TOKENS)] for _ in range(2))
    mine, other = new_key(pool, "mine"), new_key(pool, "other")

    text, known = ask(pool, mine, prompt)
    assert known == 0
    assert ask(pool, mine, prompt) == (text, TOKENS - 1)
    wait_until(lambda: len(list(shelf.rglob("*.safetensors"))) >= BLOCKS, what="the prompt is written")

    engine = pool.engine_pid()
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: engine not in children(pool.supervisors[0].pid))
    pool.wait_healthy()
    assert ask(pool, other, prompt) == (text, 0)
    assert ask(pool, mine, prompt) == (text, BLOCKS * 128)
    assert ask(pool, mine, prompt) == (text, TOKENS - 1)

    said, _ = ask(pool, mine, later)
    pool.supervisors[0].stop()
    pool.add_worker(flags)
    wait_until(lambda: pool.replicas(bearer(MASTER)) == 1)
    assert ask(pool, other, later) == (said, 0)
    assert ask(pool, mine, later) == (said, BLOCKS * 128)
    assert ask(pool, mine, prompt) == (text, BLOCKS * 128)
    wait_until(lambda: pool_metric(pool, "pool_worker_prefix_disk_hits") == 2, what="a beat tells of it")
    stats = admin(pool, "GET", "/admin/stats")["prefix_cache"]
    assert (stats["disk_hits"], stats["hits"]) == (2, 0)
    assert stats["lookups"] >= 3
    assert stats["disk_bytes"] > 0

    cleared = admin(pool, "POST", "/admin/cache/clear")
    assert cleared["workers"] == 1
    assert cleared["prefix_bytes"] > 0
    wait_until(lambda: list(shelf.rglob("*.safetensors")) == [], what="the folder is empty")
    assert ask(pool, mine, prompt) == (text, 0)


def pool_metric(pool: RunningPool, name: str) -> float:
    text = pool.get("/metrics", headers=bearer(MASTER)).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + "{"))
