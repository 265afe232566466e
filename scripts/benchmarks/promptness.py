"""How soon the pool reacts: to deaths, restarts, signals, full queues, clients that leave, keys that are revoked.

Processes run, sockets are real, processes are killed. Tests hold what has to happen; here is how long it may take.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stress.clients import ParallelClients
from stress.hostile_grammars import attack_by_grammars
from stress.key_commands import PRODUCTION, keys, known
from stress.running_pool import FAKE, HttpAnswer, RunningPool, chat_body, wait_until

from benchmarks.overhead import Guarded
from benchmarks.processes import ROOT
from benchmarks.table import Table, median

SPARE = {"POOL_SPARE": "true"}
ENDLESS = "fake: slow@0.02 tokens@5000"
IDLE_S = 5.0
GRAMMAR_REQUESTS = 12
KILLS = 4
"""The fifth death within two minutes is a crash loop."""


def promptness(table: Table, model: Path, *, rounds: int) -> None:
    """Measure everything, `model` being a small chat model."""
    death_noticed(table, rounds=rounds)
    refusal(table, rounds=rounds)
    killer_refused(table, rounds=rounds)
    slot_freed(table, rounds=rounds)
    engine_back(table, rounds=rounds)
    gateway_back(table, rounds=rounds)
    shutdown(table, rounds=rounds)
    key_revoked(table, rounds=rounds)
    guard(table, rounds=rounds)
    idle_engine(table, rounds=rounds)
    beside_grammars(table, model, rounds=rounds)


def death_noticed(table: Table, *, rounds: int) -> None:
    """Measure from `kill -9` of an engine with eight streams to the gateway's notice."""
    with _running(FAKE, environment=SPARE) as pool:
        _keep_streaming(pool, 8)
        taken_s = [_notice_s(pool) for _ in range(min(rounds, KILLS))]
    _judge(table, "an engine's death is noticed", taken_s, 0.1)


def _notice_s(pool: RunningPool) -> float:
    before, killed_at = pool.gateway.text().count(" lost, "), _kill_engine(pool)
    # By the log: asking the gateway would take its time.
    wait_until(lambda: pool.gateway.text().count(" lost, ") > before, every_s=0.001)
    return time.monotonic() - killed_at


def refusal(table: Table, *, rounds: int) -> None:
    """Measure the 429 of a request for whom a full queue has no place."""
    with _running((*FAKE, "--max-concurrency", "1", "--queue-size", "1")) as pool:
        _keep_streaming(pool, 2)
        pool.open_chat(ENDLESS)
        wait_until(lambda: pool.waiting() == 1)
        taken_s = [_refusal_s(pool) for _ in range(rounds)]
    _judge(table, "a full queue refuses", taken_s, 0.1)


def _refusal_s(pool: RunningPool) -> float:
    began = time.monotonic()
    _expect(pool.chat("one too many"), 429)
    return time.monotonic() - began


def killer_refused(table: Table, *, rounds: int) -> None:
    """Measure the refusal of a request that has killed two engines, when it comes again."""
    killer = "fake: die@4 slow@0.02 tokens@9"
    with _running(FAKE, environment=SPARE) as pool:
        _expect(pool.chat(killer), 500)
        taken_s = []
        for _ in range(rounds):
            began = time.monotonic()
            _expect(pool.chat(killer), 500)
            taken_s.append(time.monotonic() - began)
        if (deaths := pool.metric("pool_worker_restarts_total")) != 2:
            raise RuntimeError(f"engines died {deaths:g} times, not twice")
    _judge(table, "a request that killed two engines is refused", taken_s, 0.05)


def slot_freed(table: Table, *, rounds: int) -> None:
    """Measure from a client's leaving, in a prompt and in a stream, until its slot is free."""
    taken_s = []
    with _running(FAKE) as pool:
        for _ in range(rounds):
            for script in ("fake: prefill@100 tokens@5", ENDLESS):
                pool.open_chat(script, stream=True)
                wait_until(lambda: pool.active() == 1)
                pool.hang_up()
                taken_s.append(_until(pool.idle))
    _judge(table, "a slot is free once its client has left", taken_s, 0.5)


def engine_back(table: Table, *, rounds: int) -> None:
    """Measure from `kill -9` of a demo model's engine to the next answer; what the model takes to load is granted."""
    with _running(("--model-path", str(ROOT / "demo" / "chat")), environment=SPARE) as pool:
        taken_s, load_s = zip(*(_back_s(pool) for _ in range(min(rounds, KILLS))), strict=True)
    more_s = median([taken - load for taken, load in zip(taken_s, load_s, strict=True)])
    figure = f"{median(taken_s):.2f} s, loading {median(load_s):.1f} s of it"
    table.add("a killed engine's model answers again", figure, "<= loading + 1 s", more_s <= 1)


def _back_s(pool: RunningPool) -> tuple[float, float]:
    killed_at = _kill_engine(pool)
    _expect(pool.chat("Hello!", max_tokens=4), 200)
    taken_s = time.monotonic() - killed_at
    return taken_s, float(re.findall(r"loaded in ([\d.]+) s", pool.supervisors[0].text())[-1])


def gateway_back(table: Table, *, rounds: int) -> None:
    """Measure from the start of a gateway whose predecessor was killed under load to its first answer."""
    taken_s = []
    with _running(FAKE, FAKE) as pool:
        for _ in range(rounds):
            _keep_streaming(pool, 6)
            pool.gateway.signal(signal.SIGKILL)
            pool.gateway.wait()
            began = time.monotonic()
            pool.start_gateway()
            _until(lambda: pool.chat("fake: tokens@3").status == 200)
            taken_s.append(time.monotonic() - began)
    _judge(table, "a gateway killed under load serves again", taken_s, 2.0)


def shutdown(table: Table, *, rounds: int) -> None:
    """Measure from SIGTERM to the end of a gateway with streams that run, wait and are not read."""
    taken_s = []
    with _running((*FAKE, "--max-concurrency", "4")) as pool:
        for _ in range(rounds):
            pool.open_chat("fake: tokens@200000", stream=True, max_tokens=100_000)
            crowd = ParallelClients(pool, [chat_body(ENDLESS, stream=at % 2 == 0) for at in range(7)])
            wait_until(lambda: pool.active() == 5 and pool.waiting() == 3)
            pool.gateway.signal(signal.SIGTERM)
            taken_s.append(_until(lambda: not pool.gateway.running))
            crowd.join()
            pool.hang_up()
            pool.start_gateway()
            pool.wait_healthy()
    _judge(table, "a gateway with running streams ends", taken_s, 4.5)


def key_revoked(table: Table, *, rounds: int) -> None:
    """Measure from the end of `keys revoke` to the refusal of the key, beside 32 streams."""
    with _running((*FAKE, "--max-concurrency", "32"), environment=PRODUCTION) as pool:
        load = _make_key(pool, "load")
        for _ in range(32):
            pool.open(f"/v1/chat/completions?api_key={load}", chat_body(ENDLESS, stream=True))
        taken_s = [_revocation_s(pool) for _ in range(rounds)]
    _judge(table, "a revoked key is refused", taken_s, 1.0)


def _revocation_s(pool: RunningPool) -> float:
    key = _make_key(pool, "doomed")
    keys(pool, "revoke", key[4:12])
    return _until(lambda: not known(pool, key))


def _make_key(pool: RunningPool, name: str) -> str:
    key = keys(pool, "create", name, "--burst", "0", "--rpm", "0", "--parallel", "0")
    wait_until(lambda: known(pool, key))
    return key


def guard(table: Table, *, rounds: int) -> None:
    """Measure the processor time that keys and limits add to a request."""

    async def added_s() -> list[float]:
        guarded = Guarded()
        return [await guarded.added_s() for _ in range(max(11, rounds))]

    spent_s = median(asyncio.run(added_s()))
    table.add("keys and limits, processor time of a request", f"{spent_s * 1e6:.1f} µs", "<= 100 µs", spent_s <= 100e-6)


def idle_engine(table: Table, *, rounds: int) -> None:
    """Measure the processor time of a demo model's engine that has nothing to do (Linux only)."""
    if sys.platform != "linux":
        return
    with _running(("--model-path", str(ROOT / "demo" / "chat"))) as pool:
        pool.chat("Hello!", max_tokens=4)
        shares = [_busy_share(pool.engine_pid()) for _ in range(rounds)]
    table.add("an idle engine", f"{median(shares):.2%} of a core", "<= 1 %", median(shares) <= 0.01)


def _busy_share(pid: int) -> float:
    before_s, began = _processor_s(pid), time.monotonic()
    time.sleep(IDLE_S)
    return (_processor_s(pid) - before_s) / (time.monotonic() - began)


def _processor_s(pid: int) -> float:
    """Return the processor time of a process's threads, from /proc: exact, where `stat` counts in hundredths."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def beside_grammars(table: Table, model: Path, *, rounds: int) -> None:
    """Measure one key's chats and new schemas beside another key's hostile grammars, and alone."""
    alone_s, beside_s, schemas_s = [], [], []
    for _ in range(rounds):
        with _running(("--model-path", str(model), "--max-concurrency", "16"), environment=PRODUCTION) as pool:
            report = attack_by_grammars(pool, requests=GRAMMAR_REQUESTS)
        alone_s.append(median(report.chats["alone"]))
        beside_s.append(median(report.chats["beside"]))
        schemas_s.append(max(report.schemas["beside"]))
    quotient = median([beside / alone for beside, alone in zip(beside_s, alone_s, strict=True)])
    figure = f"{median(beside_s) * 1e3:.0f} / {median(alone_s) * 1e3:.0f} ms = {quotient:.2f} x"
    table.add("a chat beside hostile grammars / alone", figure, "<= 1.5 x", quotient <= 1.5)
    _judge(table, "a new schema beside them, the slowest of each round", schemas_s, 2.0)


@contextlib.contextmanager
def _running(*workers: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[RunningPool]:
    pool = RunningPool(*workers, environment=environment)
    try:
        pool.wait_healthy()
        yield pool
    finally:
        pool.stop()
        pool.remove()


def _keep_streaming(pool: RunningPool, streams: int) -> None:
    """Open so many endless streams, and wait until a worker has each."""
    for _ in range(streams):
        pool.open_chat(ENDLESS, stream=True)
    wait_until(lambda: pool.active() == streams)


def _kill_engine(pool: RunningPool) -> float:
    """Send kill -9 to the engine that serves, once its spare has imported everything; returns the moment."""

    def spare_ready() -> bool:
        text = pool.supervisors[0].text()
        return text.count("is ready to take over") == text.count("engine started as process")

    wait_until(lambda: spare_ready() and pool.replicas() == 1)
    engine, killed_at = pool.engine_pid(), time.monotonic()
    os.kill(engine, signal.SIGKILL)
    return killed_at


def _expect(answer: HttpAnswer, status: int) -> None:
    if answer.status != status:
        raise RuntimeError(f"answered with {answer.status}, not {status}: {answer.body[:200]!r}")


def _until(condition: Callable[[], bool]) -> float:
    """Wait for it; returns how long it took, in seconds."""
    began = time.monotonic()
    wait_until(condition, every_s=0.002)
    return time.monotonic() - began


def _judge(table: Table, what: str, taken_s: Sequence[float], bound_s: float) -> None:
    figure = f"{median(taken_s) * 1e3:,.0f} ms, {max(taken_s) * 1e3:,.0f} at worst"
    table.add(what, figure, f"<= {bound_s * 1e3:,.0f} ms", median(taken_s) <= bound_s)
