"""The worker's end of the wire against a real ROUTER."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stress.waiting import wait_until

from protocol import codec
from protocol.address import endpoint
from protocol.errors import Code
from protocol.messages import (
    Accepted,
    Announce,
    Beat,
    Bye,
    Cancel,
    Delta,
    DetokenizeJob,
    Drain,
    Failed,
    Hello,
    KillEngine,
    Kind,
    Ready,
    State,
)
from worker.process.link import GatewayLink, Outbox
from worker.process.loop import Reset, Stop

PATIENCE_S = 10.0
READY = Ready(64, 100, "f", "", [], [], 1, 0.1, True, 0.1)


class FakePreprocessor:
    """Remembers what it was given; knows the jobs in `has`."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.has: set[int] = set()

    def take_job(self, epoch: int, job: Any, buffers: Sequence[bytes]) -> None:
        self.calls.put(("take", epoch, job, *buffers))

    def cancel_job(self, epoch: int, job: int, attempt: int) -> bool:
        return job in self.has

    def drop_waiting(self) -> None:
        self.calls.put(("clear",))


class Rig:
    """A link with stand-ins for all that it connects."""

    def __init__(self, run_dir: Path) -> None:
        self.commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox = Outbox()
        self.preprocessor = FakePreprocessor()
        self.ready: Ready | None = None
        self.step = 0
        self.failed = threading.Event()
        self.busy: Callable[[], bool] = bool
        self.link = GatewayLink(
            endpoint=endpoint(run_dir),
            identity=b"m/uid1",
            outbox=self.outbox,
            announce=lambda: Announce("uid1", "m", "org/m", Kind.CHAT, State.LOADING, 1, 2, 3, 4.0, 5),
            ready=lambda: self.ready,
            beat=lambda: Beat(State.READY, self.step, 0.0, self.busy()),
            commands=self.commands,
            preprocessor=self.preprocessor,  # type: ignore[arg-type]
            failed=self.failed.set,
        )

    def command(self) -> Any:
        return self.commands.get(timeout=PATIENCE_S)

    def call(self) -> Any:
        return self.preprocessor.calls.get(timeout=PATIENCE_S)


@pytest.fixture
def rig(run_dir: Path) -> Iterator[Rig]:
    rig = Rig(run_dir)
    rig.link.start()
    yield rig
    assert rig.link.close("over", timeout_s=PATIENCE_S)


@pytest.fixture
def met(rig: Rig, gateway: Any) -> Any:
    """The gateway, once the worker is in its epoch."""
    gateway.greet()
    gateway.wait_until(Announce)
    assert rig.command() == Reset(7)
    assert rig.call() == ("clear",)
    return gateway


def test_worker_speaks_first_and_is_greeted(rig: Rig, gateway: Any) -> None:
    """A beat of epoch 0 on connecting; after the greeting an `Announce` in the gateway's epoch, beats follow."""
    assert gateway.listen()
    assert gateway.peer == b"m/uid1"
    [(epoch, beat)] = gateway.heard
    assert (epoch, type(beat)) == (0, Beat)
    gateway.heard.clear()
    gateway.greet()
    while not any(isinstance(message, Announce) for _, message in gateway.heard):
        assert gateway.listen()
    assert {epoch for epoch, message in gateway.heard if isinstance(message, Announce)} == {7}
    assert not any(isinstance(message, Ready) for _, message in gateway.heard)
    gateway.heard.clear()
    assert gateway.listen()
    assert gateway.heard == [(7, Beat(State.READY, 0, 0.0, False))]


def test_ready_follows_the_announcement(rig: Rig, gateway: Any) -> None:
    """Once there is one, every greeting is answered with it, in the same envelope; `send_state` tells it at once."""
    rig.ready = READY
    for _ in range(2):
        gateway.greet()
        gateway.wait_until(Announce)
        assert gateway.heard[0] == (7, READY)
        gateway.heard.clear()
    rig.step = 41
    rig.link.send_state()
    gateway.wait_until(Ready)
    assert gateway.wait_until(Beat).step == 41


def test_beats_come_every_second(met: Any, rig: Rig) -> None:
    """Three in no less than about two seconds."""
    gateway = met
    gateway.wait_until(Beat)
    began = time.monotonic()
    for _ in range(2):
        gateway.wait_until(Beat)
    assert 1.5 < time.monotonic() - began < 20


def test_epoch_change_resets_once(met: Any, rig: Rig) -> None:
    """Another gateway run clears preprocessor and loop before its first job is taken; the same epoch does not."""
    job = DetokenizeJob(1, 1, [2])
    met.send(job)
    assert rig.call() == ("take", 7, job)
    met.send(job, epoch=8)
    assert rig.call() == ("clear",)
    assert rig.call() == ("take", 8, job)
    assert rig.command() == Reset(8)
    met.send(epoch=9)
    assert rig.call() == ("clear",)
    assert rig.command() == Reset(9)


def test_messages_keep_the_epoch_they_were_made_in(met: Any, rig: Rig) -> None:
    """What was produced for the last gateway run can't be taken for this one's."""
    rig.outbox.send_messages(3, [Accepted(1, 1, 5)])
    rig.outbox.send_messages(7, [Accepted(2, 1, 5)])
    found: dict[int, int] = {}
    while len(found) < 2:
        found |= {message.job: epoch for epoch, message in met.heard if isinstance(message, Accepted)}
        assert len(found) == 2 or met.listen()
    assert found == {1: 3, 2: 7}


def test_new_gateway_gets_nothing_of_the_old_one(rig: Rig, gateway_at: Callable[..., Any]) -> None:
    """Reconnected by itself, with a beat first and none that waited; messages without a gateway are dropped."""
    old = gateway_at(7)
    old.greet()
    old.wait_until(Announce)
    old.close()
    assert rig.command() == Reset(7)
    # Until the socket knows, it takes what is sent; what it took goes with the connection.
    time.sleep(0.1)
    began = time.monotonic()
    for number in range(20_000):
        rig.outbox.send_messages(7, [Delta(number, 1, 0, [1], "x" * 50)])
    assert time.monotonic() - began < 20
    while not rig.outbox.empty():
        time.sleep(0.01)
    assert time.monotonic() - began < 60
    new = gateway_at(8)
    new.greet()
    new.wait_until(Announce)
    assert rig.command() == Reset(8)
    rig.outbox.send_messages(8, [Accepted(1, 1, 1)])
    new.wait_until(Accepted)
    assert not [message for _, message in new.heard if isinstance(message, Delta)]


def test_nothing_is_lost_when_the_gateway_stands_still(met: Any, rig: Rig) -> None:
    """Far more frames than any queue's default wait for a gateway that is connected; all of them come, in order."""
    count = 150_000
    for number in range(count):
        rig.outbox.send_messages(7, [Delta(number, 1, 0, [1], "x")])
    wait_until(rig.outbox.empty)
    found: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        met.heard.clear()
        assert met.listen()
        found += [message.job for _, message in met.heard if isinstance(message, Delta)]
    assert found == list(range(count))


def test_no_gateway_at_all_blocks_nobody(rig: Rig) -> None:
    """Sending into the void returns at once, and the link still closes."""
    began = time.monotonic()
    for number in range(1000):
        rig.outbox.send_messages(0, [Accepted(number, 1, 1)])
    rig.link.send_state()
    rig.link.close("no gateway", timeout_s=PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"garbage",
        b"\xc1",
        b"\x91" * 100_000,
        codec.encode([READY], epoch=7),
        msgspec.msgpack.encode([2, 99, []]),
        codec.encode([Cancel(1, 1)], epoch=99)[:-1],
    ],
)
def test_garbage_is_ignored(met: Any, rig: Rig, frame: bytes) -> None:
    """Not even its epoch counts; the next good frame is obeyed."""
    met.send_raw(frame)
    met.send_raw(frame, b"more", b"frames")
    met.send(Drain(2.5))
    assert rig.command() == Stop(2.5)
    assert rig.preprocessor.calls.empty()


def test_extra_frames_are_ignored(met: Any, rig: Rig) -> None:
    """Buffers behind an envelope do not keep it from being read."""
    met.send_raw(codec.encode([Drain(1.5)], epoch=7), b"buffer", b"")
    assert rig.command() == Stop(1.5)


def test_orders_go_where_they_belong(met: Any, rig: Rig) -> None:
    """A cancel is answered here if the job had not left the preprocessor; else the loop's; kill orders are nobody's."""
    rig.preprocessor.has = {1}
    met.send(Cancel(1, 4), KillEngine("uid1", "not for us"), Cancel(2, 1), Drain(0.5))
    assert met.wait_until(Failed) == Failed(1, 4, Code.CANCELLED, "cancelled")
    assert rig.command() == Cancel(2, 1)
    assert rig.command() == Stop(0.5)


def test_what_cant_be_encoded_fails_its_own_job(met: Any, rig: Rig) -> None:
    """Half a surrogate pair ends the job whose text it is in; its neighbours in the envelope, and the link, go on."""
    rig.outbox.send_messages(7, [Delta(1, 2, 0, [5], "\ud800"), Delta(2, 1, 0, [6], "fine"), Bye("\udfff")])
    failed = met.wait_until(Failed)
    assert (failed.job, failed.attempt, failed.code) == (1, 2, Code.ENGINE_ERROR)
    assert met.wait_until(Delta) == Delta(2, 1, 0, [6], "fine")
    met.wait_until(Beat)


def test_close_says_goodbye_last(run_dir: Path, gateway: Any) -> None:
    """Everything queued before arrives before the `Bye`."""
    rig = Rig(run_dir)
    rig.link.start()
    gateway.greet()
    gateway.wait_until(Announce)
    for number in range(500):
        rig.outbox.send_messages(7, [Accepted(number, 1, 1)])
    rig.link.close("done here", timeout_s=PATIENCE_S)
    heard: list[Any] = []
    while not heard or not isinstance(heard[-1], Bye):
        if not gateway.heard:
            assert gateway.listen(2.0)
        heard += [message for _, message in gateway.heard]
        gateway.heard.clear()
    assert [message.job for message in heard if isinstance(message, Accepted)] == list(range(500))
    assert heard[-1] == Bye("done here")
    assert not gateway.listen(0.2)


def test_hello_is_answered_every_time(met: Any) -> None:
    """A gateway that asks twice is answered twice."""
    for _ in range(3):
        met.send(Hello(1))
        met.wait_until(Announce)


def test_link_that_can_not_go_on_says_so(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A process without a link would keep its jobs for ever, unheard: whoever owns it is told to end it."""

    def broken() -> bool:
        raise RuntimeError("deque mutated during iteration")

    rig.busy = broken
    assert rig.failed.wait(PATIENCE_S)
    assert "the link to the gateway failed" in caplog.text
