"""Batched equals alone equals mlx-lm: for each architecture, with every kind of sampling."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from protocol.messages import GenerateJob, TokenPrompt
from tests.support.engine_runs import job, run
from worker.batch.batch import CACHE_STEP
from worker.batch.sampling import sampler
from worker.batch.sampling.random import uniforms
from worker.engines.chat.engine import ChatEngine

ARCHITECTURES = ("qwen3", "llama", "gemma3", "granitemoehybrid", "mamba2", "mamba")


def prompts(count: int, longest: int) -> list[list[int]]:
    """Token prompts of very different lengths, some with a shared beginning."""
    source = random.Random(7)
    shared = [source.randrange(10, 1500) for _ in range(longest)]
    made = []
    for index in range(count):
        length = source.choice([1, 2, 5, 17, 40, 90, longest])
        start = shared[: length // 2] if index % 3 == 0 else []
        made.append(start + [source.randrange(10, 1500) for _ in range(length - len(start))])
    return made


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 11},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 12},
    {"temperature": 1.3, "top_p": 0.8, "seed": 13},
    {"temperature": 1.0, "min_p": 0.05, "seed": 14},
    {"temperature": 0.8, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "seed": 15},
    {"temperature": 0.0, "presence_penalty": 1.5},
    {"temperature": 0.6, "top_k": 5, "logit_bias": {17: 5.0, 33: -100.0}, "seed": 16},
]


NUDGES = [sign * size for size in (1e-6, 3e-6, 1e-5, 3e-5) for sign in (-1, 1)]
"""Rounding differs with the number of rows in a matrix product: by 1e-6 to 1e-5 of probability."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_crowd_gives_what_each_gives_alone(
    name: str, engine_of: Callable[..., ChatEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 concurrent requests with different lengths and sampling: every token as if it had been alone.

    A draw that falls on the very border between two tokens may go either way: rounding is not the same in a batch.
    Such a row has to be shown to be one, and there may be one of them.
    """
    engine = engine_of(name, prefix_cache_bytes=0)
    # mamba's scan rounds a thousand times more coarsely: its draws part anywhere, its greedy answers do not.
    samplings = SAMPLINGS[:1] if name == "mamba" else SAMPLINGS
    jobs = [
        job(i, TokenPrompt(tokens), max_tokens=20 + i, sampling={"ignore_eos": True, **samplings[i % len(samplings)]})
        for i, tokens in enumerate(prompts(16, 200))
    ]
    together = {i: outcome.tokens[0] for i, outcome in run(engine, jobs).items()}
    alone = {one.job: run(engine, [one])[one.job].tokens[0] for one in jobs}
    different = [one for one in jobs if together[one.job] != alone[one.job]]
    assert len(different) <= 1
    for one in different:
        assert on_a_border(engine, one, together[one.job], alone[one.job], monkeypatch)
    assert all(len(tokens) == 20 + i for i, tokens in together.items())
    # Noise that repeats one token would pass the lines above whatever the batch did.
    assert all(len(set(alone[i])) > 8 for i in alone if i % len(samplings) == 0)


def on_a_border(
    engine: ChatEngine, one: GenerateJob, together: list[int], alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Whether, where two answers part, a draw next to the real one gives the other token."""
    place = next(i for i, pair in enumerate(zip(together, alone, strict=True)) if pair[0] != pair[1])
    again = msgspec.structs.replace(one, delivered=[alone[:place]], max_tokens=place + 1)
    found = set()
    for nudge in NUDGES:
        with monkeypatch.context() as patch:
            patch.setattr(
                sampler, "uniforms", lambda keys, at, by=nudge: np.clip(uniforms(keys, at) + by, 0, 1 - 2**-24)
            )
            found.add(run(engine, [again])[one.job].tokens[0][0])
    return together[place] in found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_mlx_lms(name: str, engine_of: Callable[..., ChatEngine]) -> None:
    """Greedy answers are, token for token, those of `mlx_lm.generate`, for prompts on both sides of a window."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    engine = engine_of(name, prefix_cache_bytes=0)
    jobs = [
        job(i, TokenPrompt(tokens), max_tokens=32, sampling={"ignore_eos": True})
        for i, tokens in enumerate(prompts(8, 150))
    ]
    ours = run(engine, jobs)
    for one in jobs:
        assert isinstance(one.prompt, TokenPrompt)
        steps = generate_step(mx.array(one.prompt.tokens), engine.loaded.model, max_tokens=32)
        assert ours[one.job].tokens[0] == [int(token) for token, _ in steps]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prefix_cache_changes_nothing(name: str, engine_of: Callable[..., ChatEngine]) -> None:
    """The second turn of a conversation, served from the cache, gives what it gives without one."""
    cold, warm = engine_of(name, prefix_cache_bytes=0), engine_of(name, prefix_cache_bytes=1 << 28)
    first = prompts(1, 120)[0] + list(range(100, 220))
    answer = run(warm, [job(1, TokenPrompt(first), max_tokens=12)])[1].tokens[0]
    second = job(2, TokenPrompt([*first, *answer, *range(300, 340)]), max_tokens=24)
    with_cache, without = run(warm, [second])[2], run(cold, [second])[2]
    assert with_cache.usage is not None
    assert with_cache.usage.cached_tokens >= len(first)
    assert with_cache.tokens == without.tokens


def test_long_prompt_joins_a_cohort_of_its_own(engine_of: Callable[..., ChatEngine]) -> None:
    """A prompt of thousands of tokens beside short rows: separate cohorts, same answers, and one again at the end."""
    engine = engine_of("qwen3", prefix_cache_bytes=0)
    source = random.Random(3)
    jobs = [job(i, TokenPrompt([source.randrange(10, 1500) for _ in range(20)]), max_tokens=900) for i in range(8)]
    jobs.append(job(9, TokenPrompt([source.randrange(10, 1500) for _ in range(4000)]), max_tokens=30))
    seen: set[int] = set()
    together = run(engine, jobs, between=lambda _: seen.add(len(engine.batch.groups)))
    assert max(seen) == 2
    for one in (jobs[0], jobs[-1]):
        assert together[one.job].tokens == run(engine, [one])[one.job].tokens


def test_padding_is_bounded_when_passes_are_dear(
    engine_of: Callable[..., ChatEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long row and many short ones of a large model hold little more than they need, and share passes still."""
    engine = engine_of("qwen3", prefix_cache_bytes=0)
    monkeypatch.setattr(engine.batch, "_weights_bytes", 10**12)
    source = random.Random(3)
    jobs = [job(i, TokenPrompt([source.randrange(10, 1500) for _ in range(20)]), max_tokens=400) for i in range(31)]
    jobs.append(job(40, TokenPrompt([source.randrange(10, 1500) for _ in range(4000)]), max_tokens=30))
    held: list[float] = []

    def look(_step: int) -> None:
        lengths = [[len(row.tokens) for row in group.rows] for group in engine.batch.groups]
        if max(map(max, lengths), default=0) > 4000:
            needed = sum(max(CACHE_STEP, length) for group in lengths for length in group)
            held.append(sum(max(group) * len(group) for group in lengths) / needed)
            assert len(lengths) <= 3

    run(engine, jobs, between=look)
    assert held
    assert max(held) <= 1.5
