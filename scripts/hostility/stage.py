"""What a scenario is given, and what all scenarios have in common."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hostility.pool import Pool
from hostility.report import Report
from hostility.watch import Sight, Watch

WARM_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running pool, how long an attack may last, and where to say how far it is. `part`: only so much is tried."""

    pool: Pool
    seconds: float
    say: Callable[[str], None] = lambda _: None
    part: float = 1.0

    @contextmanager
    def watched(self, *, streams: bool = False, requests: bool = True) -> Iterator["Scene"]:
        """Watch the pool while the block attacks it; what was seen stands in the scene afterwards."""
        with Watch(self.pool, streams=streams, requests=requests) as watch:
            time.sleep(WARM_S)
            watch.take()
            scene = Scene(watch=watch, before=watch.memory(), starts=self.pool.engine_starts())
            began = time.monotonic()
            yield scene
            scene.took_s = time.monotonic() - began
            scene.sight = watch.take()
            scene.starts = self.pool.engine_starts() - scene.starts


@dataclass(kw_only=True)
class Scene:
    """What was seen of one attack. `before`: memory by name; `starts`: engine processes started meanwhile."""

    watch: Watch
    before: dict[str, int]
    starts: int
    took_s: float = 0.0
    sight: Sight = field(init=False)

    def judge(self, report: Report, gap_s: float) -> None:
        """Add what every attack is judged by: gaps, engines, others' requests."""
        report.add_gaps(self.sight, gap_s)
        if self.before.keys() - {"gateway"}:
            report.add_engines(self.sight, self.starts)
            report.add_victims(self.sight)


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
