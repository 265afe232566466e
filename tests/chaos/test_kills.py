"""The short part of `scripts/chaos`: engines die under load, and nobody notices."""

from collections.abc import Callable

import pytest
from stress import kills, requests
from stress.running_pool import FAKE

Record = Callable[[str, object], None]


@pytest.mark.parametrize("replicas", [2, 1])
def test_no_client_notices_when_engines_are_killed(replicas: int, record_property: Record) -> None:
    """Every answer is the undisturbed one, the gateway lives, queues and slots are empty afterwards."""
    report = kills.run(
        [FAKE] * replicas, requests.of_the_fake_engine, clients=12, kills=5, seed=replicas, pause_s=(0.3, 1.2)
    )
    record_property("noticed_s", report.noticed_s)
    assert report.load.faults == []
    assert report.fine
    assert report.continued >= 5
