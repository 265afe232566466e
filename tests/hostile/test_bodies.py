"""What one ordinary key can send: nobody else waits for it, and its memory is given back."""

import pytest

from tests.support.hostile_pool import Attack, missed


@pytest.mark.long
def test_no_body_of_any_route_holds_the_gateway(attack: Attack) -> None:
    """Some of the generated bodies of every route that the gateway itself describes, one at a time."""
    assert not missed(attack("sweep", seconds=60.0, part=0.03))


def test_bodies_of_one_key_at_its_limits_hold_nobody_up(attack: Attack) -> None:
    """Ten of 20 MB at once, made to be slow to understand, beside another's stream."""
    assert not missed(attack("burst", seconds=5.0))


def test_bodies_in_flight_are_bounded_and_given_back(attack: Attack) -> None:
    """Three hundred of 20 MB that never end."""
    assert not missed(attack("crowd", seconds=5.0))


@pytest.mark.long
def test_forms_hold_nothing_up_and_are_given_back(attack: Attack) -> None:
    """Forms of up to 100 MB, of many parts, huge fields, no end; then forty at once."""
    assert not missed(attack("forms", seconds=4.0, part=0.5))


def test_odd_requests_are_refused_and_slow_ones_hold_nobody_up(attack: Attack) -> None:
    """Bytes one by one, tiny chunks, wrong lengths, pipelines."""
    assert not missed(attack("slow", seconds=3.0, part=0.2))
