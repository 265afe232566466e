"""A row's position goes wherever its row goes."""

import pytest

from worker.engines.vision.positions import BatchPositions, Positions

mx = pytest.importorskip("mlx.core")


def test_positions_follow_rows_that_join_leave_and_are_copied() -> None:
    """Merged, fed, filtered, extended and taken out again, each row goes on where it was."""
    batch = Positions.merge([Positions(5), Positions(9), Positions(2)])
    assert batch.next_positions(2).tolist() == [[5, 6], [9, 10], [2, 3]]
    batch.filter([2, 0])
    batch.extend(BatchPositions(mx.array([100])))
    assert batch.next_positions(1).tolist() == [[4], [7], [100]]
    alone = batch.extract(1)
    assert alone.next_positions(3).tolist() == [[8, 9, 10]]
    assert batch.next_positions(1).tolist() == [[5], [8], [101]]


def test_padding_on_the_right_does_not_count() -> None:
    """Rows of different length computed together go on behind their own last token."""
    batch = Positions.merge([Positions(), Positions()])
    batch.prepare(lengths=[4, 1], right_padding=[0, 3])
    batch.next_positions(4)
    batch.finalize()
    assert batch.next_positions(1).tolist() == [[4], [1]]


def test_row_is_placed_where_its_images_put_it() -> None:
    """Whatever was counted before."""
    single, batch = Positions(7), Positions.merge([Positions(7), Positions(8)])
    single.set_positions([3])
    batch.set_positions([1, 2])
    assert (single.next_positions(1).tolist(), batch.next_positions(1).tolist()) == ([[3]], [[1], [2]])
    assert single.trim(1) == 1
    assert single.next_positions(1).tolist() == [[3]]
