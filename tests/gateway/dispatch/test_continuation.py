"""Jobs whose worker is lost go on elsewhere, behind what their clients already have."""

import random

import pytest

from gateway.dispatch.state import JobState
from gateway.dispatch.timeouts import PoolTimeouts
from protocol.errors import Code
from protocol.messages import (
    Beat,
    Delta,
    Done,
    EmbedJob,
    Failed,
    GenerateJob,
    State,
    TextPrompt,
    TokenizeJob,
    Usage,
    Watch,
)
from tests.support.dispatch_rig import Rig, failure_code, generate, supervision


def sent_jobs(rig: Rig) -> list[GenerateJob]:
    """The generations that were sent since the last look."""
    return [message for _, message in rig.sent(GenerateJob) if isinstance(message, GenerateJob)]


async def test_a_job_without_output_starts_over_when_its_worker_is_lost(rig: Rig) -> None:
    """Under a new attempt, on another worker, ahead of the queue, with its buffers."""
    first = rig.join("w1", slots=1)
    rig.join("w2", slots=1)
    flights = [rig.submit() for _ in range(6)]
    aboard = [flight for flight in flights if flight.worker is first]
    assert len(aboard) == 2
    rig.accept(aboard[0])
    rig.lose(first)
    assert [(flight.worker, flight.attempt, flight.open) for flight in aboard] == [(None, 2, True)] * 2
    rig.sent()
    rig.done(next(flight for flight in flights if flight.worker is not None))
    assert [(job.job, job.attempt, job.delivered) for job in sent_jobs(rig)] == [(aboard[0].id, 2, [])]


async def test_a_stream_goes_on_behind_what_was_sent_when_its_worker_is_lost(rig: Rig) -> None:
    """What the client has read and what waits for it are told to the next worker, choice by choice."""
    worker = rig.join("w1")
    flight = rig.submit(generate(n=2))
    rig.output(flight, "a", tokens=[5])
    assert [delta.text for delta in await flight.stream.next_deltas() or []] == ["a"]
    rig.output(flight, "b", tokens=[6, 7])
    rig.output(flight, "c", tokens=[8], choice=1)
    rig.join("w2")
    rig.sent()
    rig.lose(worker)
    (again,) = sent_jobs(rig)
    assert (again.attempt, again.delivered) == (2, [[5, 6, 7], [8]])
    rig.output(flight, "d", tokens=[9])
    rig.done(flight)
    assert {delta.choice: delta.text for delta in await flight.stream.next_deltas() or []} == {0: "bd", 1: "c"}
    assert await flight.stream.next_deltas() is None
    assert failure_code(flight) is None


async def test_a_whole_answer_goes_on_too_when_its_worker_is_lost(rig: Rig) -> None:
    """A client that does not stream pays for no token twice."""
    worker = rig.join("w1")
    flight = rig.submit()
    rig.output(flight, "half an ")
    rig.join("w2")
    rig.lose(worker)
    rig.output(flight, "answer")
    rig.done(flight)
    assert [delta.text for delta in await flight.stream.collect_all()] == ["half an answer"]


async def test_an_echo_is_not_asked_for_twice_when_it_came_before_any_token(rig: Rig) -> None:
    """Text without a token: the lists are there, and empty, which tells an engine that the echo is out."""
    worker = rig.join("w1")
    flight = rig.submit(generate(echo=True, n=2))
    rig.output(flight, "the prompt", tokens=[])
    rig.join("w2")
    rig.sent()
    rig.lose(worker)
    assert sent_jobs(rig)[0].delivered == [[], []]


async def test_buffers_go_along_when_a_job_is_sent_again(rig: Rig) -> None:
    """Images are not in the job itself."""
    buffers: list[list[bytes]] = []
    worker = rig.join("w1")
    flight = rig.submit(buffers=[b"image"])
    send = rig.line.send_frame
    rig.line.send_frame = lambda identity, frame, behind=(): (buffers.append([*behind]), send(identity, frame, behind))[
        1
    ]  # type: ignore[method-assign]
    rig.join("w2")
    rig.lose(worker)
    assert flight.worker is not None
    assert buffers[-1] == [b"image"]


@pytest.mark.parametrize(
    "job", [EmbedJob(0, 0, "r", "t", texts=["x"]), TokenizeJob(0, 0, TextPrompt("x"))], ids=["embed", "tokenize"]
)
async def test_jobs_that_are_answered_at_once_start_over_when_their_worker_is_lost(
    rig: Rig, job: EmbedJob | TokenizeJob
) -> None:
    """There is nothing to go on behind."""
    worker = rig.join("w1")
    flight = rig.submit(job)
    rig.join("w2")
    rig.lose(worker)
    assert (flight.attempt, flight.worker.uid if flight.worker else "") == (2, "w2")


async def test_a_stream_waits_for_the_next_engine_when_there_is_none(rig: Rig) -> None:
    """As long as its supervisor is about to start one."""
    rig.supervise(supervision("w1"))
    worker = rig.join("w1")
    flight = rig.submit()
    rig.output(flight)
    rig.lose(worker)
    rig.supervise(supervision("w1", watch=Watch.BACKOFF, engine_pid=0))
    rig.clock.now += 59
    rig.dispatcher.expire_waiting(rig.model)
    assert flight.open
    rig.join("w2")
    assert flight.worker is not None


async def test_a_stream_ends_in_good_order_when_no_engine_comes_in_time() -> None:
    """Past the deadline, with a code that says that trying again may help; who has not begun may wait longer."""
    rig = Rig(PoolTimeouts(resume_s=10.0))
    rig.supervise(supervision("w1"))
    worker = rig.join("w1", slots=3)
    begun, fresh = rig.submit(), rig.submit()
    rig.output(begun)
    rig.lose(worker)
    rig.clock.now += 10.1
    rig.dispatcher.expire_waiting(rig.model)
    assert (failure_code(begun), failure_code(fresh)) == ("worker_lost", None)
    assert not rig.dispatcher.table.jobs.keys() - {fresh.id}


async def test_streams_end_in_good_order_when_the_supervisor_gives_up(rig: Rig) -> None:
    """A crash loop is no reason to keep anybody waiting."""
    rig.supervise(supervision("w1"))
    worker = rig.join("w1")
    begun, fresh = rig.submit(), rig.submit()
    rig.output(begun)
    rig.lose(worker)
    rig.supervise(supervision("w1", watch=Watch.CRASH_LOOP, engine_pid=0, delay_s=60.0))
    assert (failure_code(begun), failure_code(fresh)) == ("worker_lost", "model_not_ready")


async def test_a_stream_moves_on_when_its_worker_drains_before_it_is_done(rig: Rig) -> None:
    """Past its grace, a draining worker hands back what it has not finished; nobody is to blame."""
    rig.join("w1")
    rig.join("w2")
    flight = rig.submit()
    assert flight.worker is not None
    rig.output(flight, tokens=[4])
    first = flight.worker
    rig.sent()
    rig.feed(first.identity, Failed(flight.id, 1, Code.DRAINING, "going", retryable=True))
    assert flight.worker is not first
    assert [job.delivered for job in sent_jobs(rig)] == [[[4]]]
    assert not flight.suspect


async def test_nobody_is_blamed_when_a_draining_worker_is_gone(rig: Rig) -> None:
    """It was leaving anyway."""
    worker = rig.join("w1")
    flight = rig.submit()
    rig.feed(b"w1", Beat(State.DRAINING, 1, 0.0, False))
    rig.join("w2")
    rig.lose(worker)
    assert (flight.suspect, flight.worker is not None) == (False, True)


async def test_nobody_is_blamed_when_a_worker_that_was_told_to_leave_had_not_heard_of_it(rig: Rig) -> None:
    """What it said before the order came is late: it gets no more jobs, and its end says nothing about its own."""
    worker = rig.join("w1")
    flight = rig.submit()
    worker.state = State.DRAINING
    rig.feed(b"w1", Beat(State.READY, 1, 0.0, True))
    assert rig.submit().worker is None
    rig.join("w2")
    rig.lose(worker)
    assert (flight.suspect, flight.worker is not None) == (False, True)


async def test_a_job_ends_when_worker_after_worker_hands_it_back(rig: Rig) -> None:
    """Without getting any further it is not sent round for ever."""
    rig.supervise(supervision("none"))
    flight: JobState | None = None
    for at in range(40):
        rig.join(f"w{at}")
        flight = flight or rig.submit()
        if flight.worker is None:
            break
        rig.feed(flight.worker.identity, Failed(flight.id, flight.attempt, Code.DRAINING, "going", retryable=True))
    assert flight is not None
    assert failure_code(flight) == "worker_lost"
    assert flight.attempt == 25


async def test_nothing_of_an_old_attempt_counts_when_its_worker_comes_back_to_life(rig: Rig) -> None:
    """A frozen process that is let go speaks of an attempt that is over, from an identity that is unknown."""
    rig.join("w1")
    rig.join("w2")
    flight = rig.submit()
    assert flight.worker is not None
    frozen = flight.worker
    rig.output(flight, "a", tokens=[1])
    rig.receiver.remove_worker(frozen, "nothing was heard of it", kill=True)
    assert flight.worker is not None
    rig.feed(frozen.identity, Delta(flight.id, 1, 0, [2], "stale"), Done(flight.id, 1, Usage(1, 1)))
    rig.output(flight, "b", tokens=[2])
    rig.done(flight)
    assert [delta.text for delta in await flight.stream.next_deltas() or []] == ["ab"]

    return Usage(1, 1)


@pytest.mark.parametrize("seed", range(20))
async def test_every_stream_is_whole_when_workers_are_lost_at_random(seed: int) -> None:
    """Whatever is lost when, each client gets the tokens of its answer once, in order."""
    chance = random.Random(seed)
    rig = Rig()
    rig.supervise(supervision("none"))
    lengths = [chance.randint(1, 30) for _ in range(12)]
    flights: list[JobState] = []
    born = 0
    for turn in range(4000):
        if len(rig.registry.workers) < 2:
            born += 1
            rig.join(f"w{born}", slots=4)
        if turn % 7 == 0 and len(flights) < len(lengths):
            flights.append(rig.submit())
        for flight, length in zip(flights, lengths, strict=False):
            if flight.worker is None or not flight.open:
                continue
            at = flight.stream.reached
            if at < length:
                rig.output(flight, f"{at} ", tokens=[at])
            else:
                rig.done(flight)
        rig.clock.now += 0.02
        rig.dispatcher.assign_waiting(rig.model)
        if chance.random() < 0.01:
            rig.lose(chance.choice([*rig.registry.workers.values()]))
    assert [flight.outcome for flight in flights] == ["done"] * len(lengths)
    for flight, length in zip(flights, lengths, strict=True):
        assert (await flight.stream.collect_all())[0].text.split() == [str(at) for at in range(length)]
    assert not rig.dispatcher.table.jobs
    assert all(len(line) == 0 for line in rig.model.queues)
    assert all((worker.rows, worker.slotless) == (0, 0) for worker in rig.registry.workers.values())
