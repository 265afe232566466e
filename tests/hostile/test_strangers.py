"""What strangers do without a key: nobody else notices it."""

import pytest

from tests.support.hostile_pool import Attack, missed


def test_packed_bodies_are_refused_and_not_unpacked(attack: Attack) -> None:
    """Four megabytes that would be four gigabytes, to routes of every kind, with a key and without."""
    assert not missed(attack("packed", seconds=6.0, part=0.1))


def test_flood_of_large_bodies_holds_nobody_up(attack: Attack) -> None:
    """Bodies of 20 MB to every route, from eight connections."""
    assert not missed(attack("flood", seconds=3.0))


def test_guesses_are_slowed_down_and_seen(attack: Attack) -> None:
    """Each failed login is in the log with its address; more of them wait longer."""
    assert not missed(attack("guessing", seconds=3.0))


@pytest.mark.long
@pytest.mark.parametrize("name", ["connections", "handshakes"])
def test_connections_that_say_nothing_leave_descriptors_to_others(attack: Attack, name: str) -> None:
    """Of 256 descriptors some are left; a killed engine comes back; strangers are heard again."""
    assert not missed(attack(name, seconds=20.0))
