"""A whole engine process with the fake engine, from its command line to its end."""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from protocol.errors import Code
from protocol.messages import (
    Accepted,
    Announce,
    Beat,
    Bye,
    Cancel,
    Delta,
    Done,
    Drain,
    Failed,
    GenerateJob,
    Ready,
    Sampling,
    State,
    TextPrompt,
    TokenizeJob,
    TokenPrompt,
    Tokens,
)
from worker.process.main import DRAIN_S
from worker.work import ProcessWork

EngineProcess = Callable[..., Any]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def generate(number: int, text: str, **fields: Any) -> GenerateJob:
    return GenerateJob(number, 1, f"r{number}", "tenant", TextPrompt(text), Sampling(1), **fields)


@pytest.fixture
def serving(engine_process: EngineProcess, gateway: Any) -> Any:
    """A process that is ready, in the gateway's epoch."""
    process = engine_process()
    gateway.greet()
    gateway.wait_until(Ready)
    return process


@pytest.mark.parametrize(
    ("param", "fields"), [("logprobs", {"logprobs": 0}), ("echo", {"echo": True}), ("stop", {"stop": ["x"]})]
)
def test_fake_engine_refuses_what_it_would_ignore(
    serving: Any, gateway: Any, param: str, fields: dict[str, Any]
) -> None:
    """No field is taken and dropped, not even by an engine without a model."""
    gateway.send(generate(1, "one two", **fields))
    failed = gateway.wait_until(Failed)
    assert (failed.code, failed.param) == (Code.UNSUPPORTED, param)


def test_life_of_a_process(serving: Any, gateway: Any) -> None:
    """Ready with its own facts, serves jobs, drains on SIGTERM with a `Bye`, and exits with 0."""
    gateway.send(generate(1, "one two three", max_tokens=4), TokenizeJob(2, 1, TokenPrompt([5, 6])))
    assert gateway.wait_until(Accepted).prompt_tokens == 3
    gateway.wait_until(Done, lambda done: done.job == 1)
    gateway.send(TokenizeJob(3, 1, TokenPrompt([7])))
    assert gateway.wait_until(Tokens, lambda tokens: tokens.job == 3).tokens == [7]
    asked_at = time.monotonic()
    serving.process.send_signal(signal.SIGTERM)
    assert gateway.wait_until(Bye).reason == "stopped"
    assert serving.wait() == 0
    assert time.monotonic() - asked_at < DRAIN_S


def test_sigterm_cuts_a_slow_job_off_in_time(serving: Any, gateway: Any) -> None:
    """A job that would take minutes fails as draining once its grace is over."""
    gateway.send(generate(1, "fake: slow@0.05", max_tokens=5000))
    gateway.wait_until(Delta)
    asked_at = time.monotonic()
    serving.process.send_signal(signal.SIGTERM)
    gateway.wait_until(Beat, lambda beat: beat.state is State.DRAINING)
    gateway.send(generate(2, "too late", max_tokens=1))
    refused = gateway.wait_until(Failed)
    assert (refused.job, refused.code, refused.retryable) == (2, Code.DRAINING, True)
    cut = gateway.wait_until(Failed)
    assert (cut.job, cut.code, cut.retryable) == (1, Code.DRAINING, True)
    gateway.wait_until(Bye)
    assert serving.wait() == 0
    assert time.monotonic() - asked_at > 2.5
    # Honcho kills after 5 s, the supervisor after 4.
    assert DRAIN_S < 3.5


@pytest.mark.parametrize("by", ["signal", "message"])
def test_drain_lets_a_job_finish(serving: Any, gateway: Any, by: str) -> None:
    """What can be done within the grace is done, and then nobody waits any longer."""
    gateway.send(generate(1, "fake: slow@0.05", max_tokens=12))
    gateway.wait_until(Delta)
    if by == "signal":
        serving.process.send_signal(signal.SIGINT)
    else:
        gateway.send(Drain(30.0))
    assert gateway.wait_until(Done).usage.completion_tokens == 12
    assert serving.wait() == 0


def test_second_sigterm_ends_it_now(serving: Any, gateway: Any) -> None:
    """Whoever asks twice means it."""
    gateway.send(generate(1, "fake: slow@0.02", max_tokens=5000))
    gateway.wait_until(Delta)
    serving.process.send_signal(signal.SIGTERM)
    gateway.wait_until(Beat, lambda beat: beat.state is State.DRAINING)
    asked_at = time.monotonic()
    serving.process.send_signal(signal.SIGTERM)
    assert serving.wait() == 0
    assert time.monotonic() - asked_at < DRAIN_S


@pytest.mark.parametrize(("engine", "works"), [("WorksToLoad", True), ("SlowToLoad", False)])
def test_beats_tell_progress_when_the_engine_loads(
    engine_process: EngineProcess, gateway: Any, engine: str, works: bool
) -> None:
    """It grows with every beat of a process that computes, and stands still in one that only beats; neither is busy."""
    engine_process(f"tests.support.slow_engines:{engine}")
    gateway.greet()
    gateway.wait_until(Announce)
    # The first ones still tell of the start itself.
    beats = [gateway.wait_until(Beat) for _ in range(5)][2:]
    told = [beat.progress for beat in beats]
    assert all(beat.state is State.LOADING and not beat.busy for beat in beats)
    assert told == [*range(told[0], told[0] + 3)] if works else told == [told[0]] * 3


@linux
@pytest.mark.parametrize(("engine", "works"), [("GripsToLoad", True), ("HangsToLoad", False)])
def test_work_is_seen_from_outside_when_a_load_holds_the_interpreter(
    engine_process: EngineProcess, gateway: Any, engine: str, works: bool
) -> None:
    """No beat comes then; whether the process computes or hangs is for its supervisor to see."""
    process = engine_process(f"tests.support.slow_engines:{engine}")
    while gateway.listen(2.5):
        pass  # until it is silent
    work = ProcessWork(process.pid)
    assert not gateway.listen(1.0)
    assert work.count_work() == 1 + works


def test_first_beat_is_of_an_idle_engine_when_it_becomes_ready(engine_process: EngineProcess, gateway: Any) -> None:
    """Its step clock does not reach back into the time that it took to load."""
    engine_process("tests.support.slow_engines:QuickToLoad")
    gateway.greet()
    gateway.wait_until(Ready)
    beat = gateway.wait_until(Beat, lambda beat: beat.state is State.READY)
    assert (beat.busy, beat.step_age_s < 1.5) == (False, True)


@pytest.mark.parametrize(("engine", "state"), [("SlowToLoad", State.LOADING), ("SlowToWarm", State.WARMING)])
def test_sigterm_before_ready_ends_it_at_once(
    engine_process: EngineProcess, gateway: Any, engine: str, state: State
) -> None:
    """Nothing runs yet, so nothing is waited for; it had told how far it was."""
    process = engine_process(f"tests.support.slow_engines:{engine}")
    gateway.greet()
    gateway.wait_until(Announce, lambda announce: announce.state in (State.LOADING, State.WARMING))
    gateway.wait_until(Beat, lambda beat: beat.state is state)
    asked_at = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert time.monotonic() - asked_at < DRAIN_S


def test_engine_that_is_not_there_is_a_settings_error(engine_process: EngineProcess, gateway: Any) -> None:
    """A wrong `--engine` is no crash: the exit code says that starting it again will not help."""
    assert engine_process("worker.engines.nothing:Engine").wait() == 2


def test_model_that_cant_be_served_is_a_settings_error(engine_process: EngineProcess, gateway: Any) -> None:
    """Exit code 2, by which the supervisor knows that trying again soon changes nothing."""
    process = engine_process("tests.support.slow_engines:Unservable")
    assert process.wait() == 2


def test_process_whose_link_fails_ends(engine_process: EngineProcess, gateway: Any) -> None:
    """Unheard, it would keep its jobs for ever; ended, it is replaced, and they go on."""
    process = engine_process("tests.support.slow_engines:Untold")
    gateway.greet()
    gateway.wait_until(Ready)
    gateway.send(generate(1, "fake: slow@0.05", max_tokens=5000))
    assert process.wait() == 70


@pytest.mark.parametrize("at", [0, 2])
def test_blocked_engine_goes_on_beating_and_shows_it(serving: Any, gateway: Any, at: int) -> None:
    """While a step hangs, also the very first one, beats come, busy, with a counter that stands still and ages."""
    gateway.send(generate(1, f"fake: stall@{at}", max_tokens=5))
    gateway.wait_until(Accepted)
    first = gateway.wait_until(Beat, lambda beat: beat.busy and beat.step_age_s > 0.5)
    second = gateway.wait_until(Beat, lambda beat: beat.step_age_s > first.step_age_s + 0.9)
    assert first.state is second.state is State.READY
    assert first.step == second.step
    assert second.busy
    assert second.running == 1
    gateway.send(TokenizeJob(2, 1, TokenPrompt([5])))
    assert gateway.wait_until(Tokens).tokens == [5]


def test_engine_exception_ends_the_process_with_its_jobs_told(serving: Any, gateway: Any) -> None:
    """Every job in flight fails as worker_lost, retryable; then `Bye`, then exit code 70."""
    gateway.send(generate(1, "fake: slow@0.01", max_tokens=5000), generate(2, "fake: raise@3", max_tokens=9))
    told = {failed.job: failed for failed in (gateway.wait_until(Failed), gateway.wait_until(Failed))}
    assert sorted(told) == [1, 2]
    assert {(failed.code, failed.retryable) for failed in told.values()} == {(Code.WORKER_LOST, True)}
    assert gateway.wait_until(Bye).reason == "engine failure"
    assert serving.wait() == 70


def test_cancel_is_answered_and_frees_the_row(serving: Any, gateway: Any) -> None:
    """`Failed(cancelled)` within a step, and nothing of the job after it."""
    gateway.send(generate(1, "fake: slow@0.01", max_tokens=100_000))
    gateway.wait_until(Delta)
    asked_at = time.monotonic()
    gateway.send(Cancel(1, 1))
    failed = gateway.wait_until(Failed)
    assert (failed.job, failed.attempt, failed.code) == (1, 1, Code.CANCELLED)
    # What it has cost is told, though nobody waits for it.
    assert failed.usage is not None and failed.usage.stepped_tokens > failed.usage.completion_tokens > 0
    assert time.monotonic() - asked_at < 10, "the job itself takes a thousand seconds"
    beat = gateway.wait_until(Beat, lambda beat: not beat.busy)
    assert beat.running == 0
    assert not [message for _, message in gateway.heard if isinstance(message, Delta)]


def test_gateway_restart_keeps_the_process(serving: Any, gateway: Any, gateway_at: Callable[..., Any]) -> None:
    """Another gateway run finds it ready, with its old job gone and a new one of the same number served."""
    gateway.send(generate(1, "fake: slow@0.01", max_tokens=100_000))
    gateway.wait_until(Delta)
    gateway.close()
    new = gateway_at(8)
    new.greet()
    new.wait_until(Ready)
    new.heard.clear()
    new.send(generate(1, "hello", max_tokens=2))
    assert new.wait_until(Done).usage.completion_tokens == 2
    assert new.wait_until(Beat, lambda beat: not beat.busy).running == 0
    assert serving.process.poll() is None


def test_closed_lifeline_ends_it(serving: Any, gateway: Any) -> None:
    """With its supervisor gone it leaves, busy or not."""
    gateway.send(generate(1, "fake: stall@1", max_tokens=5))
    gateway.wait_until(Delta)
    serving.cut_lifeline()
    assert serving.wait() == 0


@linux
@pytest.mark.parametrize("with_gateway", [True, False])
def test_idle_process_costs_nothing(
    engine_process: EngineProcess, gateway_at: Callable[..., Any], with_gateway: bool
) -> None:
    """A few percent of a core at most, over three seconds, with and without a gateway to speak to."""
    gateway = gateway_at()
    process = engine_process()
    gateway.greet()
    gateway.wait_until(Ready)
    gateway.wait_until(Beat)
    if not with_gateway:
        gateway.close()
    before = process.cpu_s()
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        if with_gateway:
            gateway.listen(max(0.0, deadline - time.monotonic()))
        else:
            time.sleep(0.1)
    assert process.cpu_s() - before <= 0.15
