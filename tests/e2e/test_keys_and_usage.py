"""A gateway that asks for keys, as a process: what it counts, what a kill leaves, what the logs never hold."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stress.key_commands import MASTER, PRODUCTION, bearer, keys, known, metric, used
from stress.running_pool import FAKE, HttpAnswer, RunningPool, chat_body, wait_until
from stress.sse_reader import read_stream


def ask(pool: RunningPool, key: str, content: str, **fields: Any) -> HttpAnswer:
    return pool.post("/v1/chat/completions", chat_body(content, **fields), headers=bearer(key))


def test_settled_tokens_are_those_computed_when_clients_leave_and_a_worker_is_killed(
    start_pool: Callable[..., RunningPool],
) -> None:
    """Whole answers, streams, texts, clients that left, a dead engine, refusals: the sum is what was computed."""
    pool = start_pool(FAKE, environment=PRODUCTION, expected="worker_lost")
    key = keys(pool, "create", "counted", "--burst", "0", "--rpm", "0", "--tpm", "1000000")
    wait_until(lambda: known(pool, key))
    tokens = requests = 0
    for count in (1, 5, 40):
        answer = ask(pool, key, f"fake: tokens@{count}", n=2).json()
        streamed = read_stream(
            ask(pool, key, f"fake: tokens@{count}", stream=True, stream_options={"include_usage": True}).body
        )
        tokens += answer["usage"]["total_tokens"] + streamed.frames[-1]["usage"]["total_tokens"]
        requests += 2
    assert ask(pool, key, "x", temperature=9).status == 400
    assert ask(pool, key, "fake: oom@0").status == 507
    requests += 2
    prompt = pool.post(
        "/v1/tokenize", {"messages": [{"role": "user", "content": "fake: slow@3"}]}, headers=bearer(key)
    ).json()["count"]
    requests += 1
    # Counting tokens has a price of its own.
    tokens += 1
    wait_until(lambda: used(pool, key) == (requests, tokens), what="usage is written")

    # A step takes three seconds: when the first token comes, the second is being computed.
    connection = pool.open(f"/v1/chat/completions?api_key={key}", chat_body("fake: slow@3", stream=True))
    received = b""
    while b'"content":"' not in received.replace(b'"content":""', b""):
        received += connection.recv(65536)
    connection.close()
    requests += 1
    tokens += prompt + 2
    wait_until(
        lambda: used(pool, key) == (requests, tokens), what="what was computed for a client that left is counted"
    )

    wait_until(lambda: active(pool) == 0)
    wait_until(lambda: metric(pool, "pool_worker_running_rows") == 0)
    doomed = pool.open(f"/v1/chat/completions?api_key={key}", chat_body("fake: slow@3", stream=False))
    # By the engine's own word, which the last one has left by now: a prompt is charged once, however often it is
    # computed.
    wait_until(lambda: metric(pool, "pool_worker_running_rows") > 0)
    os.kill(pool.engine_pid(), signal.SIGKILL)
    wait_until(lambda: active(pool) > 0, what="it runs again")
    doomed.close()
    requests += 1
    tokens += prompt
    wait_until(lambda: used(pool, key)[1] >= tokens, what="the prompt of who left after a kill is counted")
    # Once, with the steps of either engine that were told, and the one that ran meanwhile.
    spent = used(pool, key)[1]
    assert (used(pool, key)[0], spent) == (requests, max(tokens, min(spent, tokens + 4)))
    remaining = int(ask(pool, key, "x", temperature=9).headers["x-ratelimit-remaining-tokens"])
    assert remaining >= 1_000_000 - spent


def active(pool: RunningPool) -> int:
    stats = pool.get("/v1/queue/stats", headers=bearer(MASTER)).json()
    return int(stats["queue_stats"]["active_requests"])


def test_kill_of_the_gateway_loses_no_key_and_at_most_a_second_of_usage(start_pool: Callable[..., RunningPool]) -> None:
    """SIGKILL between two requests: all older than a second are counted, limits go on where they were."""
    pool = start_pool(FAKE, environment=PRODUCTION)
    key = keys(pool, "create", "limited", "--rph", "30", "--burst", "0", "--rpm", "0")
    wait_until(lambda: known(pool, key))
    for _ in range(12):
        assert ask(pool, key, "fake: tokens@2").status == 200
    time.sleep(1.0)  # the promise
    pool.gateway.signal(signal.SIGKILL)
    pool.gateway.wait()
    assert used(pool, key)[0] == 12
    pool.start_gateway()
    wait_until(lambda: known(pool, key))
    pool.wait_healthy()
    answer = ask(pool, key, "fake: tokens@2")
    assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "17")


def test_revoked_key_is_refused_under_load_and_logs_hold_no_key(
    start_pool: Callable[..., RunningPool], tmp_path: Path
) -> None:
    """A running stream ends in peace, the next request is refused; no log holds a key, at its most verbose."""
    log = tmp_path / "gateway.log"
    pool = start_pool(FAKE, gateway=("--debug", "--log-file", str(log)), environment=PRODUCTION)
    key = keys(pool, "create", "doomed")
    wait_until(lambda: known(pool, key))
    stream = pool.open(f"/v1/chat/completions?api_key={key}", chat_body("fake: slow@0.05 tokens@30", stream=True))
    received = stream.recv(65536)
    keys(pool, "revoke", key[4:12])
    wait_until(lambda: not known(pool, key), what="the key is refused")
    while chunk := stream.recv(65536):
        received += chunk
        if b"[DONE]" in received:
            break
    assert b"[DONE]" in received
    assert pool.get(f"/v1/models/{key}?api_key={MASTER}").status == 404
    assert pool.get("/v1/models", headers={"X-API-Key": key}).status == 401
    pool.stop()
    written = "".join(program.text() for program in pool.programs) + log.read_text()
    assert "Request completed: GET /v1/models" in written
    assert key[13:] not in written
    assert MASTER not in written


def test_engines_come_and_go_when_an_operator_says_so(start_pool: Callable[..., RunningPool]) -> None:
    """Scaled, replaced, drained, unloaded and loaded over HTTP; by whom is in the audit log."""
    pool = start_pool(FAKE, environment=PRODUCTION)
    admin = keys(pool, "create", "operator", "--permissions", "admin")
    wait_until(lambda: pool.get("/admin/workers", headers=bearer(admin)).status == 200)

    def data() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pool.get("/admin/workers", headers=bearer(admin)).json()["data"]
        return found

    def workers() -> list[dict[str, Any]]:
        return [worker for worker in data() if worker["state"] == "ready"]

    def order(path: str, body: Any = None) -> HttpAnswer:
        return pool.request("POST", f"/admin/{path}", body, headers=bearer(admin))

    assert order("models/fake/scale", {"replicas": 2}).json() == {"model": "fake", "act": "scale", "replicas": 2}
    wait_until(lambda: len(workers()) == 2)
    before = {worker["id"] for worker in workers()}
    assert order(f"workers/{min(before)}/restart", {"grace": 1}).status == 200
    wait_until(lambda: len(workers()) == 2 and {worker["id"] for worker in workers()} != before)
    assert order(f"workers/{workers()[0]['id']}/drain").status == 200
    wait_until(lambda: len(workers()) == 1)
    assert order("models/fake/unload").status == 200
    wait_until(lambda: not workers())
    assert order("models/fake/load").json()["replicas"] == 1
    wait_until(lambda: len(workers()) == 1)
    # Each order holds from the moment it is given, whatever the one before has come to.
    for replicas in (3, 0, 2):
        assert order("models/fake/scale", {"replicas": replicas, "grace": 1}).status == 200
    assert order("models/fake/unload", {"grace": 1}).status == 200
    assert order("models/fake/load").json()["replicas"] == 1
    wait_until(lambda: len(workers()) == 1 and len(data()) == 1, what="one engine, and no other about to start or end")
    assert order(f"workers/{workers()[0]['id']}/stop").status == 200
    wait_until(lambda: not workers())
    refused = [
        order("workers/nobody/stop"), order("models/none/load"), order("models/fake/scale", {"replicas": 65}),
        order("models/fake/scale", {}), order("workers/nobody/drain", {"grace": -1}),
    ]  # fmt: skip
    assert [answer.status for answer in refused] == [404, 404, 400, 400, 400]
    acts = [json.loads(line) for line in (pool.folder / "data" / "audit.log").read_text().splitlines()]
    assert [*dict.fromkeys(act["act"] for act in acts)] == [
        "key.create", "model.scale", "worker.restart", "worker.drain", "model.unload", "model.load", "worker.stop",
    ]  # fmt: skip
    assert {act["by"] for act in acts[1:]} == {admin[4:12]}
