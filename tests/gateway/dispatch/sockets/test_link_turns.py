"""How the socket and the event loop share their turns.

Where these tests block the loop for a moment, it is for messages to arrive behind its back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from gateway.dispatch import link as link_module
from gateway.dispatch.link import TURN_MESSAGES, WorkerLink
from gateway.dispatch.pool import Pool
from gateway.dispatch.timeouts import PoolTimeouts
from protocol.messages import Beat, State
from tests.support.dispatch_peers import Peer

Until = Callable[[Callable[[], bool]], Awaitable[float]]
BEAT = Beat(State.READY, 1, 0.0, False)


@pytest.fixture
def seen() -> list[bytes]:
    """What the link has received."""
    return []


@pytest.fixture
async def link(run_dir: Path, seen: list[bytes]) -> AsyncIterator[WorkerLink]:
    """A link whose messages are only noted."""

    def receive(identity: bytes, frames: Sequence[bytes]) -> None:
        seen.extend(frames)

    link = WorkerLink(run_dir, probe=b"probe", receive=receive, gone=lambda identity, frozen: None, peers=list)
    await link.open()
    yield link
    await link.close()


def arrive() -> None:
    """Let what was sent arrive while the loop is busy with something else."""
    time.sleep(0.1)


async def test_the_rest_is_received_when_a_drain_stops_halfway(
    link: WorkerLink, run_dir: Path, seen: list[bytes], wait_until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain consumes the signal that the receiver waits for; what it leaves must not lie there for ever."""
    monkeypatch.setattr(link_module, "DRAIN_MESSAGES", 3)
    async with Peer(run_dir) as peer:
        await peer.send_raw(b"first")
        await wait_until(lambda: len(seen) == 1)
        for _ in range(10):
            await peer.send_raw(b"more")
        arrive()
        link.receive_pending()
        assert len(seen) == 4
        await wait_until(lambda: len(seen) == 11)


async def test_order_is_kept_when_the_socket_is_drained_while_the_receiver_is_being_woken(
    link: WorkerLink, run_dir: Path, seen: list[bytes]
) -> None:
    """What the receiver has been handed and not yet looked at came before all that a drain finds."""
    sent = 3000
    async with Peer(run_dir) as peer, asyncio.timeout(20):

        async def speak() -> None:
            for number in range(sent):
                await peer.send_raw(b"%d" % number)
                if number % 3 == 0:
                    await asyncio.sleep(0)

        speaker = asyncio.create_task(speak())
        while len(seen) < sent:
            await asyncio.sleep(0)
            link.receive_pending()
        await speaker
    assert seen == [b"%d" % number for number in range(sent)]


async def test_others_get_their_turn_when_messages_never_end(
    link: WorkerLink, run_dir: Path, seen: list[bytes]
) -> None:
    """The receiver takes a bounded number at a time, in order, and loses none."""
    sent = 8 * TURN_MESSAGES
    async with Peer(run_dir) as peer, asyncio.timeout(10):
        for number in range(sent):
            await peer.send_raw(b"%d" % number)
        arrive()
        largest = 0
        while len(seen) < sent:
            before = len(seen)
            await asyncio.sleep(0)
            largest = max(largest, len(seen) - before)
    assert largest <= TURN_MESSAGES
    assert seen == [b"%d" % number for number in range(sent)]


async def test_a_worker_is_kept_when_its_beat_waits_unread_in_our_own_socket(run_dir: Path, wait_until: Until) -> None:
    """A gateway that was busy for longer than its patience blames nobody for it."""
    now = 0.0
    pool = Pool(run_dir, limits=PoolTimeouts(tick_s=3600.0), clock=lambda: now)
    await pool.start()
    async with Peer(run_dir) as peer:
        await peer.register()
        await wait_until(lambda: bool(pool.models()) and pool.models()[0].replicas == 1)
        for _ in range(8):
            now += 0.75
            pool._liveness.note_time(now)
        await peer.send(BEAT)
        arrive()
        pool._tick()
        assert pool.models()[0].replicas == 1
        for _ in range(8):
            now += 0.75
            pool._liveness.note_time(now)
        pool._tick()
        assert pool.models()[0].state == "lost"
    await pool.close()
