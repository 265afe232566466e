"""A pool on a real socket; every test runs on both event loops, since the socket's wake-ups depend on them."""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from gateway.dispatch.pool import Pool
from gateway.dispatch.state import ModelState
from gateway.dispatch.timeouts import PoolTimeouts

Until = Callable[[Callable[[], bool]], Awaitable[float]]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops that a gateway may run on."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a path short enough for a socket, however long the test's name."""
    with tempfile.TemporaryDirectory(prefix="pool-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def pool(run_dir: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Pool]:
    """A running pool with quick timers. After the test, nothing of it may be left, nor any error have been logged."""
    handles = open_files()
    pool = Pool(run_dir, limits=PoolTimeouts(tick_s=0.05, settle_s=0.0))
    await pool.start()
    yield pool
    await pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await wait_until(lambda: open_files() <= handles)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def wait_until(true: Callable[[], bool], *, patience_s: float = 60.0) -> float:
    """Wait, looking every millisecond; returns how long it took (seconds)."""
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > patience_s:
            raise AssertionError("it did not come to pass")
        await asyncio.sleep(0.001)
    return time.perf_counter() - began


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Until:
    """`wait_until`, for tests: conftests can't be imported."""
    return wait_until


@pytest.fixture
def serving(pool: Pool) -> Callable[[int], Awaitable[ModelState]]:
    """Waits until model `m` has so many ready workers."""

    async def wait(replicas: int = 1) -> ModelState:
        await wait_until(lambda: any(model.name == "m" and model.replicas == replicas for model in pool.models()))
        return pool.models()[0]

    return wait


def open_files() -> int:
    """How many file descriptors this process holds; 0 where that can't be seen."""
    folder = Path("/proc/self/fd")
    return len([*folder.iterdir()]) if folder.exists() else 0
