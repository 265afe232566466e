"""Requests that no parser takes, and keys in every place of them."""

import pytest

from tests.support.hostile_pool import Attack, missed


@pytest.mark.long
def test_malformed_requests_are_refused_in_shape_and_leave_no_key(attack: Attack) -> None:
    """An error with an id, few lines in the log, no part of a key anywhere."""
    assert not missed(attack("malformed", seconds=10.0))


def test_keys_are_nowhere_to_be_read(attack: Attack) -> None:
    """Not in logs, events, metrics, command lines, nor in the environment of an engine."""
    assert not missed(attack("secrets", seconds=5.0))
