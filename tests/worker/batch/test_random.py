"""Random numbers by seed, choice and position."""

import numpy as np
import pytest

from worker.batch.sampling.random import row_key, uniforms

KEY_42_1 = 6_332_618_229_526_065_668
DRAWS_42_1 = [0.3869742751121521, 0.9213172197341919, 0.08311629295349121]


def draws(seed: int, choice: int, count: int) -> np.ndarray:
    keys = np.full(count, row_key(seed, choice), dtype=np.uint64)
    return uniforms(keys, np.arange(count, dtype=np.uint64))


@pytest.mark.parametrize("seed", [0, 1, 77, 2**63 - 1, -1])
def test_draws_are_uniform(seed: int) -> None:
    """In [0, 1), even over 64 bins (chi-square), uncorrelated from one position to the next."""
    sample = draws(seed, 0, 64_000)
    assert sample.dtype == np.float32
    assert 0 <= sample.min() <= sample.max() < 1
    counts = np.histogram(sample, 64, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 110  # 63 degrees of freedom: p < 0.0003
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.02


def test_neighbouring_seeds_choices_and_positions_are_unrelated() -> None:
    """First draws over seeds, and over choices of one seed, are as uniform as a row's own, and no two rows agree."""
    for rows in ([row_key(seed, 0) for seed in range(20_000)], [row_key(5, choice) for choice in range(20_000)]):
        assert len(set(rows)) == 20_000
        first = uniforms(np.array(rows, dtype=np.uint64), np.zeros(20_000, dtype=np.uint64))
        counts = np.histogram(first, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(draws(1, 0, 5000), draws(2, 0, 5000))[0, 1]) < 0.06
    assert abs(np.corrcoef(draws(1, 0, 5000), draws(1, 1, 5000))[0, 1]) < 0.06


def test_draw_depends_on_nothing_else() -> None:
    """Not on the row's place, its company, or the call."""
    keys = np.array([row_key(seed, seed % 3) for seed in range(50)], dtype=np.uint64)
    positions = np.arange(50, dtype=np.uint64) * np.uint64(7)
    together = uniforms(keys, positions)
    assert [float(uniforms(keys[i : i + 1], positions[i : i + 1])[0]) for i in range(50)] == together.tolist()
    assert uniforms(keys[::-1].copy(), positions[::-1].copy()).tolist() == together[::-1].tolist()


@pytest.mark.parametrize("seed", [2**63, 2**64, -(2**63), 2**100])
def test_any_integer_is_a_seed(seed: int) -> None:
    """Wrapped to 64 bits, without a warning, for any number of choices."""
    assert {row_key(seed, choice) for choice in range(8)} == {row_key(seed % 2**64, choice) for choice in range(8)}


def test_values_never_change() -> None:
    """The same seed gives the same answer in every version: these numbers are part of the contract."""
    assert row_key(42, 1) == KEY_42_1
    assert draws(42, 1, 3).tolist() == pytest.approx(DRAWS_42_1, abs=0)
