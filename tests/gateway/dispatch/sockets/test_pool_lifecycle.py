"""Starting and stopping: one gateway per folder, and nothing left behind."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from gateway.dispatch.link import WorkerLink
from gateway.dispatch.pool import Pool
from gateway.job_failure import JobFailed
from protocol.address import LOCK_NAME, SOCKET_NAME, AddressError
from protocol.messages import Beat, State
from tests.support.dispatch_peers import Peer
from tests.support.dispatch_rig import generate

Until = Callable[[Callable[[], bool]], Awaitable[float]]


def left_in(folder: Path) -> list[str]:
    """Names of the files there."""
    return [path.name for path in folder.iterdir()]


async def test_a_second_gateway_is_refused_when_one_runs(pool: Pool, run_dir: Path) -> None:
    """And the first one's socket is left alone."""
    second = Pool(run_dir)
    with pytest.raises(AddressError, match="another gateway"):
        await second.start()
    await second.close()
    async with Peer(run_dir) as peer:
        await peer.greeted()


async def test_the_folder_is_free_again_when_a_gateway_has_closed(run_dir: Path) -> None:
    """Again and again; only the lock's empty file stays, since removing it would be a race."""
    for _ in range(3):
        pool = Pool(run_dir)
        await pool.start()
        await pool.close()
        await pool.close()
    assert left_in(run_dir) == [LOCK_NAME]


async def test_the_lock_is_given_back_when_binding_fails(run_dir: Path) -> None:
    """A start that failed can be tried again."""
    obstacle = run_dir / SOCKET_NAME
    obstacle.mkdir()
    pool = Pool(run_dir)
    with pytest.raises(AddressError, match="can't listen"):
        await pool.start()
    obstacle.rmdir()
    await pool.start()
    await pool.close()


async def test_closing_works_when_the_pool_was_never_started(run_dir: Path) -> None:
    """For an application that failed before it got there."""
    await Pool(run_dir).close()


async def test_waiting_handlers_are_told_when_the_pool_closes(run_dir: Path, wait_until: Until) -> None:
    """None of them waits for ever."""
    pool = Pool(run_dir)
    await pool.start()
    async with Peer(run_dir) as peer:
        await peer.register(slots=1)
        await wait_until(lambda: bool(pool.models()) and pool.models()[0].replicas == 1)

        async def handler() -> str:
            async with pool.run_job(pool.models()[0], generate()) as stream:
                try:
                    await stream.collect_all()
                except JobFailed as failed:
                    return failed.code
            return "no failure"

        handlers = [asyncio.create_task(handler()) for _ in range(4)]
        await peer.take_job()
        async with asyncio.timeout(60):
            await pool.close()
            assert await asyncio.gather(*handlers) == ["shutting_down"] * 4


async def test_the_link_goes_on_when_a_message_can_not_be_handled(
    run_dir: Path, wait_until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours in one message is logged and costs that message alone."""
    seen: list[bytes] = []

    def receive(identity: bytes, frames: Sequence[bytes]) -> None:
        seen.append(identity)
        raise RuntimeError("a fault")

    def reached(number: int) -> bool:
        return len(seen) >= number

    link = WorkerLink(run_dir, probe=b"", receive=receive, gone=lambda identity, frozen: None, peers=list)
    await link.open()
    async with Peer(run_dir) as peer, asyncio.timeout(60):
        for number in range(1, 4):
            await peer.send(Beat(State.READY, 1, 0.0, False))
            await wait_until(partial(reached, number))
    await link.close()
    assert [record.levelno for record in caplog.records if record.name == "gateway.dispatch.link"] == [
        logging.ERROR
    ] * 3


async def test_sending_says_no_when_the_link_is_closed_or_the_peer_unknown(run_dir: Path) -> None:
    """Never an exception, never a wait; the unknown one is reported gone in a later turn."""
    gone: list[tuple[bytes, bool]] = []
    link = WorkerLink(
        run_dir,
        probe=b"",
        receive=lambda identity, frames: None,
        gone=lambda identity, frozen: gone.append((identity, frozen)),
        peers=list,
    )
    assert not link.send_frame(b"nobody", b"x")
    await link.open()
    assert not link.send_frame(b"nobody", b"x")
    assert gone == []
    await asyncio.sleep(0.01)
    assert gone == [(b"nobody", False)]
    link.receive_pending()
    await link.close()
    link.receive_pending()
    assert not link.send_frame(b"nobody", b"x")
