"""Two models behind a real socket whose adapters go by one name."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.pool import Pool
from protocol.messages import Kind
from tests.support.dispatch_peers import Peer
from tests.support.dispatch_rig import generate

Until = Callable[[Callable[[], bool]], Awaitable[float]]


async def served_by(pool: Pool, peer: Peer, name: str) -> str:
    """Ask for an adapter by name; the text of the worker that is meant to get the job."""
    async with pool.run_job(pool.find_model(name, Kind.CHAT), generate()) as stream:
        job = await peer.take_job()
        assert job.adapter == name
        await peer.answer(job, "done")
        return await text_of(stream)


async def text_of(stream: JobStream) -> str:
    pieces = []
    while (deltas := await stream.next_deltas()) is not None:
        pieces += [delta.text for delta in deltas]
    return "".join(pieces)


async def test_second_adapter_of_a_name_is_not_served_and_told(
    pool: Pool, run_dir: Path, wait_until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """The first keeps the name, replicas share it; the other's is in the log and with its worker, until it is free."""
    async with Peer(run_dir) as first, Peer(run_dir) as replica, Peer(run_dir) as second:
        await first.register("chat", adapters={"sql": "a"}, created=10)
        await wait_until(lambda: "sql" in names(pool))
        await second.register("coder", adapters={"sql": "b", "own": "c"}, created=20)
        await wait_until(lambda: "own" in names(pool))
        await replica.register("chat", adapters={"sql": "a"})
        await wait_until(lambda: len(pool.take_snapshot().workers) == 3)
        assert names(pool) == ["chat", "sql", "coder", "own"]
        assert pool.find_model("sql", Kind.CHAT).base is pool.find_model("chat", Kind.CHAT)
        shown = {worker.uid: (worker.adapters, worker.unserved_adapters) for worker in pool.take_snapshot().workers}
        reason = "an adapter of chat is called so"
        assert shown == {
            first.uid: (["sql"], {}),
            replica.uid: (["sql"], {}),
            second.uid: (["own"], {"sql": reason}),
        }
        assert warnings(caplog) == [f"the adapter sql of coder is not served under that name: {reason}"]
        assert await served_by(pool, second, "own") == "done"
        first.close()
        replica.close()
        await wait_until(lambda: pool.find_model("sql", Kind.CHAT).base is pool.find_model("coder", Kind.CHAT))
        assert await served_by(pool, second, "sql") == "done"


async def test_adapter_yields_to_a_model_of_its_name(
    pool: Pool, run_dir: Path, wait_until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """A served name means that model, whoever came first; no request goes where it was not sent."""
    async with Peer(run_dir) as first, Peer(run_dir) as second:
        await first.register("chat", adapters={"sql": "a"})
        await wait_until(lambda: "sql" in names(pool))
        assert await served_by(pool, first, "sql") == "done"
        await second.register("sql")
        await wait_until(lambda: pool.find_model("sql", Kind.CHAT).base is None)
        assert names(pool) == ["chat", "sql"]
        assert warnings(caplog) == ["the adapter sql of chat is not served under that name: a model is called so"]


def names(pool: Pool) -> list[str]:
    """What `/v1/models` lists."""
    return [variant.name for model in pool.models() for variant in model.variants]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
