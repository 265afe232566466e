"""What is counted."""

import pytest

from gateway.dispatch.stats import STEP_BOUNDS, StepCounts, model_snapshot, request_type
from protocol.errors import Code
from protocol.messages import Delta, Done, EmbedJob, Failed, Image, Kind, TextPrompt, TokenizeJob, Usage, Vectors
from tests.support.dispatch_rig import Rig, generate


async def test_requests_are_counted_by_outcome_when_their_handlers_leave(rig: Rig) -> None:
    """Tokens, time and errors of generations; a cancelled request is no error, a tokenise job counts nowhere."""
    rig.join(slots=8)
    good, bad, left, light = rig.submit(), rig.submit(), rig.submit(), rig.submit(TokenizeJob(0, 0, TextPrompt("x")))
    rig.clock.now += 2
    rig.feed(b"w1", Done(good.id, 1, Usage(10, 40)), Failed(bad.id, 1, Code.ENGINE_ERROR, "no"))
    for flight in (good, bad, left, light):
        rig.dispatcher.release_job(flight)
    stats = rig.stats
    assert (stats.count_outcome("done"), stats.count_outcome("failed"), stats.count_outcome("cancelled")) == (1, 1, 1)
    assert (stats.sum_tokens("prompt"), stats.sum_tokens("completion"), stats.total_time_s) == (10, 40, 6.0)
    performance = stats.performance()
    assert (performance.avg_tps, performance.max_tps, performance.min_tps) == (20.0, 20.0, 20.0)
    assert performance.recent_requests == 1


async def test_performance_is_zero_when_nothing_was_served(rig: Rig) -> None:
    """Numbers from the first look on, not an error."""
    performance = rig.stats.performance()
    assert (performance.avg_tps, performance.max_tps, performance.min_tps, performance.recent_requests) == (0, 0, 0, 0)
    assert rig.stats.count_types() == dict.fromkeys(["vision", "vision_stream", "text", "text_stream", "embedding"], 0)


async def test_a_request_is_of_the_streamed_type_when_its_answer_was_over_before_it_was_read(rig: Rig) -> None:
    """How it was read decides, whenever that was."""
    rig.join()
    flight = rig.submit()
    rig.output(flight)
    rig.done(flight)
    await flight.stream.next_deltas()
    rig.dispatcher.release_job(flight)
    assert rig.stats.count_types()["text_stream"] == 1


async def test_the_type_follows_what_is_in_the_job_when_a_vision_model_answers(rig: Rig) -> None:
    """Images make a vision request; text is text, whoever answers it; embeddings are counted apart."""
    rig.join(slots=8, kind=Kind.VISION)
    seen = generate(images=[Image(0, b"digest")])
    assert request_type(rig.submit(seen)) == "vision"
    assert request_type(rig.submit()) == "text"
    streamed = rig.submit(seen)
    streamed.stream.streamed = True
    assert request_type(streamed) == "vision_stream"
    rig.join("w2", "e", kind=Kind.EMBEDDING)
    assert request_type(rig.submit(EmbedJob(0, 0, "r", "", texts=["x"]), model=rig.registry.models["e"])) == "embedding"


async def test_the_queue_is_described_when_jobs_run_and_wait(rig: Rig) -> None:
    """Rows that are stepped, jobs aboard, jobs in line, and their bound."""
    rig.join(slots=2, queue_size=9)
    for _ in range(5):
        rig.submit(generate())
    rig.submit(TokenizeJob(0, 0, TextPrompt("x")))
    snapshot = model_snapshot(rig.model)
    assert (snapshot.running, snapshot.max_concurrency) == (True, 2)
    assert (snapshot.active_requests, snapshot.queue_size, snapshot.max_queue_size) == (3, 2, 9)


async def test_histograms_have_one_observation_per_request_when_many_tokens_came(rig: Rig) -> None:
    """Nothing is measured per token."""
    rig.join()
    flight = rig.submit()
    rig.clock.now += 0.3
    for _ in range(50):
        rig.output(flight)
    rig.done(flight)
    rig.dispatcher.release_job(flight)
    for name in ("queue_wait", "time_to_first_token", "request_duration"):
        assert rig.stats.registry.get_sample_value(f"pool_{name}_seconds_count", {"model": "m"}) == 1
    first = rig.stats.registry.get_sample_value("pool_time_to_first_token_seconds_sum", {"model": "m"})
    assert first is not None
    assert abs(first - 0.3) < 1e-6


async def test_gaps_between_tokens_are_averaged_per_request_when_it_ends(rig: Rig) -> None:
    """From the first output to the end, over the tokens of one choice; a single token has no gap."""
    rig.join(slots=8)
    long, short = rig.submit(generate(n=2)), rig.submit()
    for flight in (long, short):
        rig.output(flight)
    rig.clock.now += 2
    rig.feed(b"w1", Done(long.id, 1, Usage(10, 42)), Done(short.id, 1, Usage(10, 1)))
    for flight in (long, short):
        rig.dispatcher.release_job(flight)
    assert rig.stats.registry.get_sample_value("pool_inter_token_seconds_count", {"model": "m"}) == 1
    assert rig.stats.registry.get_sample_value("pool_inter_token_seconds_sum", {"model": "m"}) == 0.1
    assert rig.stats.tokens == {("m", "prompt"): 20, ("m", "completion"): 43}


async def test_batch_sizes_are_counted_when_steps_come(rig: Rig) -> None:
    """Rows of one frame are one step, whatever else is in it; of embeddings it is what the worker says."""
    rig.join(slots=8)
    first, second = rig.submit(), rig.submit()
    both = [Delta(flight.id, 1, 0, [1], "x") for flight in (first, second)]
    rig.feed(b"w1", *both)
    rig.feed(b"w1", both[0], Done(second.id, 1, Usage(3, 1)))
    rig.join("w2", "e", kind=Kind.EMBEDDING)
    job = EmbedJob(0, 0, "r", "", texts=["x"])
    flight = rig.submit(job, model=rig.registry.models["e"])
    rig.feed(b"w2", Vectors(flight.id, 1, 1, [1], b"0000", batch_size=100))
    found = {labels: (dict(buckets), rows) for labels, buckets, rows in rig.stats.steps.histograms()}
    assert set(found) == {("m", "decode"), ("e", "embed")}
    buckets, rows = found["m", "decode"]
    assert (buckets["1"], buckets["2"], buckets["+Inf"], rows) == (1, 2, 2, 3)
    buckets, rows = found["e", "embed"]
    assert (buckets["64"], buckets["128"], rows) == (0, 1, 100)


@pytest.mark.parametrize("rows", [1, STEP_BOUNDS[-1], STEP_BOUNDS[-1] + 1, 10**9])
def test_batch_of_any_size_is_counted_once(rows: int) -> None:
    """Also beyond the last bound."""
    steps = StepCounts()
    steps.count_step("m", "decode", rows)
    ((_, buckets, total),) = steps.histograms()
    assert (buckets[-1], total) == (("+Inf", 1.0), rows)
    assert dict(buckets)[str(STEP_BOUNDS[-1])] == (rows <= STEP_BOUNDS[-1])
