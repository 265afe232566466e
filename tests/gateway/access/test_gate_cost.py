"""What keys and limits cost a request."""

import statistics

import pytest
from benchmarks.overhead import Guarded

pytestmark = pytest.mark.alone

ROUNDS = 5
MOST_S = 500e-6
"""Of processor time; several times what it takes on a busy machine. `scripts/bench promptness` judges the promise."""


async def test_guard_costs_little_when_everything_is_on(request: pytest.FixtureRequest) -> None:
    """One key of a thousand, all limits with full logs, a reservation, headers, sums: a fraction of a millisecond."""
    guarded = Guarded()
    added_s = statistics.median([await guarded.added_s() for _ in range(ROUNDS)])
    assert guarded.answer is not None
    assert guarded.answer.headers["x-ratelimit-remaining-requests"]
    request.node.user_properties.append(("guard_us", round(added_s * 1e6, 1)))
    assert added_s < MOST_S
