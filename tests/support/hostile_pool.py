"""A pool in production mode for attacks, one for all of them: real engines take longer to start than to attack."""

import sys
from collections.abc import Callable, Iterator

import pytest
from hostility.context import AttackContext
from hostility.pool import AttackedPool
from hostility.report import AttackReport, Reading
from hostility.scenarios import scenario

Attack = Callable[..., AttackReport]
WIDER = 10


@pytest.fixture(scope="session")
def _attacked() -> Iterator[AttackedPool]:
    if sys.platform != "linux":
        pytest.skip("memory and processor time are read from /proc")
    with AttackedPool() as pool:
        yield pool


@pytest.fixture
def attack(_attacked: AttackedPool, record: Callable[[str, object], None]) -> Attack:
    """Runs a scenario by name for so many seconds, with such a share of what it has; its figures are in the report."""

    def run(name: str, *, seconds: float, part: float = 1.0) -> AttackReport:
        _attacked.wait_healthy()
        report = scenario(name).run(AttackContext(pool=_attacked, seconds=seconds, part=part))
        record(name, [str(reading) for reading in report.readings])
        return report

    return run


def missed(report: AttackReport) -> str:
    """What does not hold, to be read in a failure; empty where everything does.

    Bounds in seconds are `scripts/hostile`'s to judge, on a machine of its own: here they are so much wider.
    """
    return "\n".join(str(reading) for reading in report.missed if not _holds_roughly(reading))


def _holds_roughly(reading: Reading) -> bool:
    return reading.unit == "s" and reading.most is not None and reading.figure <= WIDER * reading.most
