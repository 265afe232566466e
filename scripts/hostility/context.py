"""What a scenario is given, and what all scenarios have in common."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hostility.monitor import Observation, PoolMonitor
from hostility.pool import AttackedPool
from hostility.report import AttackReport

WARM_S = 1.0


@dataclass(frozen=True, kw_only=True)
class AttackContext:
    """A running pool, how long an attack may last, and where to say how far it is. `part`: only so much is tried."""

    pool: AttackedPool
    seconds: float
    say: Callable[[str], None] = lambda _: None
    part: float = 1.0

    @contextmanager
    def observe_attack(self, *, streams: bool = False, requests: bool = True) -> Iterator["AttackRecord"]:
        """Watch the pool while the block attacks it; what was seen stands in the record afterwards."""
        with PoolMonitor(self.pool, streams=streams, requests=requests) as watch:
            time.sleep(WARM_S)
            watch.take()
            attack = AttackRecord(watch=watch, before=watch.memory(), starts=self.pool.engine_starts())
            began = time.monotonic()
            yield attack
            attack.took_s = time.monotonic() - began
            attack.seen = watch.take()
            attack.starts = self.pool.engine_starts() - attack.starts


@dataclass(kw_only=True)
class AttackRecord:
    """What was seen of one attack. `before`: memory by name; `starts`: engine processes started meanwhile."""

    watch: PoolMonitor
    before: dict[str, int]
    starts: int
    took_s: float = 0.0
    seen: Observation = field(init=False)

    def add_readings(self, report: AttackReport, gap_s: float) -> None:
        """Add what every attack is judged by: gaps, engines, others' requests."""
        report.add_gaps(self.seen, gap_s)
        if self.before.keys() - {"gateway"}:
            report.add_engines(self.seen, self.starts)
            report.add_victims(self.seen)


def side_by_side(count: int, run: Callable[[int], None]) -> None:
    """Run something in so many threads and wait for them."""
    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_background(run: Callable[[], object]) -> Callable[[], None]:
    """Begin to run something; what is answered waits for its end."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread.join
