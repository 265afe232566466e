"""Operators that write at the same time."""

import pytest

from tests.support.hostile_pool import Attack, missed


@pytest.mark.long
def test_revoked_key_stays_revoked_when_others_write_beside(attack: Attack) -> None:
    """In memory, in the database and after a restart, whatever else was changed at that moment."""
    assert not missed(attack("writes", seconds=20.0, part=0.12))
