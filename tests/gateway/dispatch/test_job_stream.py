"""What a handler reads."""

import asyncio
from typing import Any

import pytest

from gateway.dispatch.jobs.stream import JobStream
from gateway.job_failure import JobFailed
from protocol.messages import Accepted, Delta, Text, TokenLogprob, ToolCall, Usage


def delta(text: str = "", choice: int = 0, **fields: Any) -> Delta:
    return Delta(1, 1, choice, fields.pop("tokens", [7]), text, **fields)


async def test_deltas_are_coalesced_when_several_came_between_two_reads() -> None:
    """One delta per choice; text joined, lists extended, the finish kept."""
    stream = JobStream(2)
    call = ToolCall(0, "c1", "f", "{}")
    logprob = TokenLogprob("a", b"a", -1.0)
    stream.feed_delta(delta("a", reasoning="r1", tokens=[1], logprobs=[logprob]))
    stream.feed_delta(delta("B", choice=1, tokens=[9]))
    stream.feed_delta(delta("b", reasoning="r2", tokens=[2, 3], calls=[call], finish="stop"))
    stream.feed_delta(delta("", tokens=[]))
    taken = await stream.next_deltas()
    assert taken == [
        delta("ab", reasoning="r1r2", tokens=[1, 2, 3], calls=[call], logprobs=[logprob], finish="stop"),
        delta("B", choice=1, tokens=[9]),
    ]
    assert stream.delivered == [[1, 2, 3], [9]]


async def test_the_end_comes_after_the_last_delta_when_both_are_there() -> None:
    """Nothing is lost at the end."""
    stream = JobStream(1)
    stream.feed_delta(delta("a"))
    stream.finish(Usage(1, 1))
    assert await stream.next_deltas() == [delta("a")]
    assert await stream.next_deltas() is None
    assert await stream.next_deltas() is None
    assert stream.usage == Usage(1, 1)


async def test_a_failure_comes_after_what_was_sent_before_it() -> None:
    """A stream that breaks still hands out what it has."""
    stream = JobStream(1)
    stream.feed_delta(delta("a"))
    stream.fail(JobFailed("worker_lost", "gone"))
    assert await stream.next_deltas() == [delta("a")]
    for _ in range(2):
        with pytest.raises(JobFailed, match="gone"):
            await stream.next_deltas()


async def test_a_reader_is_woken_once_when_many_deltas_come_in_one_turn() -> None:
    """A burst costs one wake-up."""
    stream = JobStream(1)
    reads: list[list[Delta] | None] = []

    async def read() -> None:
        while True:
            reads.append(await stream.next_deltas())
            if reads[-1] is None:
                return

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    for _ in range(50):
        stream.feed_delta(delta("x"))
    await asyncio.sleep(0)
    assert [len(read[0].text) for read in reads if read] == [50]
    stream.finish(Usage(1, 50))
    await reader


async def test_collect_sleeps_through_when_deltas_come_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not stream costs nothing per step."""
    stream = JobStream(2)
    woken = 0
    create_future = stream._loop.create_future
    futures: list[asyncio.Future[None]] = []

    def counted() -> asyncio.Future[None]:
        futures.append(create_future())
        return futures[-1]

    # Not every loop lets its methods be replaced: the stream gets a stand-in.
    monkeypatch.setattr(stream, "_loop", type("Loop", (), {"create_future": staticmethod(counted)})())
    collecting = asyncio.create_task(stream.collect_all())
    await asyncio.sleep(0)
    for _ in range(200):
        stream.feed_delta(delta("x", choice=1))
        await asyncio.sleep(0)
        woken += futures[0].done()
    stream.finish(Usage(1, 200))
    collected = await collecting
    assert (woken, len(futures)) == (0, 1)
    assert [(part.choice, len(part.text), len(part.tokens)) for part in collected] == [(0, 0, 0), (1, 200, 200)]


async def test_collect_orders_choices_when_they_finish_in_any_order() -> None:
    """Choice order, not finishing order."""
    stream = JobStream(3)
    for choice in (2, 0, 1):
        stream.feed_delta(delta(str(choice), choice=choice, finish="stop"))
    stream.finish(Usage(1, 3))
    assert [part.text for part in await stream.collect_all()] == ["0", "1", "2"]


async def test_collect_raises_when_the_job_fails() -> None:
    """Half an answer is none."""
    stream = JobStream(1)
    stream.feed_delta(delta("half"))
    stream.fail(JobFailed("worker_lost", "gone"))
    with pytest.raises(JobFailed, match="gone"):
        await stream.collect_all()


async def test_accepted_waits_without_being_woken_by_deltas() -> None:
    """It returns for its own message, for an end or a failure; not for output."""
    stream = JobStream(1)
    waiting = asyncio.create_task(stream.wait_accepted())
    await asyncio.sleep(0)
    stream.feed_delta(delta("x"))
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.mark_accepted(Accepted(1, 1, 12))
    assert (await waiting).prompt_tokens == 12


@pytest.mark.parametrize("read", ["wait_accepted", "next_deltas", "collect_all", "wait_result"])
async def test_every_way_of_reading_raises_when_the_job_fails_meanwhile(read: str) -> None:
    """Nobody is left waiting."""
    stream = JobStream(1)
    waiting = asyncio.create_task(getattr(stream, read)())
    await asyncio.sleep(0)
    stream.fail(JobFailed("queue_timeout", "too long", retry_after_s=2.0))
    with pytest.raises(JobFailed) as failed:
        await waiting
    assert failed.value.retry_after_s == 2.0


@pytest.mark.parametrize("read", ["wait_accepted", "wait_result"])
async def test_a_promise_is_broken_loudly_when_the_worker_leaves_it_out(read: str) -> None:
    """A `Done` without `Accepted`, or without its result, is an error, not a hang."""
    stream = JobStream(1)
    stream.finish(Usage(1, 1))
    with pytest.raises(JobFailed) as failed:
        await getattr(stream, read)()
    assert failed.value.code == "engine_error"


async def test_result_returns_what_a_light_job_brought() -> None:
    """The terminal itself."""
    stream = JobStream(1)
    stream.finish(Text(1, 1, "hello"))
    assert await stream.wait_result() == Text(1, 1, "hello")


@pytest.mark.parametrize(
    ("fat", "number"),
    [
        (delta("x" * 1000), 1200),
        (delta(reasoning="x" * 1000), 1200),
        (delta(logprobs=[TokenLogprob("x", b"x", -1.0, [("y", b"y", -2.0)] * 20)]), 1000),
        (delta(calls=[ToolCall(0, "c", "f", "x" * 1000)]), 1200),
    ],
)
async def test_unread_output_is_bounded_when_a_streaming_client_does_not_read(fat: Delta, number: int) -> None:
    """Whatever it consists of."""
    stream = JobStream(1)
    fed = [stream.feed_delta(fat) for _ in range(number)]
    assert fed[0]
    assert not all(fed)


async def test_the_bound_starts_anew_when_the_client_has_read() -> None:
    """A steady reader never meets it, however much it reads in all."""
    stream = JobStream(1)
    for _ in range(100):
        assert all(stream.feed_delta(delta("x" * 1000)) for _ in range(500))
        await stream.next_deltas()


async def test_a_whole_answer_may_be_long_when_it_is_collected() -> None:
    """Who waits for all of it is no slow reader."""
    stream = JobStream(1)
    collecting = asyncio.create_task(stream.collect_all())
    await asyncio.sleep(0)
    assert all(stream.feed_delta(delta("x" * 10_000)) for _ in range(500))
    stream.finish(Usage(1, 500))
    assert len((await collecting)[0].text) == 5_000_000


async def test_a_choice_that_was_not_asked_for_is_left_out_when_a_worker_invents_it() -> None:
    """A route may index its choices by what it gets."""
    stream = JobStream(1)
    stream.feed_delta(delta("bad", choice=5))
    stream.feed_delta(delta("worse", choice=-1))
    stream.feed_delta(delta("good"))
    assert [part.text for part in await stream.next_deltas() or []] == ["good"]
    stream.feed_delta(delta("bad", choice=5))
    stream.finish(Usage(1, 1))
    assert await stream.next_deltas() is None


async def test_a_cancelled_reader_leaves_no_trace_when_output_goes_on() -> None:
    """The next read works, and feeding a stream nobody reads does too."""
    stream = JobStream(1)
    reader = asyncio.create_task(stream.next_deltas())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    stream.feed_delta(delta("a"))
    assert await stream.next_deltas() == [delta("a")]
