"""Jobs over a real socket."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.pool import Pool
from gateway.dispatch.state import ModelState
from gateway.dispatch.timeouts import PoolTimeouts
from gateway.job_failure import JobFailed
from protocol.errors import Code
from protocol.messages import (
    Accepted,
    Beat,
    Cancel,
    Delta,
    Done,
    Failed,
    GenerateJob,
    Hello,
    Kind,
    State,
    TextPrompt,
    TokenizeJob,
    Tokens,
    Usage,
)
from tests.support.dispatch_peers import Peer
from tests.support.dispatch_rig import announcement, generate, readiness

Serving = Callable[..., Awaitable[ModelState]]
Until = Callable[[Callable[[], bool]], Awaitable[float]]


async def text_of(stream: JobStream) -> str:
    """Everything a client would read."""
    pieces = []
    while (deltas := await stream.next_deltas()) is not None:
        pieces += [delta.text for delta in deltas]
    return "".join(pieces)


async def test_a_worker_serves_when_it_has_registered(pool: Pool, run_dir: Path, serving: Serving) -> None:
    """Greeting, announcement, job, output, end."""
    with pytest.raises(JobFailed, match="up yet"):
        pool.find_model("m", Kind.CHAT)
    async with Peer(run_dir) as peer:
        await peer.register(slots=4)
        await serving()
        model = pool.find_model("m", Kind.CHAT)
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            assert (await stream.wait_accepted()).prompt_tokens == 3
            await peer.answer(job, "hello ", "wor", "ld")
            assert await text_of(stream) == "hello world"
            assert stream.usage == Usage(3, 3)
        async with pool.run_job(model, TokenizeJob(0, 0, TextPrompt("x"))) as stream:
            (light,) = await peer.receive()
            assert isinstance(light, TokenizeJob)
            await peer.send(Tokens(light.job, light.attempt, [1, 2]))
            assert await stream.wait_result() == Tokens(light.job, light.attempt, [1, 2])
        assert pool.take_snapshot().request_types["text_stream"] == 1
        assert pool.take_snapshot().workers[0].rows == 0


async def test_streams_get_their_own_text_when_many_run_on_two_workers(
    pool: Pool, run_dir: Path, serving: Serving
) -> None:
    """Many jobs, two workers, engine steps that carry all rows: every word arrives once, in order, where it belongs."""
    steps, number = 60, 24

    async def engine(peer: Peer) -> None:
        jobs = [await peer.take_job() for _ in range(number // 2)]
        for step in range(steps):
            await peer.send(*[Delta(job.job, job.attempt, 0, [step], f"{job.job}:{step} ") for job in jobs])
        await peer.send(*[Done(job.job, job.attempt, Usage(3, steps)) for job in jobs])

    async def client(model: ModelState, collected: bool) -> None:
        async with pool.run_job(model, generate()) as stream:
            accepted = await stream.wait_accepted()
            text = (await stream.collect_all())[0].text if collected else await text_of(stream)
            assert text == "".join(f"{accepted.job}:{step} " for step in range(steps))
            assert stream.delivered == [list(range(steps))]

    async with Peer(run_dir) as one, Peer(run_dir) as two, asyncio.timeout(20):
        for peer in (one, two):
            await peer.register(slots=number // 2)
        model = await serving(2)
        async with asyncio.TaskGroup() as group:
            group.create_task(engine(one))
            group.create_task(engine(two))
            for at in range(number):
                group.create_task(client(model, collected=bool(at % 2)))


async def test_no_wakeup_is_lost_when_sends_and_drains_interleave_with_receiving(
    pool: Pool, run_dir: Path, serving: Serving
) -> None:
    """The socket signals edges: whatever else touches it, a waiting receiver gets the next message at once."""
    rounds = 600
    async with Peer(run_dir) as peer, asyncio.timeout(20):
        await peer.register(slots=4)
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            for at in range(rounds):
                await peer.send(*[Delta(job.job, job.attempt, 0, [at], "x")] * (at % 3 + 1))
                match at % 4:
                    case 0:
                        pool._link.receive_pending()
                    case 1:
                        pool._link.send_frame(peer.identity.encode(), pool._link._probe_frame)
                    case 2:
                        await asyncio.sleep(0)
                        pool._link.send_frame(peer.identity.encode(), pool._link._probe_frame)
                        pool._link.receive_pending()
                    case _:
                        pass
                got = 0
                while got < at % 3 + 1:
                    got += sum(len(delta.tokens) for delta in await stream.next_deltas() or [])


async def test_cancel_reaches_the_worker_when_the_client_leaves(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """A cancelled handler, wherever it waits; the slot is free once the worker has answered."""
    async with Peer(run_dir) as peer:
        await peer.register(slots=1)
        model = await serving()

        async def handler() -> None:
            async with pool.run_job(model, generate()) as stream:
                await stream.wait_accepted()
                await stream.collect_all()

        handlers = [asyncio.create_task(handler()) for _ in range(3)]
        jobs = [await peer.take_job() for _ in range(2)]
        await wait_until(lambda: pool.take_snapshot().models[0].queue_size == 1)
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        assert pool.take_snapshot().models[0].queue_size == 0
        assert [await peer.receive() for _ in range(2)] == [[Cancel(job.job, job.attempt)] for job in jobs]
        assert pool.take_snapshot().workers[0].rows == 2
        await peer.send(*[Failed(job.job, job.attempt, Code.CANCELLED, "cancelled") for job in jobs])
        await wait_until(lambda: pool.take_snapshot().workers[0].rows == 0)
        assert pool.take_snapshot().cancelled == 3


async def test_queued_jobs_time_out_when_no_slot_comes_free(pool: Pool, run_dir: Path, serving: Serving) -> None:
    """By the real clock, within the resolution of the timer."""
    async with Peer(run_dir) as peer:
        await peer.register(slots=1, queue_timeout_s=0.1, queue_size=1)
        model = await serving()
        async with (
            pool.run_job(model, generate()),
            pool.run_job(model, generate()),
            pool.run_job(model, generate()) as third,
        ):
            async with pool.run_job(model, generate()) as fourth:
                with pytest.raises(JobFailed) as failed:
                    await fourth.wait_accepted()
                assert failed.value.code == "queue_full"
            with pytest.raises(JobFailed) as failed:
                async with asyncio.timeout(60):
                    await third.wait_accepted()
            assert failed.value.code == "queue_timeout"


async def test_workers_register_again_when_the_gateway_restarts(run_dir: Path, wait_until: Until) -> None:
    """They are greeted into the new epoch; what they still had to say of the old one is dropped."""
    first = Pool(run_dir)
    await first.start()
    async with Peer(run_dir, immediate=False) as peer:
        await peer.register()
        await wait_until(lambda: bool(first.models()) and first.models()[0].replicas == 1)
        async with first.run_job(first.models()[0], generate()) as stream:
            old = await peer.take_job()
            await first.close()
            with pytest.raises(JobFailed) as failed:
                await stream.collect_all()
            assert failed.value.code == "shutting_down"
        old_epoch = peer.epoch
        # These wait in the peer's own queue, and arrive at the next gateway.
        for _ in range(20):
            await peer.send(Delta(old.job, old.attempt, 0, [1], "stale"))
        await peer.send(Done(old.job, old.attempt, Usage(3, 1)))
        second = Pool(run_dir)
        await second.start()
        while not isinstance((await peer.receive())[0], Hello):
            pass
        assert peer.epoch not in (0, old_epoch)
        await peer.send(announcement(peer.uid), readiness())
        await wait_until(lambda: bool(second.models()) and second.models()[0].replicas == 1)
        async with second.run_job(second.models()[0], generate()) as stream:
            job = await peer.take_job()
            assert (job.job, job.attempt) == (old.job, old.attempt)
            # The same job and attempt number, and the right sender: only the epoch tells them apart.
            await peer.send(Delta(job.job, job.attempt, 0, [1], "stale"), epoch=old_epoch)
            await peer.answer(job, "fresh")
            assert await text_of(stream) == "fresh"
        assert second.take_snapshot().wire["stranger"] >= 22
        await second.close()


async def test_a_greeted_worker_keeps_its_jobs_when_it_answers_again(
    pool: Pool, run_dir: Path, serving: Serving, wait_until: Until
) -> None:
    """An envelope of an old epoch earns a second greeting; running jobs do not suffer."""
    async with Peer(run_dir) as peer:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            await asyncio.sleep(PoolTimeouts().hello_interval_s)
            await peer.send(Beat(State.READY, 1, 0.0, False), epoch=1)
            assert isinstance((await peer.receive())[0], Hello)
            await peer.send(announcement(peer.uid), readiness())
            await peer.answer(job, "still here")
            assert await text_of(stream) == "still here"


async def test_a_step_of_many_rows_wakes_each_stream_once_when_steps_pile_up(
    pool: Pool, run_dir: Path, serving: Serving
) -> None:
    """A gateway that is behind catches up in fewer, larger pieces."""
    async with Peer(run_dir) as peer:
        await peer.register(slots=2)
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            job = await peer.take_job()
            await stream.wait_accepted()
            frames = 200
            for _ in range(frames):
                await peer.send(Delta(job.job, job.attempt, 0, [1], "x"))
            await peer.send(Done(job.job, job.attempt, Usage(3, frames)))
            reads = 0
            while await stream.next_deltas() is not None:
                reads += 1
                await asyncio.sleep(0.005)
            assert reads < frames / 2


async def test_accepted_comes_without_waiting_for_more_when_the_worker_is_quick(
    pool: Pool, run_dir: Path, serving: Serving
) -> None:
    """All of a job in one envelope is as good as step by step."""
    async with Peer(run_dir) as peer:
        await peer.register()
        model = await serving()
        async with pool.run_job(model, generate()) as stream:
            (job,) = await peer.receive()
            assert isinstance(job, GenerateJob)
            await peer.send(
                Accepted(job.job, job.attempt, 5),
                Delta(job.job, job.attempt, 0, [1], "all", finish="stop"),
                Done(job.job, job.attempt, Usage(5, 1)),
            )
            assert (await stream.wait_accepted()).prompt_tokens == 5
            assert [delta.text for delta in await stream.collect_all()] == ["all"]
