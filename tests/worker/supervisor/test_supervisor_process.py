"""A real supervisor process, stub engines, a real socket."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import EndEngine, KillEngine, StartEngine, Watch

Supervise = Callable[..., Any]
Gone = Callable[[int, float], bool]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or needs prctl")


def test_killed_engine_is_noticed_at_once_and_replaced(supervise: Supervise, gateway: Any) -> None:
    """kill -9 of an engine reaches the gateway before beats are missed; the next engine is another process."""
    program = supervise()
    first = program.engine_pid()
    running = gateway.report(lambda report: report.engine_pid == first)
    assert (running.model, running.watch, running.pid, running.restarts) == ("qwen3", Watch.RUNNING, program.pid, 0)
    killed_at = time.monotonic()
    os.kill(first, signal.SIGKILL)
    death = gateway.report(lambda report: report.exit_code == -9)
    noticed_s = time.monotonic() - killed_at
    assert noticed_s < 2.5, noticed_s
    second = gateway.report(lambda report: report.restarts == 1 and report.engine_pid != 0)
    assert second.engine_pid != first
    assert second.engine != running.engine
    assert death.engine == running.engine
    assert program.engine_pid() == second.engine_pid


def test_reports_carry_the_epoch_of_the_greeting(supervise: Supervise, gateway: Any) -> None:
    """Epoch 0 before the greeting, the gateway's afterwards; one report answers it, others follow unasked."""
    supervise().engine_pid()
    gateway.report()
    assert gateway.reported_epoch == 0
    while gateway.reported_epoch != 7:
        gateway.report()
    gateway.report()


def test_gateway_restart_finds_the_supervisor_again(supervise: Supervise, gateway_at: Callable[..., Any]) -> None:
    """Without a gateway the engine is kept alive; each new gateway hears of it."""
    program = supervise()
    engine = program.engine_pid()
    for epoch in (3, 4):
        gateway = gateway_at(epoch)
        assert gateway.report(lambda report: report.watch is Watch.RUNNING).engine_pid == engine
        while gateway.reported_epoch != epoch:
            gateway.report()
        gateway.close()
    os.kill(engine, signal.SIGKILL)
    assert program.engine_pid() != engine


def test_kill_order_ends_the_named_engine_and_what_it_started(supervise: Supervise, gateway: Any, gone: Gone) -> None:
    """KillEngine hits the engine and its children, once; its name or epoch wrong, it hits nothing."""
    program = supervise("parent")
    engine, child = (int(pid) for pid in program.line(r"engine ready (\d+) (\d+)").groups())
    worker = gateway.report(lambda report: report.engine_pid == engine).engine
    gateway.report()  # the answer to the greeting
    gateway.send(KillEngine("another", "stalled"))
    gateway.send(KillEngine(worker, "stalled"), epoch=6)
    assert gateway.report().engine_pid == engine
    gateway.send(KillEngine(worker, "no step for 30 s"))
    assert gateway.report(lambda report: report.exit_code is not None).exit_code == -9
    assert gone(engine, 10)
    assert gone(child, 10)
    program.line("was killed .no step for 30 s.*starting it again")


def test_siblings_come_and_go_when_they_are_asked_for(supervise: Supervise, gateway: Any, gone: Gone) -> None:
    """One process, several engines, each with reports of its own; the end of all is one signal."""
    program = supervise()
    first = gateway.report(lambda report: report.engine_pid == program.engine_pid())
    gateway.report()  # the answer to the greeting
    gateway.send(StartEngine())
    second = program.engine_pid()
    report = gateway.report(lambda report: report.engine_pid == second)
    assert (report.pid, report.engine != first.engine) == (program.pid, True)
    gateway.report()
    gateway.send(EndEngine(report.engine, 0.1, False, "scaled down"))
    parked = gateway.report(lambda report: report.parked)
    assert (parked.engine, parked.engine_pid, parked.watch) == (report.engine, 0, Watch.DRAINING)
    assert gone(second, 1)
    gateway.send(StartEngine())
    third = program.engine_pid()
    gateway.report(lambda report: report.engine_pid == third)
    assert program.end(signal.SIGTERM) == 0
    assert gone(first.engine_pid, 0.1)
    assert gone(third, 0.1)


def test_garbage_from_the_socket_is_survived(supervise: Supervise, gateway: Any) -> None:
    """Frames that are no messages are named in the log once and change nothing."""
    program = supervise()
    program.engine_pid()
    gateway.report()
    for _ in range(3):
        gateway.send_raw(b"\xff" * 40)
    program.line("a frame from the gateway was ignored")
    assert gateway.report().watch is Watch.RUNNING
    assert program.end(signal.SIGTERM) == 0
    program.line("leaving")
    assert sum("was ignored" in line for line in program.seen) == 1


def test_term_drains_the_engine_and_ends_with_zero(supervise: Supervise, gone: Gone) -> None:
    """SIGTERM and SIGINT are handed on, and nothing is left."""
    for number in (signal.SIGTERM, signal.SIGINT):
        program = supervise(drain_s=100)
        engine = program.engine_pid()
        assert program.end(number) == 0
        assert gone(engine, 10)


def test_deaf_engine_is_killed_when_its_drain_is_over(supervise: Supervise, gone: Gone) -> None:
    """An engine that ignores SIGTERM does not hold up the end."""
    program = supervise("deaf", drain_s=0.3)
    engine = program.engine_pid()
    assert program.end(signal.SIGTERM) == 0
    assert gone(engine, 10)
    program.line("is not done; killing it")


def test_second_signal_ends_it_now(supervise: Supervise, gone: Gone) -> None:
    """Whoever asks twice does not wait for the drain."""
    program = supervise("deaf", drain_s=100)
    engine = program.engine_pid()
    program.process.send_signal(signal.SIGTERM)
    program.line("may finish what it can")
    assert program.end(signal.SIGTERM) == 0
    assert gone(engine, 10)


def test_killed_supervisor_leaves_no_orphan(supervise: Supervise, gone: Gone) -> None:
    """The engine sees the lifeline close."""
    program = supervise()
    engine = program.engine_pid()
    program.end(signal.SIGKILL)
    assert gone(engine, 10)


def test_refused_settings_stop_the_starts_and_quote_the_engine(supervise: Supervise, gateway: Any) -> None:
    """Exit code 2 thrice: a pause, with the engine's last line as the reason; the supervisor stays."""
    program = supervise("exit:2")
    report = gateway.report(lambda report: report.watch is Watch.CRASH_LOOP)
    assert (report.exit_code, report.restarts, report.engine_pid) == (2, 2, 0)
    assert 55 < report.delay_s <= 60
    program.line("can't serve with these settings: no such model; no more starts for 60 s")
    assert program.process.poll() is None
    assert program.end(signal.SIGTERM) == 0


@linux
def test_frozen_engine_dies_with_a_killed_supervisor(
    start: Callable[..., Any], run_dir: Path, gateway: Any, gone: Gone
) -> None:
    """Also an engine that can't run a single instruction any more goes with its supervisor."""
    program = start(*worker(run_dir))
    engine = gateway.report(lambda report: report.engine_pid != 0).engine_pid
    program.line("is ready")
    os.kill(engine, signal.SIGSTOP)
    program.end(signal.SIGKILL)
    assert gone(engine, 10)


@linux
def test_memory_of_a_supervisor_stays_under_40_mb(start: Callable[..., Any], run_dir: Path, gateway: Any) -> None:
    """The promise of the specification, measured as the peak resident size after a restart."""
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    program = start(*worker(run_dir), env=clean)
    engine = gateway.report(lambda report: report.engine_pid != 0).engine_pid
    program.line("is ready")
    os.kill(engine, signal.SIGKILL)
    program.line("is ready")
    status = Path(f"/proc/{program.pid}/status").read_text()
    peak_kb = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    assert peak_kb < 40_000, peak_kb
    assert program.end(signal.SIGTERM) == 0


def test_supervisor_imports_nothing_heavy(start: Callable[..., Any]) -> None:
    """No MLX, no NumPy, no transformers, no asyncio: a supervisor is a few megabytes per worker."""
    code = "import sys, worker.__main__; print('loaded', *sys.modules)"
    loaded = start(sys.executable, "-c", code).line("^loaded .*")[0].split()
    assert not {"mlx", "mlx_lm", "numpy", "transformers", "tokenizers", "aiohttp", "asyncio"} & set(loaded)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--queue-size", "many"], "--queue-size: must be a whole number"),
        (["--model-type", "audio"], "--model-type: must be chat"),
        (["--run-dir", "/tmp/" + "x" * 120], "too long for a socket path"),
    ],
)
def test_bad_flag_ends_it_at_once_with_one_line(start: Callable[..., Any], flags: list[str], says: str) -> None:
    """Exit code 2 before anything is started, and a line that names the flag."""
    program = start(sys.executable, "-m", "worker", "--model-path", "m/qwen3", *flags)
    assert program.process.wait(20) == 2
    assert says in program.line(".+")[0]
    assert len(program.seen) == 1


def worker(run_dir: Path) -> list[str]:
    engine = ["--engine", "worker.engines.fake:FakeEngine"]
    return [sys.executable, "-m", "worker", "--model-path", "m/fake", "--run-dir", str(run_dir), *engine]
