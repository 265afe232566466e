"""What peers send, well and badly."""

import logging
import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.dispatch.receiver import REMEMBERED_PEERS
from protocol.codec import encode
from protocol.messages import (
    Announce,
    Beat,
    Bye,
    Cancel,
    Delta,
    Done,
    Hello,
    KillEngine,
    Kind,
    State,
    Usage,
    Watch,
)
from tests.support.dispatch_rig import EPOCH, Rig, announcement, failure_code, readiness, supervision

BEAT = Beat(State.READY, 1, 0.0, False)


# -- registration ------------------------------------------------------------


async def test_a_stranger_is_greeted_when_it_says_anything(rig: Rig) -> None:
    """A worker that was there before the gateway beats in no epoch, and is asked who it is."""
    rig.feed(b"w1", BEAT, epoch=0)
    assert rig.sent() == [("w1", Hello(1))]
    assert not rig.registry.workers


async def test_a_worker_is_dispatchable_when_it_has_announced_itself_and_is_ready(rig: Rig) -> None:
    """Both in one envelope, in answer to the greeting."""
    rig.feed(b"w1", announcement(slots=5, created=77), readiness(context_length=9))
    model = rig.model
    assert (model.name, model.source, model.kind, model.created) == ("m", "org/m", Kind.CHAT, 77)
    assert (model.state, model.replicas, model.slots) == ("ready", 1, 5)
    assert model.ready == readiness(context_length=9)


async def test_an_announcement_is_ignored_when_it_is_of_another_epoch(rig: Rig) -> None:
    """A frame that was meant for the gateway before this one."""
    rig.feed(b"w1", announcement(), readiness(), epoch=EPOCH - 1)
    assert not rig.registry.workers
    assert rig.sent() == [("w1", Hello(1))]


async def test_content_is_ignored_when_a_known_worker_sends_an_old_epoch(rig: Rig) -> None:
    """Job ids start over with each gateway: an old one's output must not reach a new job."""
    worker = rig.join()
    flight = rig.submit()
    rig.sent()
    rig.feed(b"w1", Delta(flight.id, 1, 0, [1], "old"), Done(flight.id, 1, Usage(1, 1)), epoch=EPOCH - 1)
    assert flight.open
    assert flight.stream._pending == []
    assert rig.sent() == [("w1", Hello(1))]
    assert rig.registry.workers[b"w1"] is worker


async def test_greetings_are_rationed_when_a_stranger_talks_without_end(rig: Rig) -> None:
    """One per 200 ms and peer."""
    for _ in range(50):
        rig.feed(b"w1", BEAT, epoch=0)
        rig.feed(b"w2", BEAT, epoch=0)
    assert sorted(peer for peer, _ in rig.sent(Hello)) == ["w1", "w2"]
    rig.clock.now += 0.21
    rig.feed(b"w1", BEAT, epoch=0)
    assert rig.sent(Hello) == [("w1", Hello(1))]


async def test_jobs_go_on_when_a_worker_announces_itself_again(rig: Rig) -> None:
    """A second greeting in the same epoch changes nothing."""
    worker = rig.join()
    flight = rig.submit()
    rig.join()
    assert rig.registry.workers[b"w1"] is worker
    rig.output(flight)
    assert len(flight.stream._pending) == 1


@pytest.mark.parametrize(
    ("identity", "announce"),
    [
        (b"w1", announcement("another")),
        (b"w1", announcement("w1", "other-model")),
        (b"x1", announcement("w1")),
        (b"x1", announcement("x1", kind=Kind.VISION)),
        (b"sup", announcement("x1")),
    ],
)
async def test_an_announcement_is_refused_when_it_contradicts_what_is_known(
    rig: Rig, identity: bytes, announce: Announce
) -> None:
    """Another name under one identity, one name under two, another kind of the same model, a supervisor."""
    worker = rig.join()
    rig.supervise(supervision())
    rig.feed(identity, announce, readiness())
    assert list(rig.registry.workers.values()) == [worker]
    assert (worker.model.name, worker.model.kind) == ("m", Kind.CHAT)
    assert rig.stats.wire["contradiction"] == 1


async def test_a_model_may_change_its_kind_when_nobody_serves_it_any_more(rig: Rig) -> None:
    """An operator restarts a name with something else behind it."""
    rig.lose(rig.join())
    rig.join("w2", kind=Kind.VISION)
    assert rig.model.kind is Kind.VISION


async def test_a_worker_may_come_back_when_it_had_been_given_up(rig: Rig) -> None:
    """What it still works on for nobody is cancelled first."""
    worker = rig.join("w1")
    rig.join("w2")
    flights = [rig.submit() for _ in range(2)]
    mine = [flight.id for flight in flights if flight.worker is worker]
    rig.lose(worker)
    rig.sent()
    rig.feed(b"w1", BEAT)
    assert rig.sent() == [("w1", Hello(1))]
    rig.feed(b"w1", announcement("w1"), readiness())
    assert rig.sent() == [("w1", Cancel(mine[0], 1))]
    assert rig.registry.workers[b"w1"].up
    rig.feed(b"w1", Delta(mine[0], 1, 0, [1], "stale"), Done(mine[0], 1, Usage(1, 1)))
    assert [flight.open for flight in flights] == [True, True]
    assert rig.dispatcher.table.stale == 2


async def test_a_goodbye_is_a_loss_when_jobs_are_aboard(rig: Rig) -> None:
    """The engine process leaves by itself."""
    rig.join("w1")
    flight = rig.submit()
    rig.feed(b"w1", Bye("memory"))
    assert not rig.registry.workers
    assert failure_code(flight) == "model_not_ready"


# -- supervisors -------------------------------------------------------------


@pytest.mark.parametrize(
    ("watch", "changes", "alive"),
    [
        (Watch.RUNNING, {}, True),
        (Watch.RUNNING, {"exit_code": -9}, True),
        (Watch.DRAINING, {"exit_code": -9}, True),
        (Watch.DRAINING, {"engine_pid": 0}, False),
        (Watch.BACKOFF, {}, False),
        (Watch.CRASH_LOOP, {}, False),
        (Watch.STARTING, {"engine_pid": 0}, False),
        (Watch.BACKOFF, {"engine": "w2"}, True),
        (Watch.BACKOFF, {"engine": ""}, True),
    ],
)
async def test_a_worker_is_lost_when_its_supervisor_says_so(
    rig: Rig, watch: Watch, changes: dict[str, object], alive: bool
) -> None:
    """An exit code alone says nothing: it may be the predecessor's."""
    worker = rig.join("w1")
    rig.supervise(supervision(watch=watch, **changes))
    assert (worker in rig.registry.workers.values()) is alive


async def test_a_frozen_worker_is_killed_when_it_is_given_up(rig: Rig) -> None:
    """By its own supervisor; it would come back as a zombie otherwise."""
    worker = rig.join("w1")
    rig.supervise(supervision("w1"), b"sup1")
    rig.supervise(supervision("w2"), b"sup2")
    rig.sent()
    rig.receiver.on_gone(b"w1", frozen=True)
    assert rig.sent() == [("sup1", KillEngine("w1", "it reads nothing"))]
    assert worker.identity not in rig.registry.workers


async def test_nobody_is_killed_when_a_connection_just_ends(rig: Rig) -> None:
    """A process that is gone needs no kill, and one that is not may reconnect."""
    worker = rig.join("w1")
    rig.supervise(supervision("w1"))
    rig.sent()
    rig.lose(worker)
    assert rig.sent(KillEngine) == []


async def test_a_model_is_known_when_only_its_supervisor_has_spoken(rig: Rig) -> None:
    """Requests can wait for an engine that is still starting."""
    rig.supervise(supervision("", watch=Watch.STARTING, engine_pid=0))
    assert (rig.model.state, rig.model.may_become_ready, rig.model.created) == ("starting", True, 42)
    flight = rig.submit()
    rig.join("w1")
    assert flight.worker is not None


async def test_reports_that_contradict_are_ignored_when_they_come(rig: Rig) -> None:
    """A supervisor of a chat model can't become one of a vision model."""
    rig.join("w1")
    rig.supervise(supervision())
    rig.supervise(supervision(model="other"))
    rig.feed(b"sup2", msgspec.structs.replace(supervision(), kind=Kind.VISION))
    rig.feed(b"w1", supervision())
    assert list(rig.registry.supervisors) == [b"sup"]
    assert rig.stats.wire["contradiction"] == 3


async def test_what_goes_missing_is_forgotten_quietly_when_it_was_never_known(rig: Rig) -> None:
    """The line may report anyone."""
    rig.receiver.on_gone(b"nobody", frozen=True)
    assert rig.sent() == []


# -- garbage -----------------------------------------------------------------

GARBAGE = [
    b"",
    b"\x00",
    b"garbage",
    b"\x80\x04}\x94\x8c\x02os\x94\x8c\x06system\x94s.",  # a pickle
    encode([BEAT], epoch=EPOCH)[:-3],
    encode([BEAT], epoch=EPOCH) + b"x",
    msgspec.msgpack.encode((2, EPOCH, [])),
    msgspec.msgpack.encode((1, EPOCH, [["Beat", "not a state"]])),
    msgspec.msgpack.encode((1, EPOCH, [["Hello", 1]])),
    msgspec.msgpack.encode((1, -(2**63), [["Unknown"]])),
    b"\x91" * 100_000,
    os.urandom(1 << 20),
]


@pytest.mark.parametrize("frame", GARBAGE, ids=range(len(GARBAGE)))
async def test_a_frame_is_counted_and_ignored_when_it_is_no_message(rig: Rig, frame: bytes) -> None:
    """From strangers and from known workers alike; their jobs go on."""
    rig.join("w1")
    flight = rig.submit()
    rig.sent()
    for identity in (b"w1", b"\x00\xffstranger"):
        rig.receiver.on_frame(identity, [frame])
    assert rig.stats.wire["bad_frame"] == 2
    assert rig.sent() == []
    rig.output(flight)
    assert len(flight.stream._pending) == 1


async def test_a_message_without_frames_is_ignored(rig: Rig) -> None:
    """A peer may send its identity and nothing else."""
    rig.receiver.on_frame(b"w1", [])
    assert rig.stats.wire["bad_frame"] == 1


async def test_each_peer_is_mentioned_once_when_it_sends_garbage_for_ever(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The counter goes on, the log does not; and the memory of it is bounded."""
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            rig.receiver.on_frame(b"bad\n1", [b"x"])
            rig.receiver.on_frame(b"bad2", [b"x"])
    assert len(caplog.records) == 2
    assert "\n" not in caplog.records[0].getMessage()
    for number in range(3 * REMEMBERED_PEERS):
        rig.receiver.on_frame(b"%d" % number, [b"x"])
        rig.feed(b"%d" % number, BEAT, epoch=0)
    assert len(rig.receiver._logged) == len(rig.receiver._greeted) == REMEMBERED_PEERS


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.binary(max_size=200), cut=st.integers(0, 200), flip=st.tuples(st.integers(0, 199), st.integers(1, 255)))
async def test_nothing_raises_when_any_bytes_come(rig: Rig, frame: bytes, cut: int, flip: tuple[int, int]) -> None:
    """Random bytes, and real frames cut short or with one byte changed."""
    real = bytearray(encode([announcement(), readiness(), BEAT, Delta(1, 1, 0, [1], "x"), supervision()], epoch=EPOCH))
    rig.receiver.on_frame(b"fuzz", [frame])
    rig.receiver.on_frame(b"fuzz", [bytes(real[:cut])])
    real[flip[0] % len(real)] ^= flip[1]
    rig.receiver.on_frame(b"fuzz", [bytes(real)])
