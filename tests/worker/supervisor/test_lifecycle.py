"""Decisions of the supervisor, with times given by the test."""

import itertools

import pytest

from protocol.messages import Watch
from worker.supervisor.lifecycle import (
    BecameHealthy,
    BecameReady,
    Begin,
    EndAsked,
    EngineLifecycle,
    Exited,
    Instruction,
    Kill,
    KillAsked,
    Leave,
    Log,
    Report,
    Spawned,
    SpawnFailed,
    Start,
    StopAsked,
    Terminate,
    Tick,
    WakeAsked,
)


class LifecycleDriver:
    """Drives an `EngineWatch` the way a supervisor does, with a clock that only the test moves."""

    def __init__(self) -> None:
        self.watch = EngineLifecycle("qwen3")
        self.now = 1000.0
        self.starts: list[float] = []
        self.lines: list[str] = []
        self.done: list[Instruction] = []
        self._ids = (f"w{number}" for number in itertools.count(1))

    def event(self, event: object, *, after_s: float = 0.0) -> list[Instruction]:
        """Handle an event; every `Start` succeeds at once."""
        self.now += after_s
        done = self.watch.handle(event, self.now)  # type: ignore[arg-type]
        for instruction in done:
            match instruction:
                case Start():
                    self.starts.append(self.now)
                    worker = next(self._ids)
                    self.event(Spawned(worker, 100 + len(self.starts)))
                case Log():
                    self.lines.append(instruction.text)
        return done

    def crash(self, *, after_s: float, code: int = -11, last_line: str = "") -> list[Instruction]:
        return self.event(Exited(self.watch.worker, code, last_line), after_s=after_s)

    def wait_for_start(self) -> float:
        """Tick at the deadline, and only there something starts; returns how long that took."""
        assert self.watch.deadline is not None
        wait_s = self.watch.deadline - self.now
        starts = len(self.starts)
        self.event(Tick(), after_s=wait_s - 0.001)
        assert len(self.starts) == starts, "started before the deadline"
        self.event(Tick(), after_s=0.001)
        assert len(self.starts) == starts + 1
        return wait_s


@pytest.fixture
def driver() -> LifecycleDriver:
    """A supervisor whose first engine runs."""
    driver = LifecycleDriver()
    driver.event(Begin())
    assert driver.watch.phase is Watch.RUNNING
    assert driver.watch.restarts == 0
    return driver


def test_exit_restarts_at_once_when_it_is_the_first(driver: LifecycleDriver) -> None:
    """The first death costs no wait, and the gateway is told."""
    done = driver.crash(after_s=30)
    assert Report() in done
    assert driver.starts == [1000.0, 1030.0]
    assert (driver.watch.phase, driver.watch.worker, driver.watch.pid) == (Watch.RUNNING, "w2", 102)
    assert (driver.watch.restarts, driver.watch.exit_code) == (1, -11)


def test_delays_grow_to_their_bound_when_deaths_follow_each_other(driver: LifecycleDriver) -> None:
    """0, 0.5, 1, 2, 4, 8, 16, 30, 30 seconds, where the deaths are too rare to be a crash loop."""
    driver.crash(after_s=40)
    waits = []
    for _ in range(8):
        driver.crash(after_s=40)
        assert driver.watch.phase is Watch.BACKOFF
        assert driver.watch.delay_s(driver.now) == driver.watch.deadline - driver.now
        waits.append(driver.wait_for_start())
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])


def test_delay_is_zero_again_when_an_engine_was_ready_for_a_minute(driver: LifecycleDriver) -> None:
    """A healthy run wipes the slate."""
    driver.crash(after_s=1)
    driver.crash(after_s=1)
    driver.wait_for_start()
    starts = len(driver.starts)
    driver.event(BecameReady(driver.watch.worker), after_s=5)
    driver.crash(after_s=60)
    assert len(driver.starts) == starts + 1


def test_delays_go_on_growing_when_engines_die_after_a_long_load(driver: LifecycleDriver) -> None:
    """Minutes of loading are no health: a model that dies at its end is not loaded again and again at once."""
    driver.crash(after_s=100)
    waits = []
    for _ in range(4):
        driver.crash(after_s=100)
        waits.append(driver.wait_for_start())
    assert waits == pytest.approx([0.5, 1, 2, 4])


def test_killed_engines_are_replaced_at_once_when_each_had_done_work(driver: LifecycleDriver) -> None:
    """A hundred kills a few seconds apart are no crash loop: every one of them served."""
    for killed in range(100):
        driver.event(BecameReady(driver.watch.worker), after_s=1)
        driver.event(BecameHealthy(driver.watch.worker), after_s=0.1)
        driver.crash(after_s=0.5, code=-9)
        assert len(driver.starts) == killed + 2
    assert driver.watch.phase is Watch.RUNNING


def test_crash_loop_opens_when_engines_become_ready_and_die_of_their_first_job(driver: LifecycleDriver) -> None:
    """Being ready for seconds proves nothing."""
    for _ in range(5):
        driver.event(BecameReady(driver.watch.worker), after_s=1)
        driver.crash(after_s=1)
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    assert driver.watch.phase is Watch.CRASH_LOOP


def test_words_of_a_predecessor_prove_nothing(driver: LifecycleDriver) -> None:
    """They may arrive after its end."""
    first = driver.watch.worker
    driver.crash(after_s=1)
    for _ in range(4):
        driver.event(BecameHealthy(first), after_s=0.5)
        driver.crash(after_s=0.5)
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    assert driver.watch.phase is Watch.CRASH_LOOP


def test_crash_loop_opens_at_the_fifth_death_within_two_minutes(driver: LifecycleDriver) -> None:
    """Five deaths stop the starts, the line says so and when the next one is."""
    for _ in range(4):
        driver.crash(after_s=1)
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    done = driver.crash(after_s=1)
    assert driver.watch.phase is Watch.CRASH_LOOP
    assert Report() in done
    assert driver.watch.delay_s(driver.now) == 60
    assert "number 5" in driver.lines[-1]
    assert "no more starts for 60 s, then one on trial" in driver.lines[-1]


def test_trial_pauses_again_when_it_dies_young(driver: LifecycleDriver) -> None:
    """Half open: one start, and its death closes the door for another minute."""
    test_crash_loop_opens_at_the_fifth_death_within_two_minutes(driver)
    assert driver.wait_for_start() == pytest.approx(60)
    assert driver.watch.phase is Watch.RUNNING
    assert "on trial" in driver.lines[-1]
    driver.crash(after_s=59)
    assert driver.watch.phase is Watch.CRASH_LOOP
    assert driver.wait_for_start() == pytest.approx(60)


def test_trial_ends_the_crash_loop_when_it_lives_for_a_minute(driver: LifecycleDriver) -> None:
    """After a healthy trial a death is a first death again."""
    test_crash_loop_opens_at_the_fifth_death_within_two_minutes(driver)
    driver.wait_for_start()
    starts = len(driver.starts)
    driver.event(BecameReady(driver.watch.worker), after_s=3)
    driver.crash(after_s=61)
    assert (driver.watch.phase, len(driver.starts)) == (Watch.RUNNING, starts + 1)


def test_config_error_pauses_at_the_third_try_and_says_the_reason(driver: LifecycleDriver) -> None:
    """Exit code 2 three times: waiting seconds won't help, and the log has the engine's own words."""
    for _ in range(2):
        driver.crash(after_s=1, code=2, last_line="no such model: /m")
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    driver.crash(after_s=1, code=2, last_line="no such model: /m")
    assert driver.watch.phase is Watch.CRASH_LOOP
    assert "can't serve with these settings: no such model: /m" in driver.lines[-1]


def test_model_is_given_up_when_two_loads_ran_out_of_memory(driver: LifecycleDriver) -> None:
    """None is started by itself again: each try costs those that serve. Whoever asks starts one."""
    driver.crash(after_s=30, code=71)
    assert (driver.watch.phase, len(driver.starts)) == (Watch.RUNNING, 2)
    driver.crash(after_s=30, code=71, last_line="[metal::malloc] no room")
    assert driver.watch.given_up
    assert driver.watch.ended == "it ran out of memory while it loaded, 2 times"
    assert "[metal::malloc] no room" in driver.lines[-1]
    driver.event(Tick(), after_s=3600)
    assert len(driver.starts) == 2
    driver.event(WakeAsked())
    assert (driver.watch.phase, len(driver.starts)) == (Watch.RUNNING, 3)


def test_memory_that_ran_out_at_work_is_a_crash_like_others(driver: LifecycleDriver) -> None:
    """A model that had loaded is started again."""
    for _ in range(3):
        driver.event(BecameReady(driver.watch.worker), after_s=1)
        driver.crash(after_s=61, code=71)
        assert driver.watch.ended == "it ran out of memory"
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    assert driver.watch.phase is Watch.RUNNING


def test_clean_exit_is_no_crash_when_the_engine_had_settled(driver: LifecycleDriver) -> None:
    """An engine that was drained (code 0) is replaced at once, however often."""
    for _ in range(20):
        driver.crash(after_s=11, code=0)
    assert (driver.watch.phase, len(driver.starts)) == (Watch.RUNNING, 21)


def test_clean_exits_are_a_crash_loop_when_they_come_at_once(driver: LifecycleDriver) -> None:
    """Code 0 right after the start must not spin."""
    for _ in range(5):
        driver.crash(after_s=0.1, code=0)
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    assert driver.watch.phase is Watch.CRASH_LOOP


def test_kill_nine_is_called_out_of_memory_when_nobody_asked(driver: LifecycleDriver) -> None:
    """Signal 9 out of the blue is the system's; one that the gateway asked for is not."""
    driver.crash(after_s=5, code=-9)
    assert any("killed by the system, likely out of memory" in line for line in driver.lines)
    driver.lines.clear()
    done = driver.event(KillAsked(driver.watch.worker, "no step for 31 s"))
    assert Kill() in done
    driver.crash(after_s=0, code=-9)
    assert any("was killed (no step for 31 s)" in line for line in driver.lines)
    assert not any("out of memory" in line for line in driver.lines)


def test_kill_is_ignored_when_it_names_another_engine(driver: LifecycleDriver) -> None:
    """An order about a predecessor must not hit its successor."""
    first = driver.watch.worker
    driver.crash(after_s=5)
    assert driver.event(KillAsked(first, "stalled")) == []
    assert driver.event(Exited(first, -9)) == []
    assert driver.watch.phase is Watch.RUNNING


def test_stop_drains_then_kills_then_leaves(driver: LifecycleDriver) -> None:
    """SIGTERM to the engine, SIGKILL 4 s later, and an end even if the kernel holds on to it."""
    done = driver.event(StopAsked("SIGTERM"))
    assert Terminate() in done
    assert Report() in done
    assert driver.watch.phase is Watch.DRAINING
    assert driver.event(Tick(), after_s=3.9) == []
    assert Kill() in driver.event(Tick(), after_s=0.1)
    assert driver.event(Tick(), after_s=0.1) == []
    assert Leave() in driver.event(Tick(), after_s=0.4)


def test_stop_leaves_when_the_engine_has_drained(driver: LifecycleDriver) -> None:
    """No restart while leaving."""
    driver.event(StopAsked("SIGTERM"))
    done = driver.crash(after_s=1, code=0)
    assert done[-1] == Leave()
    assert len(driver.starts) == 1


def test_second_stop_kills_now(driver: LifecycleDriver) -> None:
    """Whoever asks twice does not wait."""
    driver.event(StopAsked("SIGINT"))
    assert Kill() in driver.event(StopAsked("SIGINT"), after_s=0.1)
    assert Leave() in driver.event(Tick(), after_s=0.5)


def test_stop_leaves_at_once_when_no_engine_runs(driver: LifecycleDriver) -> None:
    """Nothing to wait for during a backoff."""
    driver.crash(after_s=1)
    driver.crash(after_s=1)
    assert driver.watch.phase is Watch.BACKOFF
    assert driver.event(StopAsked("SIGTERM"))[-1] == Leave()


def test_failed_start_backs_off_like_a_death() -> None:
    """A system out of processes is asked again later, not for ever at once."""
    watch = EngineLifecycle("qwen3")
    assert watch.handle(Begin(), 0.0) == [Start()]
    done = watch.handle(SpawnFailed("Resource temporarily unavailable"), 0.0)
    assert done[-1] == Start()
    watch.handle(SpawnFailed("Resource temporarily unavailable"), 0.0)
    assert (watch.phase, watch.delay_s(0.0)) == (Watch.BACKOFF, 0.5)


def test_pauses_grow_when_the_settings_stay_wrong(driver: LifecycleDriver) -> None:
    """A folder that is no model is looked at ever more seldom, each time with a line that says when."""
    pauses = []
    for _ in range(8):
        driver.crash(after_s=1, code=2, last_line="m is no model")
        if driver.watch.phase is Watch.CRASH_LOOP:
            pauses.append(driver.watch.delay_s(driver.now))
            assert f"m is no model; no more starts for {pauses[-1]:g} s" in driver.lines[-1]
        if driver.watch.deadline is not None:
            driver.wait_for_start()
    assert pauses == [60, 120, 240, 480, 600, 600]


def test_pauses_begin_anew_when_the_settings_were_right_once(driver: LifecycleDriver) -> None:
    """A crash of another kind is no such refusal."""
    test_pauses_grow_when_the_settings_stay_wrong(driver)
    driver.crash(after_s=1, code=-11)
    driver.wait_for_start()
    driver.event(BecameReady(driver.watch.worker))
    driver.event(BecameHealthy(driver.watch.worker))
    for _ in range(3):
        driver.crash(after_s=1, code=2)
        if driver.watch.phase is Watch.BACKOFF:
            driver.wait_for_start()
    assert driver.watch.delay_s(driver.now) == 60


def test_every_bad_line_says_what_comes_next(driver: LifecycleDriver) -> None:
    """A reader of the log never has to guess whether the pool will help itself."""
    lines: list[Log] = []
    for _ in range(6):
        lines += [step for step in driver.crash(after_s=1, code=-6, last_line="boom") if isinstance(step, Log)]
        if driver.watch.deadline is not None:
            driver.wait_for_start()
    assert len(lines) == 6
    for line in lines:
        assert line.bad
        assert "SIGABRT" in line.text
        assert "boom" in line.text
        assert "starting it again" in line.text or "no more starts for 60 s" in line.text


def test_ended_engine_is_replaced_at_once_when_a_fresh_one_was_asked_for(driver: LifecycleDriver) -> None:
    """However young and whatever its code: it was asked to, and that is no crash."""
    for number in range(10):
        driver.event(EndAsked(driver.watch.worker, 3.0, True, "rolled"), after_s=0.1)
        assert Report() in driver.crash(after_s=1, code=-9)
        assert len(driver.starts) == number + 2
    assert driver.watch.phase is Watch.RUNNING


def test_nothing_is_started_when_none_was_asked_for_until_it_is(driver: LifecycleDriver) -> None:
    """Parked: no engine, no deadline; woken: as new. A signal to leave is obeyed at once."""
    driver.event(EndAsked(driver.watch.worker, 3.0, False, "scaled down"))
    driver.crash(after_s=1, code=0)
    assert (driver.watch.phase, driver.watch.parked, driver.watch.deadline) == (Watch.DRAINING, True, None)
    assert driver.event(Tick(), after_s=1000) == []
    driver.event(WakeAsked())
    assert (driver.watch.phase, driver.watch.parked, len(driver.starts)) == (Watch.RUNNING, False, 2)
    assert driver.event(WakeAsked()) == []
    driver.event(EndAsked(driver.watch.worker, 3.0, False, "scaled down"))
    driver.crash(after_s=1, code=0)
    assert driver.event(StopAsked("SIGTERM")) == [Leave()]


def test_ending_engine_is_killed_when_its_grace_is_over(driver: LifecycleDriver) -> None:
    """One that does not listen must not keep its place for ever."""
    driver.event(EndAsked(driver.watch.worker, 3.0, True, "rolled"))
    assert driver.event(Tick(), after_s=3.9) == []
    assert Kill() in driver.event(Tick(), after_s=0.2)
    driver.crash(after_s=0.1, code=-9)
    assert (driver.watch.phase, len(driver.starts)) == (Watch.RUNNING, 2)


def test_place_is_given_up_when_its_engine_waits_to_be_started(driver: LifecycleDriver) -> None:
    """Scaling down takes those first that serve nobody."""
    driver.crash(after_s=1)
    driver.crash(after_s=1)
    assert driver.watch.phase is Watch.BACKOFF
    driver.event(EndAsked(driver.watch.worker, 3.0, False, "scaled down"))
    assert driver.watch.parked
    assert driver.event(EndAsked("another", 3.0, False, "x")) == []


@pytest.mark.parametrize(
    ("event", "ended"),
    [
        (Exited("w1", -11), "it died of SIGSEGV"),
        (Exited("w1", -9), "it was killed by the system, likely out of memory (signal 9)"),
        (Exited("w1", 70, "Traceback of /home/ada/secret.py"), "it ended with code 70"),
        (Exited("w1", 2, "no such model: /home/ada"), "it can't serve with these settings"),
    ],
)
def test_end_is_told_without_its_last_line_when_nobody_asked_for_it(
    driver: LifecycleDriver, event: Exited, ended: str
) -> None:
    """Anybody may read it."""
    assert driver.watch.ended == ""
    driver.event(event, after_s=30)
    assert driver.watch.ended == ended


def test_end_is_told_with_the_reason_when_the_gateway_ordered_it(driver: LifecycleDriver) -> None:
    """So that it is not taken for a crash; the next end has its own reason, and one that was asked for has none."""
    driver.event(KillAsked("w1", "its engine made no progress while loading"), after_s=400)
    driver.crash(after_s=0.1, code=-9)
    assert driver.watch.ended == "its engine made no progress while loading"
    driver.crash(after_s=30)
    assert driver.watch.ended == "it died of SIGSEGV"
    driver.wait_for_start()
    driver.event(EndAsked(driver.watch.worker, 3.0, True, "restarted"), after_s=30)
    driver.crash(after_s=1, code=0)
    assert (driver.watch.ended, driver.watch.phase) == ("", Watch.RUNNING)
