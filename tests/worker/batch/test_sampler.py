"""The fused sampler against a plain one: same supports, same distributions, row by row."""

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from worker.batch.row import Row, RowSampling
from worker.batch.sampling.random import row_key
from worker.batch.sampling.sampler import History, Sampler, likeliest_of

VOCAB = 40


def row(number: int, prompt: Sequence[int] = (1,), delivered: Sequence[int] = (), **sampling: Any) -> Row:
    return Row(
        owner=None,
        tenant="",
        prompt=list(prompt),
        delivered=list(delivered),
        limit=10**6,
        sampling=RowSampling(key=row_key(number, 0), **sampling),
    )


def pick(rows: Sequence[Row], logits: np.ndarray) -> list[int]:
    """One token per row."""
    vocab = logits.shape[-1]
    history = History.joined(None, [], rows, vocab)
    fed = mx.array([one.tokens[-1] for one in rows], dtype=mx.uint32)
    tokens: list[int] = Sampler(rows, vocab, history).sample_rows(mx.array(logits), fed).tokens.tolist()
    return tokens


def probabilities(logits: np.ndarray, one: Row, *, slack: float = 0.0) -> np.ndarray:
    """What each token's chance should be; `slack` moves the borders of top-p and min-p outwards."""
    asked, logits = one.sampling, logits.astype(np.float64).copy()
    for token, bias in asked.logit_bias.items():
        logits[token] += bias
    counts = np.bincount(one.tokens[one.prompt_size :], minlength=len(logits))
    seen = (counts > 0) | np.isin(np.arange(len(logits)), one.tokens[: one.prompt_size])
    penalty = asked.repetition_penalty
    logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    logits = logits - asked.frequency_penalty * counts - asked.presence_penalty * (counts > 0)
    if asked.greedy:
        return np.eye(len(logits))[logits.argmax()]
    chances = np.exp((logits - logits.max()) / asked.temperature)
    order = np.argsort(-chances)
    keep = np.zeros(len(logits), dtype=bool)
    keep[order[: asked.top_k or len(logits)]] = True
    ranked = np.where(keep, chances, 0.0)[order] / chances[keep].sum()
    before = np.cumsum(ranked) - ranked
    keep[order[1:]] &= before[1:] < asked.top_p + slack
    keep &= (chances >= (asked.min_p - slack) * chances.max()) | (np.arange(len(logits)) == order[0])
    chances = np.where(keep, chances, 0.0)
    return chances / chances.sum()


def random_sampling(source: random.Random) -> dict[str, Any]:
    return {
        "temperature": source.choice([0.0, 0.3, 0.8, 1.0, 1.7]),
        "top_p": source.choice([0.0, 0.3, 0.7, 0.95, 1.0]),
        "top_k": source.choice([0, 0, 1, 2, 5, 39, 40, 1000]),
        "min_p": source.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": source.choice([1.0, 1.3, 0.7]),
        "presence_penalty": source.choice([0.0, 1.5, -1.0]),
        "frequency_penalty": source.choice([0.0, 0.6]),
        "logit_bias": source.choice([{}, {0: 4.0}, {3: -100.0, 39: 2.0}]),
    }


@pytest.mark.parametrize("number", range(30))
def test_draws_come_from_exactly_the_support(number: int) -> None:
    """For random parameters and logits: no token from outside of it, and every likely one of it, in 400 draws."""
    source = random.Random(number)
    logits = np.random.default_rng(number).normal(0, 2, VOCAB).astype(np.float32)
    sampling = random_sampling(source)
    prompt, said = source.choices(range(VOCAB), k=6), source.choices(range(VOCAB), k=source.randrange(8))
    rows = [row(i, prompt, said, **sampling) for i in range(400)]
    drawn = set(pick(rows, np.tile(logits, (400, 1))))
    allowed = probabilities(logits, rows[0], slack=1e-5)
    certain = probabilities(logits, rows[0], slack=-1e-5)
    assert drawn <= set(np.flatnonzero(allowed).tolist()), sampling
    assert set(np.flatnonzero(certain > 0.04).tolist()) <= drawn, sampling


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 6},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 10, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    ],
)
def test_distribution_is_the_plain_ones(sampling: dict[str, Any]) -> None:
    """20,000 draws over a small vocabulary: chi-square finds no difference."""
    count, vocab = 20_000, 16
    logits = np.random.default_rng(3).normal(0, 1.2, vocab).astype(np.float32)
    rows = [row(i, [1, 2, 3], [4, 4, 5], **sampling) for i in range(count)]
    drawn = np.bincount(pick(rows, np.tile(logits, (count, 1))), minlength=vocab)
    expected = probabilities(logits, rows[0]) * count
    assert drawn[expected == 0].sum() == 0
    often = expected >= 5
    statistic = ((drawn[often] - expected[often]) ** 2 / expected[often]).sum()
    assert statistic < 45  # 15 degrees of freedom at most: p < 0.0001


def test_draws_of_one_row_follow_its_positions() -> None:
    """Along one answer the draws are as well spread as across rows."""
    rows = [row(5, [1], [2] * position, temperature=1.0) for position in range(2000)]
    drawn = np.bincount(pick(rows, np.zeros((2000, 10), dtype=np.float32)), minlength=10)
    assert ((drawn - 200) ** 2 / 200).sum() < 35


def test_row_does_not_depend_on_its_neighbours() -> None:
    """80 rows with parameters of every kind, together, in another order, and each alone: the same tokens."""
    source, generator = random.Random(1), np.random.default_rng(1)
    rows = [row(i, [1, 2], source.choices(range(VOCAB), k=3), **random_sampling(source)) for i in range(80)]
    logits = generator.normal(0, 2, (80, VOCAB)).astype(np.float32)
    together = pick(rows, logits)
    assert [pick([one], logits[i : i + 1])[0] for i, one in enumerate(rows)] == together
    assert pick(rows[::-1], logits[::-1].copy())[::-1] == together


@pytest.mark.parametrize("vocab", [2000, 2048, 5001])
def test_neighbours_do_not_matter_in_a_large_vocabulary(vocab: int) -> None:
    """Also where selection is by chunks, and where a flat neighbour makes everyone look at the whole vocabulary."""
    generator = np.random.default_rng(2)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 20},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0},
        {"temperature": 1.0, "min_p": 0.1},
    ]
    rows = [row(i, **kinds[i % 5]) for i in range(20)]
    logits = generator.normal(0, 3, (20, vocab)).astype(np.float32)
    alone = [pick([one], logits[i : i + 1])[0] for i, one in enumerate(rows)]
    assert pick(rows, logits) == alone
    flat = row(99, temperature=1.0, top_p=0.99)
    assert pick([*rows, flat], np.vstack([logits, np.zeros((1, vocab), np.float32)]))[:20] == alone


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"min_p": 0.5}, {"top_p": 0.999, "min_p": 0.001}])
def test_nucleus_wider_than_the_candidates_is_not_cut_short(sampling: dict[str, Any]) -> None:
    """Of a nearly flat distribution over 2,000 tokens tokens far beyond the first 256 are drawn as often."""
    vocab, count = 2000, 4000
    logits = np.random.default_rng(4).normal(0, 0.05, vocab).astype(np.float32)
    rows = [row(i, temperature=1.0, **sampling) for i in range(count)]
    expected = probabilities(logits, rows[0], slack=1e-4)
    drawn = np.array(pick(rows, np.tile(logits, (count, 1))))
    assert (expected[drawn] > 0).all()
    rank = np.empty(vocab, dtype=int)
    rank[np.argsort(-logits)] = np.arange(vocab)
    quarters = np.histogram(rank[drawn], 4, (0, (expected > 0).sum()))[0]
    assert ((quarters - count / 4) ** 2 / (count / 4)).sum() < 40


def test_penalties_count_the_token_in_flight() -> None:
    """A generated token that the host has not seen yet weighs like any other, and only once."""
    logits = np.zeros((1, 8), dtype=np.float32)
    logits[0, 3], logits[0, 5] = 2.0, 1.9
    sampling = {"temperature": 0.0, "frequency_penalty": 0.2}
    fresh = row(1, [1], [], **sampling)
    fresh.fresh = True
    sampler = Sampler([fresh], 8, History.joined(None, [], [fresh], 8))
    chosen = [sampler.sample_rows(mx.array(logits), mx.array([token])).tokens.item() for token in (7, 3, 5, 5)]
    # Nothing said of 3 and 5; 3 said once; both once; 5 twice.
    assert chosen == [3, 5, 3, 3]


def test_prompt_tokens_weigh_for_repetition_only() -> None:
    """Presence and frequency weigh what was generated, as OpenAI's do; repetition weighs the prompt as well."""
    logits = np.array([[0.0, 2.0, 1.9, 0.0]], dtype=np.float32)
    assert pick([row(1, [1, 1], temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)], logits) == [1]
    assert pick([row(1, [1, 1], temperature=0.0, repetition_penalty=1.2)], logits) == [2]
    assert pick([row(1, [0], [1], temperature=0.0, presence_penalty=2.0)], logits) == [2]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits_are_widened(dtype: mx.Dtype) -> None:
    """Probabilities are computed in float32 whatever the model's type."""
    logits = mx.array(np.random.default_rng(6).normal(0, 2, (5, VOCAB)).astype(np.float32)).astype(dtype)
    rows = [row(i, temperature=0.9, top_p=0.9, logprobs=3) for i in range(5)]
    found = Sampler(rows, VOCAB, None).sample_rows(logits, mx.array([1] * 5))
    wide = Sampler(rows, VOCAB, None).sample_rows(logits.astype(mx.float32), mx.array([1] * 5))
    assert found.tokens.tolist() == wide.tokens.tolist()
    assert found.own is not None
    assert found.own.dtype == mx.float32


def test_impossible_tokens_are_never_drawn() -> None:
    """A model that masks part of its vocabulary with minus infinity keeps it masked, in every way of drawing."""
    logits = np.full((400, 100), -np.inf, dtype=np.float32)
    logits[:, [7, 60]] = [1.0, 0.5]
    kinds: list[dict[str, Any]] = [{}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}]
    rows = [row(i, temperature=1.0, **kinds[i % 4]) for i in range(400)]
    assert set(pick(rows, logits)) == {7, 60}


@pytest.mark.parametrize("width", [1, 5, 20, 64, 256])
@pytest.mark.parametrize("size", [3, 31, 32, 33, 64, 97, 1000, 2048, 2049, 4095, 8192, 20_011])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "masked"])
def test_likeliest_are_what_sorting_finds(size: int, width: int, kind: str) -> None:
    """The largest values, best first, with indices that are different, inside the row, and theirs."""
    generator = np.random.default_rng(size + width)
    values = generator.normal(0, 1, (3, size)).astype(np.float32)
    if kind == "ties":
        values = np.round(values)
    elif kind == "equal":
        values[:] = 0.5
    elif kind == "masked":
        values[:, generator.permutation(size)[2:]] = -np.inf
    found, ids = (np.array(part) for part in likeliest_of(mx.array(values), width))
    count = min(width, size)
    assert found.shape == ids.shape == (3, count)
    assert (found == -np.sort(-values, axis=-1)[:, :count]).all()
    real = found > -np.inf
    assert (
        np.where(real, np.take_along_axis(values, np.minimum(ids, size - 1).astype(int), axis=-1), found) == found
    ).all()
    assert (ids < size).all()
    assert all(len(set(line.tolist())) == count for line in ids)


def test_draw_is_that_of_the_position_in_flight() -> None:
    """A row one token ahead of its host draws what it draws when it is resumed behind that token."""
    logits = np.zeros((200, 1000), dtype=np.float32)
    ahead = [row(i, [1], temperature=1.0) for i in range(200)]
    for one in ahead:
        one.fresh = True
    resumed = [row(i, [1], [5], temperature=1.0) for i in range(200)]
    assert pick(ahead, logits) == pick(resumed, logits)
    assert pick(resumed, logits) != pick([row(i, [1], temperature=1.0) for i in range(200)], logits)
