"""What one ordinary key can do to engines: none dies of it, and others do not wait for it."""

import pytest

from tests.support.hostile_pool import Attack, missed

pytestmark = pytest.mark.mlx


@pytest.mark.long
def test_long_texts_hold_no_engine(attack: Attack) -> None:
    """Texts of 2 and 20 MB to be tokenised, embedded, cut and answered."""
    assert not missed(attack("texts", seconds=20.0, part=0.1))


@pytest.mark.long
def test_pictures_that_are_made_to_hurt_are_refused_soon(attack: Attack) -> None:
    """Within a second of processor time; texts beside them hardly wait."""
    assert not missed(attack("pictures", seconds=20.0, part=0.25))


@pytest.mark.long
def test_hostile_grammars_hold_up_nobody_else(attack: Attack) -> None:
    """Another's new schema is compiled within two seconds, its chat goes on as before."""
    assert not missed(attack("grammars", seconds=10.0, part=0.2))


@pytest.mark.long
def test_rows_end_when_their_clients_leave(attack: Attack) -> None:
    """Eight answers each, for clients that leave at once."""
    assert not missed(attack("leaving", seconds=4.0))
