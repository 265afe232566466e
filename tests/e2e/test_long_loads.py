"""Loading takes as long as it takes: nobody is killed for it, and a load that does nothing is noticed."""

import re
import time
from collections.abc import Callable

from stress.clients import ParallelClients
from stress.fake_answers import fake_answer
from stress.running_pool import FAKE, ROOT, RunningPool, chat_body, wait_until

STALL_S = 1.0
LOADS = ("load@1.05", "load@1.25", "load@5", "load@1.05 warm@2", "load@0.5 warm@1.3", "load@5 warm@1.2")
"""Seconds that six engines take before they are ready, all but none longer than the stall time-out."""
KILLS = re.compile(r"killing engine| lost, |is to be killed")


def slow(name: str, program: str) -> tuple[str, ...]:
    """A worker whose engine loads as `program` says."""
    return (*FAKE, "--model-path", f"fake: {program}", "--served-name", name)


def texts(pool: RunningPool) -> str:
    """All that the gateway and the supervisors wrote."""
    return "\n".join(program.text() for program in pool.programs)


def test_no_engine_is_killed_when_loading_takes_longer_than_a_stall(start_pool: Callable[..., RunningPool]) -> None:
    """Six workers at once, half of them with requests that wait: no kill, no restart, nobody blamed, all answered."""
    workers = [slow(f"m{at}", program) for at, program in enumerate(LOADS)]
    pool = start_pool(*workers, healthy=False, gateway=("--stall-timeout", str(STALL_S), "--load-timeout", "20"))
    wait_until(lambda: len(pool.get("/health").json()["models"]) == len(LOADS), what="all models are known")
    bodies = [chat_body(f"fake: tokens@{5 + at}", model=f"m{at}") for at in range(0, len(LOADS), 2) for _ in range(3)]
    crowd = ParallelClients(pool, bodies)
    pool.wait_healthy()
    # Two beats and a stall time-out behind the last one that became ready: whoever is to be killed is killed by then.
    settled = time.monotonic() + STALL_S + 2.0
    wait_until(lambda: time.monotonic() > settled)
    assert not KILLS.search(texts(pool)), pool.logs()
    assert texts(pool).count("is ready: loaded in") == len(LOADS)
    assert [client.text() for client in crowd.join()] == [fake_answer(body) for body in bodies]
    health = pool.get("/health").json()
    assert [(model["restarts"], model["reason"]) for model in health["models"]] == [(0, None)] * len(LOADS)
    assert pool.metric("pool_jobs_continued_total") == 0


def test_an_engine_is_killed_when_its_load_makes_no_progress(start_pool: Callable[..., RunningPool]) -> None:
    """Named with its reason in the log, the events, `/health` and `/admin/workers`; what waits for it is not blamed."""
    pool = start_pool(slow("m", "idle@600"), healthy=False, gateway=("--load-timeout", "1"))
    wait_until(lambda: pool.get("/health").json()["models"], what="the model is known")
    waiting = pool.open_chat("fake: tokens@3", model="m")
    wait_until(lambda: pool.get("/health").json()["models"][0]["reason"], what="two restarts are named", every_s=0.1)
    why = "its engine made no progress while loading"
    assert pool.get("/health").json()["models"][0]["reason"].endswith(f": {why}")
    assert re.search(f"killing engine process \\d+: {why}", pool.supervisors[0].text())
    assert f"was killed ({why})" in pool.supervisors[0].text()
    events = pool.get("/admin/events").json()["data"]
    assert any(why in event["message"] for event in events)
    told = wait_until(lambda: pool.get("/admin/workers").json()["data"], what="the next engine is here")
    assert told[0]["last_end"] == why
    assert pool.metric("pool_jobs_refused_total") == 0
    assert waiting.fileno() > 0


def test_an_engine_is_left_alone_when_a_request_holds_its_interpreter(start_pool: Callable[..., RunningPool]) -> None:
    """It is silent for longer than a dead one would be, but its supervisor sees it work: all are answered, late."""
    flags = ("--engine", "tests.support.slow_engines:GripsToPrepare", "--model-path", "grips")
    pool = start_pool(flags, environment={"PYTHONPATH": str(ROOT)})
    bodies = [chat_body("fake: grip@6.5 tokens@3"), chat_body("fake: tokens@4"), chat_body("fake: tokens@5")]
    crowd = ParallelClients(pool, bodies)
    assert [client.text() for client in crowd.join()] == [fake_answer(body) for body in bodies]
    assert not KILLS.search(texts(pool)), pool.logs()
