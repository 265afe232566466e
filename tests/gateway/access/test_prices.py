"""What work costs, in tokens, and when it is settled."""

import time

from gateway.access.estimate import ANSWER_TOKENS, tokens_of_job
from gateway.access.price import KNOWN_INPUT, Work, comparing, counting, ours
from gateway.dispatch.jobs.stream import JobStream
from gateway.job_failure import JobFailed
from gateway.schema.errors import ApiError
from protocol.messages import Accepted, Delta, GenerateJob, Sampling, TokenPrompt, Usage, Vectors


def stream(*, accepted: int | None = 10, told: int = 0, spent: Usage | None = None) -> JobStream:
    """A job that was taken (or not), of which so many tokens have come."""
    made = JobStream(1)
    if accepted is not None:
        made.mark_accepted(Accepted(1, 1, accepted))
    if told:
        made.feed_delta(Delta(1, 1, 0, [7] * told, "x"))
    made.spent = spent
    return made


def cost(*streams: JobStream, extra: int = 0) -> int | None:
    """What a request of these jobs is charged; None where that is not known yet."""
    work, charged = Work(), []
    work.streams += streams
    work.extra = extra
    work.settle_when_done(charged.append)
    return charged[0] if charged else None


async def test_job_costs_what_its_worker_counted_when_that_is_known() -> None:
    """Whatever was written or cached; with a price for its grammar; of an older worker, prompt and answer."""
    for usage, expected in (
        (Usage(100, 20, cached_tokens=90, stepped_tokens=30), 30),
        (Usage(100, 20, stepped_tokens=120, compile_s=0.5), 620),
        (Usage(100, 20), 120),
    ):
        made = stream(told=3, spent=usage)
        made.close_stream()
        assert cost(made) == expected


async def test_charge_waits_until_the_last_of_a_request_is_known() -> None:
    """A client that left is charged once, with what its worker says at the end; without a word, by what has come."""
    left, lost = stream(told=3), stream(told=2)
    work, charged = Work(), []
    work.streams += [left, lost]
    work.extra = KNOWN_INPUT
    work.settle_when_done(charged.append)
    lost.close_stream()
    assert charged == []
    left.spent = Usage(10, 5, stepped_tokens=15)
    left.close_stream()
    left.close_stream()
    assert charged == [1 + 15 + 12]


async def test_nothing_is_charged_when_nothing_was_taken_or_we_failed() -> None:
    """But what was streamed before we did, and what failed by the client's own fault."""
    untaken = stream(accepted=None)
    ours_whole, ours_streamed, theirs = stream(told=5), stream(told=5), stream(told=5)
    ours_streamed.streamed = True
    for made in (ours_whole, ours_streamed):
        made.fail(JobFailed("worker_lost", "gone"))
    theirs.fail(JobFailed("invalid_request", "The grammar takes too long to follow."))
    theirs.spent = Usage(10, 9, stepped_tokens=19, compile_s=0.1)
    for made, expected in ((untaken, 0), (ours_whole, 0), (ours_streamed, 15), (theirs, 119)):
        made.close_stream()
        assert cost(made) == expected
    assert [ours(error) for error in (ConnectionResetError(), ApiError("invalid_request"), KeyError("x"))] == [
        False, False, True,
    ]  # fmt: skip


async def test_vectors_cost_the_tokens_that_were_computed() -> None:
    """And one for each input that was known."""
    made = stream()
    made.finish(Vectors(1, 1, 2, [4, 6], b""))
    made.close_stream()
    assert cost(made, extra=3 * KNOWN_INPUT) == 13


def test_prices_of_what_counts_no_tokens() -> None:
    """Never nothing, and in proportion."""
    assert [counting(tokens) for tokens in (0, 99, 100, 5000)] == [1, 1, 1, 50]
    assert counting(100, images=2) == 513
    assert [comparing(pairs, 384) for pairs in (1, 2048 * 2048)] == [1, 1610]


async def test_account_of_work_costs_less_than_twenty_microseconds_a_request() -> None:
    """By processor time: making it, noting a job, settling it."""
    made = stream(told=3, spent=Usage(10, 5, stepped_tokens=15))
    made.close_stream()
    began = time.thread_time()
    for _ in range(1000):
        cost(made)
    assert (time.thread_time() - began) / 1000 < 20e-6


def test_answer_of_open_length_is_reserved_by_a_usual_one() -> None:
    """For each answer; what the client allows counts where it says so."""
    assert tokens_of_job(GenerateJob(1, 1, "", "", TokenPrompt([1, 2]), Sampling(0), n=3)) == 2 + 3 * ANSWER_TOKENS
    asked = GenerateJob(1, 1, "", "", TokenPrompt([1, 2]), Sampling(0), n=3, max_tokens=5000)
    assert tokens_of_job(asked) == 2 + 3 * 5000
