"""Peers that die, freeze, or never were peers."""

import asyncio
import os
import signal
import socket as sockets
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gateway.dispatch.pool import Pool
from gateway.dispatch.state import ModelState
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.job_failure import JobFailed
from protocol.address import SOCKET_NAME
from protocol.codec import encode
from protocol.messages import Beat, Delta, KillEngine, State, TextPrompt
from tests.support import dispatch_peers
from tests.support.dispatch_peers import Peer
from tests.support.dispatch_rig import generate, supervision

Serving = Callable[..., Awaitable[ModelState]]
Until = Callable[[Callable[[], bool]], Awaitable[float]]
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(run_dir: Path) -> Iterator[Spawn]:
    """Starts worker processes that register and beat."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(uid: str, beat_s: float = 0.1) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, dispatch_peers.__file__, str(run_dir), uid, str(beat_s)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def test_jobs_wait_when_the_gateway_has_only_just_started(run_dir: Path, wait_until: Until) -> None:
    """A worker that dies before its supervisor has registered: another may be on its way, so its jobs wait a little."""
    pool = Pool(run_dir, limits=PoolTimeouts(tick_s=0.05, settle_s=0.6))
    await pool.start()
    began = time.perf_counter()
    async with Peer(run_dir, f"m/{uuid.uuid4().hex}") as worker:
        await worker.register()
        await wait_until(lambda: bool(pool.models()) and pool.models()[0].replicas == 1)
    async with pool.run_job(pool.models()[0], generate()) as stream:
        with pytest.raises(JobFailed) as failed:
            await stream.wait_accepted()
    assert failed.value.code == "model_not_ready"
    assert time.perf_counter() - began >= 0.5
    await pool.close()


async def test_a_killed_worker_is_noticed_before_its_beats_are_missed(
    pool: Pool, serving: Serving, spawn: Spawn, record_property: Callable[[str, object], None]
) -> None:
    """kill -9 ends its jobs at once: no timeout is waited for."""
    took_ms = []
    for _ in range(3):
        process = spawn(uuid.uuid4().hex)
        model = await serving(1)
        # Another prompt each time: the same one would soon be taken for the reason.
        async with pool.run_job(model, generate(prompt=TextPrompt(process.args[3]))) as stream:
            began = time.perf_counter()
            process.kill()
            with pytest.raises(JobFailed) as failed:
                await stream.wait_accepted()
            took_ms.append((time.perf_counter() - began) * 1000)
            assert failed.value.code == "model_not_ready"
        await serving(0)
    record_property("noticed_ms", took_ms)
    assert max(took_ms) < 1000 * PoolTimeouts().beat_timeout_s / 2


async def test_a_job_moves_on_when_its_worker_is_killed(
    pool: Pool, run_dir: Path, serving: Serving, spawn: Spawn, wait_until: Until
) -> None:
    """The client of a job without output only waits a little longer."""
    process = spawn("doomed")
    model = await serving(1)
    async with pool.run_job(model, generate()) as stream, Peer(run_dir) as other:
        await other.register()
        await serving(2)
        process.kill()
        job = await other.take_job()
        assert job.attempt == 2
        await other.answer(job, "saved")
        assert [delta.text for delta in await stream.collect_all()] == ["saved"]


async def test_last_words_are_heard_when_a_worker_dies_after_them(pool: Pool, run_dir: Path, serving: Serving) -> None:
    """What has arrived counts before the loss does: a finished job is finished."""
    async with Peer(run_dir, immediate=False) as peer:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            for _ in range(300):
                await peer.send(Delta(job.job, job.attempt, 0, [1], "x"))
            await peer.answer(job, "end")
            # Blocks this loop until all is written: the gateway sees the words and the end of the connection together.
            peer.socket.close(linger=1000)
            peer._context.term()
            assert (await stream.collect_all())[0].text == "x" * 300 + "end"


async def test_a_lost_supervisor_is_noticed_when_it_dies(pool: Pool, run_dir: Path, wait_until: Until) -> None:
    """A model that only it could have started is lost with it, after the grace that an interrupted connection has."""
    async with Peer(run_dir, f"m/sup/{uuid.uuid4().hex}") as supervisor:
        await supervisor.greeted()
        await supervisor.send(supervision("none"))
        await wait_until(lambda: bool(pool.models()) and pool.models()[0].state == "starting")
    assert await wait_until(lambda: pool.models()[0].state == "lost") < 3.5


async def test_a_stopped_worker_is_given_up_and_killed_when_its_beats_end(
    run_dir: Path, spawn: Spawn, wait_until: Until
) -> None:
    """SIGSTOP shows nowhere but in silence; its supervisor is told to end it, and if it wakes it may register again."""
    pool = Pool(run_dir, limits=PoolTimeouts(beat_timeout_s=0.6, tick_s=0.05))
    await pool.start()
    process = spawn("frozen")
    async with Peer(run_dir, f"m/sup/{uuid.uuid4().hex}") as supervisor:
        await supervisor.greeted()
        await supervisor.send(supervision("frozen"))
        await wait_until(lambda: bool(pool.models()) and pool.models()[0].replicas == 1)

        async def beat() -> None:
            while True:
                await supervisor.send(supervision("frozen"))
                await asyncio.sleep(0.1)

        beating = asyncio.create_task(beat())
        process.send_signal(signal.SIGSTOP)
        assert await wait_until(lambda: pool.models()[0].replicas == 0) > 0.4
        (order,) = await supervisor.receive()
        assert isinstance(order, KillEngine)
        assert order.worker == "frozen"
        process.send_signal(signal.SIGCONT)
        await wait_until(lambda: pool.models()[0].replicas == 1)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    await pool.close()


async def test_nothing_hangs_when_a_worker_reads_nothing(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """A peer that is full is lost, not waited for; its jobs go on elsewhere."""
    async with Peer(run_dir, read_ahead=1) as frozen, asyncio.timeout(60):
        await frozen.register(slots=100_000, queue_size=100_000)
        model = await serving()
        blocks = [pool.run_job(model, generate()) for _ in range(6000)]
        streams = [await block.__aenter__() for block in blocks]
        await wait_until(lambda: pool.take_snapshot().wire["lost_workers"] == 1)
        for stream in streams:
            with pytest.raises(JobFailed):
                await stream.wait_accepted()
        for block in blocks:
            await block.__aexit__(None, None, None)
        # It may come back once it reads again.
        async with Peer(run_dir) as healthy:
            await healthy.register()
            await serving(1)


GARBAGE = [
    (b"",),
    (b"", b""),
    (b"garbage",),
    (os.urandom(64), b"x" * 100),
    (b"\x80\x04]\x94\x8c\x07pickled\x94a.",),
    (encode([Beat(State.READY, 1, 0.0, False)], epoch=1)[:-4],),
    (b"\x93\x02\x01\x90",),
    (os.urandom(1 << 20),),
    (b"\x91" * (1 << 20),),
    tuple(b"%d" % number for number in range(300)),
]


async def test_a_worker_goes_on_serving_when_others_send_garbage(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """Random, truncated, pickled, wrong version, large, many frames: counted, and that is all."""
    async with Peer(run_dir) as peer, Peer(run_dir, "\x01stranger") as stranger:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            for frames in GARBAGE:
                await stranger.send_raw(*frames)
                await peer.send_raw(*frames)
            await wait_until(lambda: pool.take_snapshot().wire["bad_frame"] == 2 * len(GARBAGE))
            await peer.answer(job, "unimpressed")
            assert (await stream.collect_all())[0].text == "unimpressed"


async def test_a_worker_goes_on_serving_when_something_else_connects(
    pool: Pool, run_dir: Path, serving: Serving
) -> None:
    """A client that speaks another protocol, or none, at the socket file itself."""
    async with Peer(run_dir) as peer:
        await peer.register()
        model = await serving()
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + b"\x00" * 8 + b"\x7f"):
            with sockets.socket(sockets.AF_UNIX) as raw:
                raw.connect(str(run_dir / SOCKET_NAME))
                raw.sendall(junk)
        async with pool.run_job(model, generate()) as stream:
            await peer.answer(await peer.take_job(), "fine")
            assert (await stream.collect_all())[0].text == "fine"


async def test_a_worker_goes_on_serving_when_many_peers_come_and_go(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """Each disconnect has the others probed; nobody healthy is taken for dead."""
    async with Peer(run_dir) as peer:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            for number in range(60):
                async with Peer(run_dir, f"passing/{number}") as passing:
                    await passing.greeted()
            await peer.answer(job, "steady")
            assert (await stream.collect_all())[0].text == "steady"
        assert pool.take_snapshot().wire["lost_workers"] == 0


async def test_a_worker_may_return_when_its_frame_was_too_large(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """Over the size limit libzmq drops the connection: that is a loss like any other, and the peer reconnects."""
    async with Peer(run_dir, immediate=False) as peer:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            await peer.take_job()
            await peer.send_raw(b"\x00" * (65 * 1024 * 1024))
            with pytest.raises(JobFailed):
                await stream.collect_all()
        await serving(0)
        await peer.register()
        await serving(1)
