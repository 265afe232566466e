"""kill -9 of an engine under load costs its clients a pause, and nothing else."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stress.clients import Client, ParallelClients
from stress.fake_answers import fake_answer
from stress.running_pool import FAKE, RunningPool, alive, chat_body, wait_until

NOTICED_S = 2.5
"""Half the time after which an engine that says nothing is given up."""
GREEDY = {"temperature": 0, "max_tokens": 48}
Record = Callable[[str, object], None]


def kill_engine(pool: RunningPool, worker: int = 0, number: signal.Signals = signal.SIGKILL) -> float:
    """kill -9; returns the moment."""
    pid = wait_until(lambda: pool.engine_pid(worker), what="an engine runs")
    killed_at = time.monotonic()
    os.kill(pid, number)
    return killed_at


def streams(count: int, *, tokens: int = 60) -> list[dict[str, Any]]:
    """Streams from the fake engine, a second or so long, that differ in their answers."""
    return [chat_body(f"fake: slow@0.02 tokens@{tokens + at}", stream=True) for at in range(count)]


def whole(count: int) -> list[dict[str, Any]]:
    """The same, not streamed."""
    return [chat_body(f"fake: slow@0.02 tokens@{40 + at}") for at in range(count)]


def texts(clients: list[Client]) -> list[str]:
    """Their answers, each of which has to be a whole one."""
    assert [client.code for client in clients] == [None] * len(clients)
    assert all(client.well_formed for client in clients)
    assert all(client.streamed.whole for client in clients if client.body.get("stream"))
    return [client.text() for client in clients]


def test_everybody_is_answered_when_the_engine_is_killed_under_load(
    start_pool: Callable[..., RunningPool], record: Record
) -> None:
    """Running streams, whole answers and what queues come as if nothing was; the death is noticed by itself."""
    pool = start_pool((*FAKE, "--max-concurrency", "16"))
    gateway, engine = pool.gateway.pid, pool.engine_pid()
    bodies = [*streams(8), *whole(16)]
    crowd = ParallelClients(pool, bodies)
    crowd.wait_for_output(crowd.clients[:8])
    assert pool.waiting() > 0
    killed_at = kill_engine(pool)
    wait_until(lambda: " lost, " in pool.gateway.text(), every_s=0.001)
    noticed_s = time.monotonic() - killed_at
    record("noticed_s", round(noticed_s, 4))
    assert noticed_s < NOTICED_S
    assert texts(crowd.join()) == [fake_answer(body) for body in bodies]
    assert pool.gateway.pid == gateway
    assert pool.gateway.running
    assert pool.engine_pid() not in (0, engine)
    assert pool.metric("pool_jobs_continued_total") >= 16
    wait_until(pool.idle)


def test_streams_move_to_the_other_replica_when_one_is_killed(start_pool: Callable[..., RunningPool]) -> None:
    """Kill after kill, now this one, now that: every text is the undisturbed one."""
    pool = start_pool(FAKE, FAKE)
    wait_until(lambda: pool.replicas() == 2)
    bodies = streams(12, tokens=130)
    crowd = ParallelClients(pool, bodies)
    # Long enough for nobody to be suspected of both deaths.
    crowd.wait_for_output(crowd.clients, frames=35)
    for worker in (0, 1):
        kill_engine(pool, worker)
        wait_until(lambda: pool.replicas() == 2)
    assert texts(crowd.join()) == [fake_answer(body) for body in bodies]
    wait_until(pool.idle)


def test_streams_without_output_start_over_when_the_engine_is_killed(start_pool: Callable[..., RunningPool]) -> None:
    """A stream whose headers are out but which has said nothing yet is answered by the next engine, whole."""
    pool = start_pool(FAKE)
    crowd = ParallelClients(pool, [chat_body(f"fake: prefill@0.3 tokens@{10 + at}", stream=True) for at in range(3)])
    wait_until(lambda: all(b"assistant" in client.payload for client in crowd.clients), what="headers are out")
    kill_engine(pool)
    for at, text in enumerate(texts(crowd.join())):
        assert len(text.split()) == 10 + at
    wait_until(lambda: pool.metric("pool_worker_restarts_total") == 1)


def test_usage_is_that_of_an_undisturbed_answer_when_the_engine_was_killed(
    start_pool: Callable[..., RunningPool],
) -> None:
    """Nothing is charged twice, for any of several choices."""
    pool = start_pool(FAKE)
    body = chat_body(
        "fake: slow@0.02 tokens@60", stream=True, n=3, stream_options={"include_usage": True}, max_tokens=99
    )
    crowd = ParallelClients(pool, [body])
    crowd.wait_for_output(crowd.clients)
    kill_engine(pool)
    (client,) = crowd.join()
    usage = client.streamed.frames[-1]["usage"]
    assert (usage["completion_tokens"], usage["prompt_tokens"]) == (180, 3)
    assert [len(client.streamed.text(choice).split()) for choice in range(3)] == [60] * 3


@pytest.mark.parametrize(("fault", "expected"), [("die", ""), ("raise", "Traceback|RuntimeError")])
def test_bystanders_finish_when_a_request_kills_whatever_runs_it(
    start_pool: Callable[..., RunningPool], record: Record, fault: str, expected: str
) -> None:
    """Two deaths, an error that SDKs do not retry, at once the same when it is asked again; all eight others whole."""
    pool = start_pool(FAKE, expected=expected)
    bodies = streams(8)
    bystanders = ParallelClients(pool, bodies)
    bystanders.wait_for_output(bystanders.clients)
    killer = f"fake: {fault}@4 slow@0.02 tokens@9"
    answer = pool.chat(killer)
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (500, "worker_crashed", "false")
    assert texts(bystanders.join()) == [fake_answer(body) for body in bodies]
    assert pool.metric("pool_worker_restarts_total") == 2
    again = pool.chat(killer)
    assert (again.status, again.error["code"]) == (500, "worker_crashed")
    assert pool.chat("fake: tokens@3").status == 200
    assert pool.metric("pool_worker_restarts_total") == 2
    assert pool.metric("pool_jobs_refused_total") == 2


def test_everybody_gets_an_error_in_good_order_when_every_request_kills(start_pool: Callable[..., RunningPool]) -> None:
    """Each is refused for its own deaths, until the supervisor gives up; then 503 with a time to come back."""
    pool = start_pool(FAKE)
    answers = [pool.chat(f"fake: die@0 tokens@{at}") for at in (7, 8, 9)]
    assert [answer.status for answer in answers] == [500, 500, 503]
    assert answers[2].error["code"] == "model_not_ready"
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert pool.get("/health").json()["models"][0]["state"] == "crash_loop"


def test_bystanders_finish_when_a_request_takes_all_memory(start_pool: Callable[..., RunningPool]) -> None:
    """The engine ends, rather than answer 500 for ever; the log has the reason, and one request alone is refused."""
    pool = start_pool(FAKE)
    crowd = ParallelClients(pool, streams(4))
    crowd.wait_for_output(crowd.clients)
    answer = pool.chat("fake: exhaust@0 tokens@9")
    assert (answer.status, answer.error["code"]) == (500, "worker_crashed")
    assert texts(crowd.join()) == [fake_answer(body) for body in streams(4)]
    assert "ran out of memory" in pool.supervisors[0].text()


def test_model_is_given_up_when_it_does_not_fit(start_pool: Callable[..., RunningPool]) -> None:
    """Two loads that run out of memory are enough; the reason is shown, and no more are tried."""
    pool = start_pool((*FAKE[:-1], "fake: exhaust@0", "--served-name", "fake"), healthy=False)
    wait_until(lambda: "given up" in pool.supervisors[0].text())
    wait_until(lambda: pool.get("/health").json()["models"][0]["state"] == "crash_loop")
    answer = pool.chat("hello")
    assert (answer.status, answer.error["code"]) == (503, "model_not_ready")
    assert pool.supervisors[0].text().count("engine started as process") == 2
    assert "ran out of memory while it loaded, 2 times" in str(pool.get("/health").json())


def test_streams_go_on_when_their_engine_is_frozen(start_pool: Callable[..., RunningPool]) -> None:
    """SIGSTOP: noticed by its silence, killed, its streams continued; let go, it is dead and says nothing."""
    pool = start_pool(FAKE, FAKE)
    wait_until(lambda: pool.replicas() == 2)
    bodies = streams(6, tokens=80)
    crowd = ParallelClients(pool, bodies)
    crowd.wait_for_output(crowd.clients)
    frozen = pool.engine_pid(0)
    kill_engine(pool, 0, signal.SIGSTOP)
    wait_until(lambda: not alive(frozen), every_s=0.1, what="the frozen engine is killed")
    assert texts(crowd.join()) == [fake_answer(body) for body in bodies]
    wait_until(lambda: pool.replicas() == 2)


def test_streams_go_on_when_a_request_stalls_their_engine(start_pool: Callable[..., RunningPool]) -> None:
    """Beats go on, steps do not: killed after the stall time-out; who did it is found, the others finish."""
    pool = start_pool(FAKE, gateway=("--stall-timeout", "0.5"))
    bodies = streams(4)
    crowd = ParallelClients(pool, bodies)
    crowd.wait_for_output(crowd.clients)
    answer = pool.chat("fake: stall@3 slow@0.02 tokens@9")
    assert (answer.status, answer.error["code"]) == (500, "worker_crashed")
    assert texts(crowd.join()) == [fake_answer(body) for body in bodies]


def test_streams_move_on_when_their_worker_is_stopped(start_pool: Callable[..., RunningPool]) -> None:
    """What a leaving worker can't finish in its grace is finished by another."""
    pool = start_pool(FAKE, FAKE)
    wait_until(lambda: pool.replicas() == 2)
    bodies = streams(8, tokens=220)
    crowd = ParallelClients(pool, bodies)
    crowd.wait_for_output(crowd.clients)
    pool.supervisors[0].stop()
    assert texts(crowd.join()) == [fake_answer(body) for body in bodies]
    assert pool.replicas() == 1


@pytest.mark.mlx
def test_real_model_goes_on_when_its_engine_is_killed(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], record: Record
) -> None:
    """With a real model: greedy and seeded streams end as they would have; it serves again."""
    model = str(model_folder("qwen3"))
    began = time.monotonic()
    pool = start_pool(("--model-path", model, "--prefix-cache-bytes", "64MB"))
    load_s = time.monotonic() - began
    long = {"stream": True, "max_tokens": 600, "ignore_eos": True}
    bodies = [
        *(chat_body(f"tell me all about {at}", temperature=0, **long) for at in range(4)),
        *(chat_body(f"tell me more about {at}", temperature=0.8, top_p=0.9, seed=at, n=2, **long) for at in range(2)),
    ]
    alone = texts(ParallelClients(pool, bodies).join())
    crowd = ParallelClients(pool, bodies)
    crowd.wait_for_output(crowd.clients)
    killed_at = kill_engine(pool)
    answer = pool.chat("once upon a time", **GREEDY)
    served_s = time.monotonic() - killed_at
    record("load_s", round(load_s, 2))
    record("served_s", round(served_s, 2))
    assert answer.status == 200
    assert texts(crowd.join()) == alone
    assert pool.metric("pool_jobs_continued_total") >= 6
