"""All scenarios by name, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass

from hostility import administration, engines, keyed, keyless
from hostility.context import AttackContext
from hostility.report import AttackReport


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An attack. `seconds`: how long it lasts unless told otherwise; `own_pool`: it starts what it attacks."""

    name: str
    run: Callable[[AttackContext], AttackReport]
    seconds: float
    own_pool: bool = False

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""
        return " ".join((self.run.__doc__ or "").split())


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(name="packed", run=keyless.packed, seconds=30.0),
    Scenario(name="flood", run=keyless.flood, seconds=10.0),
    Scenario(name="malformed", run=keyless.malformed, seconds=10.0),
    Scenario(name="guessing", run=keyless.guessing, seconds=5.0),
    Scenario(name="connections", run=keyless.plain_connections, seconds=35.0, own_pool=True),
    Scenario(name="handshakes", run=keyless.tls_connections, seconds=35.0, own_pool=True),
    Scenario(name="sweep", run=keyed.sweep, seconds=300.0),
    Scenario(name="burst", run=keyed.burst, seconds=20.0),
    Scenario(name="slow", run=keyed.slow, seconds=10.0),
    Scenario(name="crowd", run=keyed.crowd, seconds=20.0),
    Scenario(name="forms", run=keyed.forms, seconds=15.0),
    Scenario(name="texts", run=engines.texts, seconds=120.0),
    Scenario(name="largest", run=engines.largest, seconds=120.0),
    Scenario(name="tokenizing", run=engines.tokenizing, seconds=20.0),
    Scenario(name="pictures", run=engines.pictures, seconds=60.0),
    Scenario(name="grammars", run=engines.grammars, seconds=60.0),
    Scenario(name="leaving", run=engines.leaving, seconds=15.0),
    Scenario(name="writes", run=administration.writes, seconds=30.0),
    Scenario(name="secrets", run=administration.secrets, seconds=5.0),
)


def scenario(name: str) -> Scenario:
    """Return the scenario of that name. Raises `KeyError`."""
    found = {one.name: one for one in SCENARIOS}
    return found[name]
