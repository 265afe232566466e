"""The engine loop with a scripted engine: no thread, no socket, no clock but a given one."""

import queue
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from protocol.errors import Code
from protocol.messages import Accepted, Cancel, Delta, Done, Failed, State, ToGateway, Usage
from worker.engines.base import Gauges
from worker.process.heartbeat import StepClock
from worker.process.loop import Loop, Reset, Stop
from worker.process.preprocessor import Admitted


class Script:
    """An engine whose jobs take a given number of steps; `at` holds what happens at a step, by its number."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.attempts: dict[int, int] = {}
        self.steps = 0
        self.cancelled: list[int] = []
        self.at: dict[int, Callable[[], None]] = {}

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        job, attempt, steps = prepared
        self.left[job], self.attempts[job] = steps, attempt
        return [Accepted(job, attempt, 1)]

    def cancel(self, job: int) -> bool:
        self.cancelled.append(job)
        return self.left.pop(job, None) is not None

    def step(self) -> Sequence[ToGateway]:
        self.steps += 1
        if self.steps in self.at:
            self.at[self.steps]()
        messages: list[ToGateway] = []
        for job in list(self.left):
            self.left[job] -= 1
            messages.append(Delta(job, self.attempts[job], 0, [self.left[job]]))
            if self.left[job] == 0:
                del self.left[job]
                messages.append(Done(job, self.attempts[job], Usage(1, 1)))
        return messages

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def gauges(self) -> Gauges:
        return Gauges(running=len(self.left))


class LoopHarness:
    """A loop, its engine, and what it sent as (epoch, message)."""

    def __init__(self) -> None:
        self.now = 100.0
        self.engine = Script()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.step_clock = StepClock(lambda: self.now)
        self.step_clock.enter_state(State.READY)
        self.sent: list[tuple[int, ToGateway]] = []
        self.proofs: list[int] = []
        self.loop = Loop(
            engine=self.engine,
            step_clock=self.step_clock,
            inbox=self.inbox,
            send=lambda epoch, messages: self.sent.extend((epoch, message) for message in messages),
            on_healthy=lambda: self.proofs.append(self.step_clock.step),
            clock=lambda: self.now,
        )
        self.put(Reset(7))

    def put(self, *commands: Any) -> None:
        for command in commands:
            self.inbox.put(command)

    def job(self, number: int, steps: int, *, attempt: int = 1, epoch: int = 7) -> Admitted:
        return Admitted(epoch, number, attempt, (number, attempt, steps))

    def at(self, step: int, *commands: Any) -> None:
        self.engine.at[step] = lambda: self.put(*commands)

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for _, message in self.sent if isinstance(message, kind)]


@pytest.fixture
def harness() -> LoopHarness:
    return LoopHarness()


def test_job_runs_to_its_end(harness: LoopHarness) -> None:
    """Accepted, a delta per step, done; all in the epoch it came in."""
    harness.put(harness.job(1, 3))
    harness.at(3, Stop(1.0))
    harness.loop.run()
    kinds = [type(message).__name__ for _, message in harness.sent]
    assert kinds == ["Accepted", "Delta", "Delta", "Delta", "Done"]
    assert {epoch for epoch, _ in harness.sent} == {7}


def test_command_is_taken_after_every_step(harness: LoopHarness) -> None:
    """What arrives while a step runs is obeyed before the next one: joins, cancels, all that is there."""
    harness.put(harness.job(1, 5))
    harness.at(2, harness.job(2, 2), harness.job(3, 9), Cancel(3, 1))
    harness.at(5, Stop(1.0))
    harness.loop.run()
    assert [delta.tokens for delta in harness.of(Delta) if delta.job == 2] == [[1], [0]]
    assert not [delta for delta in harness.of(Delta) if delta.job == 3]
    assert harness.of(Failed) == [Failed(3, 1, Code.CANCELLED, "cancelled")]
    assert harness.engine.steps == 5


def test_cancel_frees_within_a_step_and_is_answered_once(harness: LoopHarness) -> None:
    """No delta after the answer; a second cancel, and one of another attempt or job, is not answered."""
    harness.put(harness.job(1, 50, attempt=2), Cancel(1, 1), Cancel(9, 1))
    harness.at(3, Cancel(1, 2), Cancel(1, 2))
    harness.at(4, Stop(1.0))
    harness.put(harness.job(2, 4))
    harness.loop.run()
    assert harness.of(Failed) == [Failed(1, 2, Code.CANCELLED, "cancelled")]
    place = harness.sent.index((7, harness.of(Failed)[0]))
    assert not [message for _, message in harness.sent[place + 1 :] if message.job == 1]
    assert harness.engine.cancelled == [1]


def test_cancel_of_a_finished_job_is_not_answered(harness: LoopHarness) -> None:
    """Its terminal was the answer."""
    harness.put(harness.job(1, 1), harness.job(2, 4))
    harness.at(2, Cancel(1, 1))
    harness.at(4, Stop(1.0))
    harness.loop.run()
    assert len(harness.of(Done)) == 2
    assert not harness.of(Failed)
    assert harness.engine.cancelled == []


def test_reset_drops_every_job_silently(harness: LoopHarness) -> None:
    """A new gateway run: old jobs stop at once, nobody hears of them, what still comes of the old run is ignored."""
    harness.put(harness.job(1, 50), harness.job(2, 50))
    harness.at(2, Reset(8), harness.job(3, 50, epoch=7), harness.job(1, 2, epoch=8))
    harness.at(4, Stop(0.0))
    harness.loop.run()
    assert sorted(harness.engine.cancelled) == [1, 2]
    assert not harness.of(Failed)
    assert [message.job for epoch, message in harness.sent if epoch == 8] == [1, 1, 1, 1]
    assert 3 not in {message.job for _, message in harness.sent}


def test_nothing_before_the_first_epoch(harness: LoopHarness) -> None:
    """A job of an epoch that was never announced is nobody's."""
    harness.put(harness.job(1, 3, epoch=6), Stop(0.0))
    harness.loop.run()
    assert harness.sent == []


def test_stop_when_idle_ends_at_once(harness: LoopHarness) -> None:
    """Nothing runs: nothing is waited for."""
    harness.put(Stop(1000.0))
    harness.loop.run()
    assert harness.engine.steps == 0
    assert harness.step_clock.state is State.DRAINING


def test_drain_finishes_what_runs_and_refuses_what_comes(harness: LoopHarness) -> None:
    """Aboard runs to its end; later jobs are refused at once, retryable; cancels are still obeyed."""
    harness.put(harness.job(1, 6), harness.job(2, 60))
    harness.at(2, Stop(10.0), harness.job(3, 1))
    harness.at(3, Cancel(2, 1))
    harness.loop.run()
    assert [done.job for done in harness.of(Done)] == [1]
    draining, cancelled = harness.of(Failed)
    assert (draining.job, draining.code, draining.retryable) == (3, Code.DRAINING, True)
    assert (cancelled.job, cancelled.code) == (2, Code.CANCELLED)
    assert harness.engine.steps == 6


def test_deadline_fails_what_is_not_done(harness: LoopHarness) -> None:
    """When the grace is over each job in flight fails once, as draining and retryable."""
    harness.put(harness.job(1, 500), harness.job(2, 3), harness.job(4, 500))
    harness.at(2, Stop(2.0))

    def tick() -> None:
        harness.now += 1.0

    for step in range(3, 20):
        harness.engine.at[step] = tick
    harness.loop.run()
    assert [(failed.job, failed.code, failed.retryable) for failed in harness.of(Failed)] == [
        (1, Code.DRAINING, True),
        (4, Code.DRAINING, True),
    ]
    assert harness.engine.steps == 4


def test_engine_exception_fails_every_job_in_flight_and_goes_on_up(harness: LoopHarness) -> None:
    """Each job in flight, and none that had ended, fails as worker_lost, retryable; then the process must end."""

    def broken() -> None:
        raise RuntimeError("[METAL] command buffer failed")

    harness.put(harness.job(1, 9), harness.job(2, 1), harness.job(3, 9, attempt=4))
    harness.engine.at[3] = broken
    with pytest.raises(RuntimeError, match="METAL"):
        harness.loop.run()
    assert [(failed.job, failed.attempt, failed.code, failed.retryable) for failed in harness.of(Failed)] == [
        (1, 1, Code.WORKER_LOST, True),
        (3, 4, Code.WORKER_LOST, True),
    ]
    assert all("METAL" not in failed.message for failed in harness.of(Failed))


def test_exception_in_admit_counts_the_newcomer_too(harness: LoopHarness) -> None:
    """The job whose admission broke the engine is told as well."""

    def admit(_: Any) -> Sequence[ToGateway]:
        raise ValueError("broken")

    harness.engine.admit = admit  # type: ignore[method-assign]
    harness.put(harness.job(1, 9))
    with pytest.raises(ValueError, match="broken"):
        harness.loop.run()
    assert [failed.job for failed in harness.of(Failed)] == [1]


def test_every_job_has_one_terminal(harness: LoopHarness) -> None:
    """Done, cancelled, refused, cut off by the deadline: once each, and nothing behind it."""
    harness.put(harness.job(1, 2), harness.job(2, 500), harness.job(3, 500))
    harness.at(3, Cancel(2, 1), Stop(0.0), harness.job(4, 1))
    harness.loop.run()
    for number in (1, 2, 3, 4):
        own = [message for _, message in harness.sent if message.job == number]
        assert [isinstance(message, Done | Failed) for message in own].count(True) == 1
        assert isinstance(own[-1], Done | Failed)


def test_step_clock_counts_the_rounds(harness: LoopHarness) -> None:
    """The step counter moves with every turn and tells when there is nothing to do."""
    seen: list[int] = []

    def look() -> None:
        assert harness.step_clock.busy
        seen.append(harness.step_clock.step)

    for step in (1, 2, 3):
        harness.engine.at[step] = look
    harness.put(harness.job(1, 3), Stop(9.0))
    harness.loop.run()
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]
    assert not harness.step_clock.busy
    harness.now += 2.5
    assert harness.step_clock.age_s(harness.step_clock.read_state()) == 2.5


def test_first_step_after_idling_shows_that_it_is_under_way(harness: LoopHarness) -> None:
    """While it runs the step clock is busy and its age counts from its begin: a hang shows, idle hours do not."""
    seen: list[tuple[bool, float]] = []

    def look() -> None:
        harness.now += 4.0
        seen.append((harness.step_clock.busy, harness.step_clock.age_s(harness.step_clock.read_state())))

    class Later:
        """An inbox whose second command comes an hour after the first."""

        def __init__(self) -> None:
            self.commands = [Reset(7), harness.job(1, 1), Stop(0.0)]

        def get(self) -> Any:
            assert not harness.step_clock.busy
            harness.now += 3600.0
            return self.commands.pop(0)

        def get_nowait(self) -> Any:
            raise queue.Empty

    harness.engine.at[1] = look
    harness.loop.inbox = Later()  # type: ignore[assignment]
    harness.loop.run()
    assert seen == [(True, 4.0)]


@pytest.mark.parametrize(("steps", "proofs"), [(2, 1), (7, 1)])
def test_process_is_healthy_once_when_a_job_has_ended(harness: LoopHarness, steps: int, proofs: int) -> None:
    """A finished job is proof enough, and said once."""
    harness.put(harness.job(1, steps), harness.job(2, steps))
    harness.at(steps, Stop(1.0))
    harness.loop.run()
    assert len(harness.proofs) == proofs


def test_process_is_healthy_after_some_steps_when_no_job_ends(harness: LoopHarness) -> None:
    """Long answers count, too; an engine that fails in its first steps has proved nothing."""
    harness.put(harness.job(1, 50))
    harness.at(6, Stop(0.0))
    harness.loop.run()
    assert harness.proofs == []
    again = LoopHarness()
    again.put(again.job(1, 50))
    again.at(20, Stop(0.0))
    again.loop.run()
    assert len(again.proofs) == 1
