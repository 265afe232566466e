"""Models that were stopped on purpose, have left or are to be forgotten, and what is said of them."""

import logging

import pytest

from gateway.dispatch.workers.scaling import Scaling
from gateway.job_failure import JobFailed
from protocol.errors import Code
from protocol.messages import Bye, Drain, EndEngine, Failed, StartEngine, Watch
from tests.support.dispatch_rig import EPOCH, Rig, failure_code, supervision


def scaling_of(rig: Rig) -> Scaling:
    return Scaling(epoch=EPOCH, transport=rig.line, clock=rig.clock, registry=rig.registry)


def unload(rig: Rig) -> None:
    """Scale to nothing, and let the supervisor say that it did."""
    scaling_of(rig).scale_model(rig.model, 0, grace_s=1.0)
    rig.feed(b"w1", Bye("drained"))
    rig.supervise(supervision(watch=Watch.DRAINING, parked=True, engine_pid=0))


async def test_model_is_not_expected_when_it_was_unloaded(rig: Rig) -> None:
    """From the order on until it is loaded again; a request for it is no failure."""
    rig.supervise(supervision())
    rig.join()
    assert rig.model.expected
    scaling_of(rig).scale_model(rig.model, 0, grace_s=1.0)
    assert not rig.model.expected
    unload(rig)
    scaling_of(rig).reconcile()
    assert (rig.model.state, rig.model.expected) == ("stopped", False)
    job = rig.submit()
    assert (failure_code(job), job.outcome) == ("model_not_ready", "client_error")
    scaling_of(rig).load_model(rig.model, grace_s=1.0)
    assert rig.model.expected
    assert {type(message) for _, message in rig.sent()} == {Drain, EndEngine, StartEngine}


async def test_model_is_retired_when_its_supervisors_left_as_told(rig: Rig) -> None:
    """Its last supervisor said that it leaves, and left: nobody misses the model. Back again, it is as any other."""
    rig.supervise(supervision())
    rig.join()
    rig.supervise(supervision(watch=Watch.DRAINING))
    rig.feed(b"w1", Bye("SIGTERM"))
    rig.receiver.on_gone(b"sup", frozen=False)
    assert (rig.model.state, rig.model.expected, rig.model.present) == ("retired", False, False)
    rig.supervise(supervision("w2", watch=Watch.STARTING, engine_pid=0))
    assert (rig.model.state, rig.model.expected) == ("starting", True)
    rig.join("w2")
    assert (rig.model.state, rig.model.expected) == ("ready", True)


async def test_model_is_missed_when_its_supervisor_is_lost_without_a_word(rig: Rig) -> None:
    """A crash loop and a killed supervisor leave the model expected."""
    rig.supervise(supervision())
    rig.join()
    rig.supervise(supervision(watch=Watch.CRASH_LOOP, engine_pid=0))
    assert (rig.model.state, rig.model.expected) == ("crash_loop", True)
    rig.lose_supervisor()
    assert (rig.model.state, rig.model.expected) == ("lost", True)


async def test_model_is_expected_when_an_engine_is_restarted_on_request(rig: Rig) -> None:
    """A fresh engine is to follow: until it is there, the model is missed."""
    rig.supervise(supervision())
    worker = rig.join()
    scaling_of(rig).end_worker(worker, grace_s=1.0, again=True, reason="restarted")
    rig.feed(b"w1", Bye("drained"))
    assert (rig.model.up, rig.model.expected) == ([], True)


async def test_one_of_two_supervisors_leaves_when_told_and_the_other_is_lost(rig: Rig) -> None:
    """Whoever is last decides; the model stays expected as long as anybody runs an engine of it."""
    rig.supervise(supervision("a"), b"sup")
    rig.supervise(supervision("b"), b"other")
    rig.supervise(supervision("b", watch=Watch.DRAINING), b"other")
    rig.receiver.on_gone(b"other", frozen=False)
    assert rig.model.expected
    rig.lose_supervisor()
    assert (rig.model.state, rig.model.expected) == ("lost", True)


async def test_model_is_forgotten_when_nobody_is_here_for_it(rig: Rig) -> None:
    """And only then; with it go the names of its adapters."""
    rig.supervise(supervision())
    rig.join(adapters={"poet": "poet"})
    with pytest.raises(JobFailed, match="end its workers") as refused:
        rig.registry.forget_model(rig.model)
    assert refused.value.code == "model_in_use"
    rig.lose(rig.registry.workers[b"w1"])
    with pytest.raises(JobFailed, match="'m' is starting"):
        rig.registry.forget_model(rig.model)
    rig.lose_supervisor()
    rig.registry.forget_model(rig.model)
    assert not [*rig.registry]
    rig.join("w2", "n", adapters={"poet": "poet"})
    assert set(rig.registry.models["n"].adapters) == {"poet"}


async def test_stop_is_no_warning_when_it_was_asked_for(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The lines of an ordinary stop say who left, at INFO."""
    caplog.set_level(logging.INFO, "gateway")
    rig.supervise(supervision())
    rig.join()
    rig.supervise(supervision(watch=Watch.DRAINING))
    rig.feed(b"w1", Bye("SIGTERM"))
    rig.receiver.on_gone(b"sup", frozen=False)
    said = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == []
    assert "worker w1 of m left, 0 jobs in flight: it left: SIGTERM" in said
    assert "supervisor of m left" in said


async def test_death_is_told_with_its_reason_when_an_engine_dies(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each death, with what follows; a warning, as is the loss."""
    caplog.set_level(logging.INFO, "gateway")
    rig.supervise(supervision())
    rig.join()
    ended = "it was killed by the system, likely out of memory (signal 9)"
    for _ in range(3):
        rig.supervise(supervision(watch=Watch.BACKOFF, engine_pid=0, ended=ended, exit_code=-9, delay_s=0.5))
    rig.supervise(supervision("w2", ended=ended, restarts=1))
    rig.supervise(supervision("w2", watch=Watch.CRASH_LOOP, engine_pid=0, ended="it died", restarts=1, delay_s=60.0))
    deaths = [record for record in caplog.records if record.getMessage().startswith("engine ")]
    assert [record.getMessage() for record in deaths] == [
        f"engine w1 of m ended: {ended}; it is started again in 0.5 s",
        "engine w2 of m ended: it died; crash loop, the next try is in 60 s",
    ]
    assert {record.levelno for record in deaths} == {logging.WARNING}


async def test_jobs_that_went_on_are_told_when_their_worker_died(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """How many streams, and how many jobs without output, went on where; once."""
    caplog.set_level(logging.INFO, "gateway")
    first = rig.join(slots=8)
    jobs = [rig.submit() for _ in range(3)]
    for job in jobs[:2]:
        rig.accept(job)
        rig.output(job)
    rig.join("w2", slots=8)
    # Two of its jobs may be what it died of, and go one by one: the worker is told to leave instead.
    rig.feed(b"w1", *(Failed(job.id, 1, Code.DRAINING, "") for job in jobs))
    rig.lose(first)
    rig.dispatcher.report_continued()
    rig.dispatcher.report_continued()
    said = [record.getMessage() for record in caplog.records if "continued" in record.getMessage()]
    assert said == ["2 streams continued on worker w2 of m"]
    assert "1 job begun again on worker w2 of m" in caplog.text


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (Code.INVALID_REQUEST, "client_error"),
        (Code.UNSUPPORTED, "client_error"),
        (Code.CONTEXT_LENGTH, "client_error"),
        (Code.RATE_LIMITED, "client_error"),
        (Code.ENGINE_ERROR, "failed"),
        (Code.NOT_FINITE, "failed"),
        (Code.OUT_OF_MEMORY, "failed"),
    ],
)
async def test_failures_of_callers_count_apart_when_an_engine_refuses(rig: Rig, code: Code, outcome: str) -> None:
    """What alarms look at does not grow by what callers send; `error_count` has all of them."""
    rig.join()
    job = rig.submit()
    rig.feed(b"w1", Failed(job.id, 1, code, "no"))
    rig.dispatcher.release_job(job)
    assert dict(rig.stats.requests) == {("m", "text", outcome): 1}


async def test_full_queue_counts_as_refused_when_one_more_comes(rig: Rig) -> None:
    """There was no room for it: no failure, and no mistake."""
    rig.join(slots=1, queue_size=1)
    jobs = [rig.submit() for _ in range(4)]
    for job in jobs:
        rig.dispatcher.release_job(job)
    counts = {outcome: count for (_, _, outcome), count in rig.stats.requests.items()}
    assert counts["refused"] >= 1
    assert "failed" not in counts
