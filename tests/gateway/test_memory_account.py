"""The account of memory: who gets how much, and that all of it comes back."""

import asyncio
import gc
import weakref

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import memory_account
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.pool import _Run
from gateway.job_failure import JobFailed
from gateway.memory_account import MEMORY, MemoryAccount
from gateway.schema.errors import ApiError
from protocol.messages import Cancel, Failed, GenerateJob, Sampling, TextPrompt
from tests.support.dispatch_rig import Rig

JOB = GenerateJob(0, 0, "request", "tenant", TextPrompt("hello"), Sampling(1))


def refusal(account: MemoryAccount, tenant: str, size: int) -> ApiError:
    """What somebody is told who asks for too much."""
    with pytest.raises(ApiError) as raised:
        account.open_share(tenant).hold_bytes(size)
    return raised.value


def test_one_caller_gets_two_thirds_when_there_is_no_other() -> None:
    """The rest is for the next one, who gets its share at once."""
    account = MemoryAccount(900)
    account.open_share("one").hold_bytes(600)
    assert (refusal(account, "one", 1).code, account.refused) == ("queue_full", 1)
    account.open_share("two").hold_bytes(200)
    assert refusal(account, "two", 1).retry_after_s == 1.0
    assert account.held_bytes == 800


def test_request_is_told_so_when_there_can_never_be_room() -> None:
    """413, which SDKs do not try again."""
    error = refusal(MemoryAccount(900), "one", 601)
    assert (error.status, error.retry_after_s) == (413, None)
    assert "600 bytes" in error.message


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("hgsc"), st.integers(0, 400)), max_size=60))
@settings(deadline=None)
def test_account_is_empty_when_all_shares_are_closed(steps: list[tuple[int, str, int]]) -> None:
    """Whatever was held, given back, settled or refused in between; each caller leaves a third of what was free."""
    account = MemoryAccount(900)
    shares = [account.open_share(str(at)) for at in range(4)]
    for at, act, size in steps:
        share = shares[at]
        try:
            if act == "h":
                share.hold_bytes(size)
                assert account.held_bytes <= 900 - 900 // 3**4
            elif act == "g":
                share.release_bytes(min(size, share.held_bytes))
            elif act == "s":
                share.settle_bytes(min(size, share.held_bytes))
            else:
                share.close()
                shares[at] = account.open_share(str(at))
        except ApiError:
            assert act == "h"
        assert account.held_bytes == sum(share.held_bytes for share in shares)
    for share in shares:
        share.close()
    assert account.held_bytes == 0
    account.open_share("new").hold_bytes(600)


async def test_memory_is_held_when_a_job_outlives_its_request() -> None:
    """The client has left and the worker has not stopped yet: the job is still there, and so is what it holds."""
    rig, account = Rig(), MemoryAccount()
    worker = rig.join()
    share = account.open_share("tenant")
    share.hold_bytes(1000)
    async with _Run(rig.dispatcher, rig.model, JOB, (), None, share):
        pass
    share.close()
    ((_, cancel),) = rig.sent(Cancel)
    assert isinstance(cancel, Cancel)
    assert account.held_bytes == 1000
    rig.feed(worker.identity, Failed(cancel.job, cancel.attempt, "cancelled", ""))
    assert account.held_bytes == 0


async def test_memory_is_given_back_when_the_worker_of_a_left_job_dies() -> None:
    """No job is left, so nothing is held."""
    rig, account = Rig(), MemoryAccount()
    worker = rig.join()
    share = account.open_share("tenant")
    share.hold_bytes(1000)
    async with _Run(rig.dispatcher, rig.model, JOB, (), None, share):
        pass
    share.close()
    rig.lose(worker)
    assert account.held_bytes == 0


async def test_nothing_is_kept_when_a_job_has_failed() -> None:
    """What its handler had in hand goes with the handler, not when the collector comes by."""

    class Payload:
        pass

    async def handle(stream: JobStream) -> "weakref.ref[Payload]":
        payload = Payload()
        seen = weakref.ref(payload)
        try:
            await stream.wait_accepted()
        except JobFailed:
            return seen
        raise AssertionError

    gc.disable()
    try:
        stream = JobStream(1)
        stream.fail(JobFailed("queue_full", "full"))
        assert (await handle(stream))() is None
    finally:
        gc.enable()


async def test_free_memory_goes_back_to_the_system_when_a_burst_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, as soon as most of it is given back; small requests never cause it."""
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory_account, "RELEASE_S", 0.005)
    monkeypatch.setattr(memory_account, "release_free_memory", lambda: loop.call_soon_threadsafe(released.set))
    app = web.Application()
    account = app[MEMORY] = MemoryAccount()
    watching = memory_account.release_when_idle(app)
    await anext(watching)
    burst, small = account.open_share("one"), account.open_share("one")
    small.hold_bytes(1 << 20)
    burst.hold_bytes(64 << 20)
    burst.close()
    await asyncio.wait_for(released.wait(), 10)
    assert account.peak_bytes == 1 << 20
    with pytest.raises(StopAsyncIteration):
        await anext(watching)
