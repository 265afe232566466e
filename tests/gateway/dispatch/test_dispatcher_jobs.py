"""Jobs on their way to workers and back."""

import random

import pytest

from gateway.dispatch.state import JobState
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.job_failure import JobFailed
from protocol.errors import Code
from protocol.messages import (
    Beat,
    Bye,
    Cancel,
    Delta,
    DetokenizeJob,
    Done,
    Failed,
    GenerateJob,
    Kind,
    Sampling,
    State,
    Text,
    TextPrompt,
    TokenizeJob,
    Tokens,
    Usage,
    Watch,
)
from tests.support.dispatch_rig import Rig, announcement, failure_code, generate, supervision


def beat(state: State = State.READY) -> Beat:
    return Beat(state, 1, 0.0, False)


async def test_at_most_one_row_above_the_slots_is_aboard_when_jobs_pour_in(rig: Rig) -> None:
    """The rest waits in the gateway, where it can still go elsewhere."""
    worker = rig.join(slots=3)
    flights = [rig.submit() for _ in range(10)]
    assert worker.rows == 4
    assert [flight.worker is not None for flight in flights] == [True] * 4 + [False] * 6
    rig.done(flights[0])
    assert worker.rows == 4
    assert flights[4].worker is worker


@pytest.mark.parametrize(("slots", "choices", "aboard"), [(4, 2, [2, 2]), (4, 4, [4]), (2, 8, [2]), (1, 1, [1, 1])])
async def test_choices_take_a_row_each_when_a_job_wants_several(
    rig: Rig, slots: int, choices: int, aboard: list[int]
) -> None:
    """A job with more choices than slots fills the worker, but never more."""
    worker = rig.join(slots=slots)
    for _ in range(5):
        rig.submit(generate(n=choices))
    assert [flight.rows for flight in worker.in_flight.values()] == aboard


async def test_jobs_are_numbered_when_they_are_sent(rig: Rig) -> None:
    """Ids are the gateway's, unique, with the attempt that is meant."""
    rig.join(slots=4)
    rig.submit()
    rig.submit()
    jobs = [message for _, message in rig.sent(GenerateJob)]
    assert [(job.job, job.attempt) for job in jobs] == [(1, 1), (2, 1)]
    assert jobs[0].request_id == "request"


async def test_the_least_loaded_worker_gets_the_job_when_there_are_several(rig: Rig) -> None:
    """By unfinished rows, and in turn among equals."""
    for uid in ("w1", "w2", "w3"):
        rig.join(uid, slots=4)
    uids = [rig.submit().worker.uid for _ in range(6)]  # type: ignore[union-attr]
    assert sorted(uids[:3]) == sorted(uids[3:]) == ["w1", "w2", "w3"]
    rig.join("w4", slots=4)
    assert [rig.submit().worker.uid for _ in range(2)] == ["w4", "w4"]  # type: ignore[union-attr]


async def test_slotless_jobs_pass_the_queue_when_every_slot_is_taken(rig: Rig) -> None:
    """Tokenising takes no slot and waits behind no generation."""
    worker = rig.join(slots=1)
    for _ in range(5):
        rig.submit()
    light = rig.submit(TokenizeJob(0, 0, TextPrompt("x")))
    assert light.worker is worker
    assert worker.rows == 2


async def test_slotless_jobs_are_bounded_when_many_come() -> None:
    """They queue beyond the bound, and go on as others end."""
    rig = Rig(PoolTimeouts(slotless_jobs=2))
    worker = rig.join()
    flights = [rig.submit(DetokenizeJob(0, 0, [1])) for _ in range(4)]
    assert worker.slotless == 2
    rig.feed(b"w1", Text(flights[0].id, 1, "x"))
    assert [flight.worker is worker for flight in flights] == [False, True, True, False]


async def test_tokenise_answers_when_its_result_comes(rig: Rig) -> None:
    """The terminal is the answer."""
    rig.join()
    flight = rig.submit(TokenizeJob(0, 0, TextPrompt("x")))
    rig.feed(b"w1", Tokens(flight.id, 1, [4, 5]))
    assert await flight.stream.wait_result() == Tokens(flight.id, 1, [4, 5])
    assert not rig.dispatcher.table.jobs


async def test_a_job_is_refused_at_once_when_the_queue_is_full(rig: Rig) -> None:
    """429 material, with a guess of when to come back."""
    rig.join(slots=1, queue_size=2)
    flights = [rig.submit() for _ in range(5)]
    assert [failure_code(flight) for flight in flights] == [None] * 4 + ["queue_full"]
    failure = flights[4].stream._failure
    assert failure is not None
    assert failure.message == "Too many requests. Service is at capacity."
    assert failure.retryable
    assert failure.retry_after_s is not None
    assert 1 <= failure.retry_after_s <= 120


async def test_retry_after_grows_when_jobs_take_long(rig: Rig) -> None:
    """Line times duration, by what was seen."""
    rig.join(slots=1, queue_size=10)
    quick = rig.model.retry_after_s
    for _ in range(8):
        flight = rig.submit()
        rig.clock.now += 20
        rig.done(flight)
    for _ in range(5):
        rig.submit()
    assert rig.model.retry_after_s > 10 * quick


async def test_a_free_slot_is_used_when_no_queue_is_allowed(rig: Rig) -> None:
    """A queue size of 0 refuses waiting, not work."""
    rig.join(slots=1, queue_size=0)
    assert [failure_code(rig.submit()) for _ in range(3)] == [None, None, "queue_full"]


async def test_a_job_fails_when_it_waits_past_the_timeout(rig: Rig) -> None:
    """504 material; what runs is not touched."""
    rig.join(slots=1, queue_timeout_s=10.0)
    flights = [rig.submit() for _ in range(3)]
    rig.clock.now += 10.1
    rig.dispatcher.expire_waiting(rig.model)
    assert [failure_code(flight) for flight in flights] == [None, None, "queue_timeout"]
    failure = flights[2].stream._failure
    assert failure is not None
    assert not failure.retryable
    assert len(rig.model.queue) == 0


async def test_jobs_wait_when_the_model_still_loads(rig: Rig) -> None:
    """Known but not up: queued, and sent once it is ready."""
    rig.join(state=State.LOADING, ready=False)
    flight = rig.submit()
    assert (flight.worker, len(rig.model.queue)) == (None, 1)
    rig.join(ready=True)
    assert flight.worker is not None


async def test_nothing_is_sent_when_a_worker_says_ready_without_its_ready(rig: Rig) -> None:
    """Its window and vocabulary are not known yet."""
    rig.join(ready=False)
    rig.feed(b"w1", beat())
    assert rig.submit().worker is None


@pytest.mark.parametrize("watch", [Watch.CRASH_LOOP, Watch.DRAINING, None])
async def test_a_job_is_refused_when_no_worker_will_come(rig: Rig, watch: Watch | None) -> None:
    """503 with a time to come back, at once: there is nothing to wait for."""
    worker = rig.join()
    if watch is not None:
        rig.supervise(supervision(engine="other", watch=watch, delay_s=60.0, engine_pid=0))
    rig.lose(worker)
    flight = rig.submit()
    failure = flight.stream._failure
    assert failure is not None
    assert (failure.code, failure.retryable) == ("model_not_ready", True)
    assert failure.retry_after_s == (5.0 if watch is None else 60.0)


async def test_waiting_jobs_fail_when_the_model_goes_into_a_crash_loop(rig: Rig) -> None:
    """Nobody waits 300 s for what will not come."""
    rig.supervise(supervision(watch=Watch.BACKOFF))
    flights = [rig.submit(), rig.submit(TokenizeJob(0, 0, TextPrompt("x")))]
    rig.supervise(supervision(watch=Watch.CRASH_LOOP))
    assert [failure_code(flight) for flight in flights] == ["model_not_ready"] * 2


async def test_waiting_jobs_fail_when_the_supervisor_leaves_too(rig: Rig) -> None:
    """The last hope has gone."""
    rig.supervise(supervision(watch=Watch.BACKOFF))
    flight = rig.submit()
    rig.lose_supervisor()
    assert failure_code(flight) == "model_not_ready"


async def test_waiting_jobs_wait_on_when_the_supervisor_was_only_cut_off(rig: Rig) -> None:
    """A broken connection is no verdict: its next beat comes over a new one."""
    rig.supervise(supervision(watch=Watch.BACKOFF))
    flight = rig.submit()
    rig.receiver.on_gone(b"sup", frozen=False)
    rig.clock.now += 1.5
    rig.supervise(supervision(watch=Watch.BACKOFF))
    rig.clock.now += 4.5
    assert rig.liveness.silent_supervisors(rig.clock()) == []
    assert flight.open


# -- cancellation ----------------------------------------------------------


async def test_leaving_frees_the_place_when_the_job_queues(rig: Rig) -> None:
    """No worker hears of it."""
    rig.join(slots=1)
    flights = [rig.submit() for _ in range(4)]
    rig.sent()
    rig.dispatcher.release_job(flights[2])
    assert rig.sent() == []
    assert rig.model.queue.head is flights[3]


async def test_leaving_lets_the_next_pass_when_the_head_was_too_wide(rig: Rig) -> None:
    """A job that did not fit no longer stands in the way."""
    rig.join(slots=4)
    rig.submit(generate(n=4))
    wide, narrow = rig.submit(generate(n=4)), rig.submit()
    assert narrow.worker is None
    rig.dispatcher.release_job(wide)
    assert narrow.worker is not None


@pytest.mark.parametrize("phase", ["sent", "accepted", "streaming"])
async def test_leaving_cancels_when_the_job_is_aboard(rig: Rig, phase: str) -> None:
    """The worker is told once; its slot stays taken until it answers."""
    worker = rig.join(slots=1)
    flight, second, waiting = rig.submit(), rig.submit(), rig.submit()
    if phase != "sent":
        rig.accept(flight)
    if phase == "streaming":
        rig.output(flight)
    rig.sent()
    rig.dispatcher.release_job(flight)
    assert rig.sent() == [("w1", Cancel(flight.id, 1))]
    assert (worker.rows, waiting.worker) == (2, None)
    rig.feed(b"w1", Failed(flight.id, 1, Code.CANCELLED, "cancelled"))
    assert (worker.rows, waiting.worker) == (2, worker)
    assert second.open
    assert flight.id not in rig.dispatcher.table.jobs


async def test_the_slot_comes_free_when_a_cancelled_job_was_already_done(rig: Rig) -> None:
    """Cancel and Done may cross."""
    worker = rig.join()
    flight = rig.submit()
    rig.dispatcher.release_job(flight)
    rig.feed(b"w1", Done(flight.id, 1, Usage(1, 1)))
    assert worker.rows == 0
    assert flight.outcome == "cancelled"


async def test_nothing_is_cancelled_when_the_client_leaves_after_the_end(rig: Rig) -> None:
    """The ordinary end of every request."""
    rig.join()
    flight = rig.submit()
    rig.done(flight)
    rig.sent()
    rig.dispatcher.release_job(flight)
    assert rig.sent() == []
    assert rig.stats.requests == {("m", "text", "done"): 1}


async def test_output_is_dropped_when_nobody_listens(rig: Rig) -> None:
    """A cancelled job's last deltas are kept by nobody."""
    rig.join()
    flight = rig.submit()
    rig.dispatcher.release_job(flight)
    rig.output(flight)
    assert flight.stream._pending == []


async def test_a_slow_reader_loses_its_job_when_too_much_is_unread(rig: Rig) -> None:
    """Its own job only, and the worker stops working on it."""
    rig.join()
    slow, other = rig.submit(), rig.submit()
    rig.sent()
    for _ in range(200):
        rig.output(slow, "x" * 10_000)
    rig.output(other)
    assert failure_code(slow) == "slow_reader"
    assert rig.sent() == [("w1", Cancel(slow.id, 1))]
    assert slow.stream._pending == []
    assert other.open


# -- the filter --------------------------------------------------------------


async def test_frames_are_dropped_when_job_attempt_or_sender_is_wrong(rig: Rig) -> None:
    """A stream only ever gets what its own current attempt produced."""
    rig.join("w1", slots=4)
    rig.join("w2", slots=4)
    flight = rig.submit()
    assert flight.worker is not None
    mine = flight.worker.identity
    other = b"w2" if mine == b"w1" else b"w1"
    rig.feed(mine, Delta(flight.id, 2, 0, [1], "wrong attempt"))
    rig.feed(mine, Delta(flight.id + 9, 1, 0, [1], "unknown job"))
    rig.feed(other, Delta(flight.id, 1, 0, [1], "wrong worker"))
    rig.feed(mine, Done(flight.id, 0, Usage(1, 1)))
    rig.feed(other, Done(flight.id, 1, Usage(1, 1)))
    assert flight.open
    assert flight.stream._pending == []
    assert rig.dispatcher.table.stale == 5


async def test_only_the_first_terminal_counts_when_a_worker_sends_several(rig: Rig) -> None:
    """Exactly one end per job."""
    worker = rig.join()
    flight = rig.submit()
    rig.feed(
        b"w1",
        Done(flight.id, 1, Usage(1, 7)),
        Failed(flight.id, 1, Code.ENGINE_ERROR, "late"),
        Delta(flight.id, 1, 0, [1], "late"),
        Done(flight.id, 1, Usage(1, 9)),
    )
    assert flight.stream.usage == Usage(1, 7)
    assert failure_code(flight) is None
    assert await flight.stream.next_deltas() is None
    assert (worker.rows, rig.dispatcher.table.stale) == (0, 3)


async def test_a_job_fails_when_its_terminal_is_of_another_kind_of_job(rig: Rig) -> None:
    """A faulty worker is an engine error, not a hang."""
    rig.join()
    flight = rig.submit()
    rig.feed(b"w1", Tokens(flight.id, 1, [1]))
    assert failure_code(flight) == "engine_error"


async def test_the_workers_words_reach_the_client_when_it_refuses(rig: Rig) -> None:
    """Code, message and parameter are the worker's."""
    rig.join()
    flight = rig.submit()
    rig.feed(b"w1", Failed(flight.id, 1, Code.CONTEXT_LENGTH, "600 + 10 > 512", "messages", False))
    failure = flight.stream._failure
    assert failure is not None
    assert (failure.code, failure.message, failure.param) == ("context_length_exceeded", "600 + 10 > 512", "messages")


async def test_the_line_moves_on_when_a_job_cannot_be_encoded(rig: Rig) -> None:
    """One request with half a surrogate pair fails alone."""
    rig.join(slots=1)
    bad = rig.submit(generate(prompt=TextPrompt("\ud800")))
    huge = rig.submit(generate(sampling=Sampling(2**70)))
    good = rig.submit()
    assert [failure_code(flight) for flight in (bad, huge, good)] == ["invalid_request", "invalid_request", None]
    assert good.worker is not None


# -- loss --------------------------------------------------------------------


async def test_a_job_keeps_its_buffers_when_it_starts_over(rig: Rig) -> None:
    """Its images go to the next worker as they went to the first."""
    worker = rig.join("w1")
    rig.submit(buffers=[b"picture"])
    rig.join("w2")
    rig.lose(worker)
    assert rig.line.buffers == [[b"picture"], [b"picture"]]


async def test_a_cancelled_job_ends_when_its_worker_is_lost(rig: Rig) -> None:
    """Nobody waits for it, so nobody runs it again."""
    worker = rig.join("w1")
    rig.join("w2")
    flight = rig.submit()
    rig.dispatcher.release_job(flight)
    rig.lose(worker)
    assert not rig.dispatcher.table.jobs


async def test_the_next_worker_gets_the_job_when_sending_fails(rig: Rig) -> None:
    """A peer that can't take it is not tried again; the attempt was never seen, so it is not counted."""
    rig.join("w1", slots=4)
    rig.join("w2", slots=4)
    rig.line.dead.add(b"w1")
    flights = [rig.submit() for _ in range(3)]
    assert [flight.worker.uid for flight in flights if flight.worker] == ["w2"] * 3
    assert [flight.attempt for flight in flights] == [1] * 3


async def test_jobs_wait_when_the_only_worker_can_not_be_sent_to(rig: Rig) -> None:
    """Until the line reports it gone; then it counts as any other loss."""
    worker = rig.join("w1")
    rig.line.dead.add(b"w1")
    flight = rig.submit()
    assert (failure_code(flight), len(rig.model.queue)) == (None, 1)
    rig.lose(worker)
    assert failure_code(flight) == "model_not_ready"


async def test_another_worker_takes_over_when_one_declines_because_it_drains(rig: Rig) -> None:
    """As often as it takes; the draining one gets nothing more."""
    rig.join("w1")
    rig.join("w2")
    flight = rig.submit()
    assert flight.worker is not None
    first = flight.worker
    rig.feed(first.identity, Failed(flight.id, 1, Code.DRAINING, "going", retryable=True))
    assert flight.worker is not None
    assert flight.worker is not first
    assert (flight.attempt, flight.suspect) == (2, False)
    assert not first.up


async def test_a_job_starts_over_when_its_engine_dies_aloud(rig: Rig) -> None:
    """An engine's last words count as its loss, and the next job does not go to it."""
    rig.join("w1")
    rig.join("w2")
    flight = rig.submit()
    assert flight.worker is not None
    dying = flight.worker
    rig.feed(dying.identity, Failed(flight.id, 1, Code.WORKER_LOST, "dying"))
    assert flight.worker is not dying
    assert (flight.attempt, flight.open) == (2, True)
    rig.feed(dying.identity, Bye("crashed"))
    assert dying.uid not in {worker.uid for worker in rig.registry.workers.values()}


async def test_no_job_is_sent_when_a_worker_drains(rig: Rig) -> None:
    """Its beat says so; what it runs it may finish."""
    worker = rig.join("w1")
    flight = rig.submit()
    rig.supervise(supervision(watch=Watch.DRAINING))
    rig.feed(b"w1", beat(State.DRAINING))
    assert failure_code(rig.submit()) == "model_not_ready"
    rig.done(flight)
    assert (flight.outcome, worker.rows) == ("done", 0)


async def test_every_job_ends_when_the_gateway_stops(rig: Rig) -> None:
    """Running and waiting ones alike; workers are told."""
    rig.join(slots=1)
    flights = [rig.submit() for _ in range(4)]
    rig.sent()
    rig.dispatcher.fail_all(JobFailed("shutting_down", "bye"))
    assert [failure_code(flight) for flight in flights] == ["shutting_down"] * 4
    assert len(rig.sent(Cancel)) == 2
    assert not rig.dispatcher.table.jobs


# -- everything at once ------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
async def test_every_job_ends_exactly_once_when_anything_happens(seed: int) -> None:
    """Random arrivals, output, ends, cancels, losses and returns: bounds hold throughout, and nothing is left over."""
    rig, chance = Rig(), random.Random(seed)
    rig.supervise(supervision("none"))
    rig.join("w0", slots=chance.randint(1, 4), queue_size=chance.randint(0, 8))
    flights: list[JobState] = []
    names = 0
    for _ in range(300):
        workers = list(rig.registry.workers.values())
        aboard = [flight for worker in workers for flight in worker.in_flight.values()]
        match chance.choices(["submit", "output", "end", "leave", "lose", "join", "time"], [8, 8, 5, 3, 1, 1, 1])[0]:
            case "submit":
                job = generate(n=chance.choice([1, 1, 2, 8]))
                flights.append(rig.submit(job if chance.random() < 0.8 else TokenizeJob(0, 0, TextPrompt("x"))))
            case "output" if aboard:
                rig.output(chance.choice(aboard))
            case "end" if aboard:
                flight = chance.choice(aboard)
                terminal = chance.choice(
                    [
                        Done(flight.id, flight.attempt, Usage(1, 1)),
                        Failed(flight.id, flight.attempt, chance.choice(list(Code)), "no"),
                    ]
                )
                assert flight.worker is not None
                rig.feed(flight.worker.identity, terminal, terminal)
            case "leave" if flights:
                rig.dispatcher.release_job(flights.pop(chance.randrange(len(flights))))
            case "lose" if workers:
                rig.lose(chance.choice(workers))
            case "join":
                names += 1
                rig.join(f"v{names}", slots=chance.randint(1, 4), queue_size=chance.randint(0, 8))
            case "time":
                rig.clock.now += chance.choice([0.1, 5.0, 301.0])
                rig.dispatcher.expire_waiting(rig.model)
            case _:
                pass
        for worker in rig.registry.workers.values():
            assert worker.rows == sum(flight.rows for flight in worker.in_flight.values()) <= worker.slots + 1
            assert worker.slotless == sum(flight.slotless for flight in worker.in_flight.values()) <= 64
        for flight in flights:
            assert flight.open or flight.id not in rig.dispatcher.table.jobs or flight.worker is not None
    for worker in list(rig.registry.workers.values()):
        rig.lose(worker)
    rig.lose_supervisor()
    assert not rig.dispatcher.table.jobs
    assert not any(flight.open for flight in flights)
    assert all(flight.outcome == "done" or failure_code(flight) for flight in flights)


async def test_models_do_not_mix_when_several_are_served(rig: Rig) -> None:
    """A job goes only to workers of its own model."""
    rig.join("w1", "m")
    rig.feed(b"w2", announcement("w2", "other", kind=Kind.EMBEDDING))
    rig.join("w3", "third")
    flights = [rig.submit(), rig.submit(model=rig.registry.models["third"])]
    assert [flight.worker.uid for flight in flights if flight.worker] == ["w1", "w3"]
