"""kill -9 of an engine under load costs its running streams an error, and nobody else anything but a pause."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crowd import Crowd
from running_pool import FAKE, RunningPool, chat_body, until

NOTICED_S = 0.1
RESPAWN_EXTRA_S = 1.0
GREEDY = {"temperature": 0, "max_tokens": 48}
Record = Callable[[str, object], None]


def kill_engine(pool: RunningPool) -> float:
    """kill -9; returns the moment."""
    pid = pool.engine_pid()
    assert pid
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return killed_at


def bodies(kind: str, count: int) -> list[dict[str, Any]]:
    """Requests to the fake engine that differ in their answers."""
    match kind:
        case "running streams":
            return [chat_body(f"fake: slow@0.02 tokens@{200 + at}", stream=True) for at in range(count)]
        case _:
            return [chat_body(f"fake: slow@0.02 tokens@{40 + at}") for at in range(count)]


@pytest.mark.timed
def test_everybody_is_answered_when_the_engine_is_killed_under_load(
    start_pool: Callable[..., RunningPool], record: Record
) -> None:
    """Running streams end in an error frame within 100 ms; whole answers, and what queues, come as if nothing was."""
    pool = start_pool((*FAKE, "--max-concurrency", "16"))
    gateway, engine = pool.gateway.pid, pool.engine_pid()
    alone = [client.text() for client in Crowd(pool, bodies("whole", 24)).join()]
    crowd = Crowd(pool, [*bodies("running streams", 8), *bodies("whole", 24)])
    streams, whole = crowd.clients[:8], crowd.clients[8:]
    crowd.wait_for_output(streams)
    assert pool.waiting() > 0
    killed_at = kill_engine(pool)
    crowd.join()
    assert [client.code for client in streams] == ["worker_lost"] * 8
    assert all(client.well_formed and not client.streamed.whole for client in streams)
    noticed_s = [client.ended_at - killed_at for client in streams]
    record("noticed_s", [round(value, 4) for value in noticed_s])
    assert max(noticed_s) < NOTICED_S
    assert [client.text() for client in whole] == alone
    assert pool.gateway.pid == gateway
    assert pool.gateway.running
    assert pool.engine_pid() not in (0, engine)
    assert pool.chat("fake: tokens@3").status == 200
    until(pool.idle)


def test_streams_without_output_start_over_when_the_engine_is_killed(start_pool: Callable[..., RunningPool]) -> None:
    """A stream whose headers are out but which has said nothing yet is answered by the next engine, whole."""
    pool = start_pool(FAKE)
    crowd = Crowd(pool, [chat_body(f"fake: prefill@0.3 tokens@{10 + at}", stream=True) for at in range(3)])
    until(lambda: all(b"assistant" in client.payload for client in crowd.clients), what="headers are out")
    kill_engine(pool)
    for at, client in enumerate(crowd.join()):
        assert client.well_formed
        assert client.streamed.whole
        assert len(client.text().split()) == 10 + at
    until(lambda: pool.metric("pool_worker_restarts_total") == 1)


def test_request_that_kills_engines_is_given_up_when_the_second_one_dies(
    start_pool: Callable[..., RunningPool],
) -> None:
    """A prompt that kills whatever it meets kills two engines, not more, and its client is told in good order."""
    pool = start_pool(FAKE)
    answer = pool.chat("fake: die@2 tokens@5")
    assert answer.status in (500, 503)
    assert answer.error["type"] == "server_error"
    pool.wait_healthy()
    until(lambda: pool.metric("pool_worker_restarts_total") == 2)
    assert pool.chat("fake: tokens@3").status == 200


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("raise", "Traceback|RuntimeError"), ("abort", "Fatal Python error|Aborted")],
)
def test_stream_ends_in_an_error_frame_when_the_engine_fails(
    start_pool: Callable[..., RunningPool], fault: str, expected: str
) -> None:
    """An exception in a step, or an abort, ends that process: the stream gets an error, the pool goes on."""
    pool = start_pool(FAKE, expected=expected)
    streams = Crowd(pool, bodies("running streams", 2))
    streams.wait_for_output(streams.clients)
    killer = Crowd(pool, [chat_body(f"fake: {fault}@4 tokens@9", stream=True)])
    for client in [*streams.join(), *killer.join()]:
        assert client.well_formed
        assert client.code == "worker_lost"
    pool.wait_healthy()
    assert pool.chat("fake: tokens@3").status == 200


@pytest.mark.timed
@pytest.mark.mlx
def test_real_model_serves_again_within_its_load_time_when_its_engine_is_killed(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], record: Record
) -> None:
    """With a real model: errors within 100 ms, the same answers from the next engine, up in load time + 1 s."""
    model = str(model_folder("qwen3"))
    began = time.monotonic()
    pool = start_pool(("--model-path", model, "--prefix-cache-bytes", "64MB"))
    load_s = time.monotonic() - began
    alone = pool.chat("once upon a time", **GREEDY).json()["choices"][0]["message"]["content"]
    long = [chat_body("tell me all", stream=True, max_tokens=6000, ignore_eos=True) for _ in range(4)]
    crowd = Crowd(pool, long)
    crowd.wait_for_output(crowd.clients)
    killed_at = kill_engine(pool)
    answer = pool.chat("once upon a time", **GREEDY)
    served_s = time.monotonic() - killed_at
    noticed_s = [client.ended_at - killed_at for client in crowd.join()]
    record("load_s", round(load_s, 2))
    record("served_s", round(served_s, 2))
    record("noticed_s", [round(value, 4) for value in noticed_s])
    assert all(client.well_formed and client.code == "worker_lost" for client in crowd.clients)
    assert max(noticed_s) < NOTICED_S
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == alone
    assert served_s < load_s + RESPAWN_EXTRA_S
