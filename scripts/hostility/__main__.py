"""`scripts/hostile`: attack a running pool in every way that is known, and judge what everybody else notices."""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence

from benchmarks.table import Table

from hostility.context import AttackContext
from hostility.pool import AttackedPool
from hostility.report import AttackReport
from hostility.scenarios import SCENARIOS, Scenario, scenario


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; exit 1 if a bound does not hold, 2 for what can't be asked."""
    parser = argparse.ArgumentParser(prog="scripts/hostile", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the scenarios and what each does")
    parser.add_argument("--only", metavar="NAME,...", help="these scenarios alone")
    parser.add_argument("--seconds", type=float, help="how long each may attack; default its own")
    parser.add_argument("--part", type=float, default=1.0, help="try only such a share of all bodies (1)")
    options = parser.parse_args(argv)
    if options.list:
        for one in SCENARIOS:
            print(f"{one.name:<12} {one.summary}")
        return 0
    try:
        chosen = [scenario(name.strip()) for name in options.only.split(",")] if options.only else [*SCENARIOS]
    except KeyError as error:
        print(f"scripts/hostile: there is no scenario {error}; --list names them", file=sys.stderr)
        return 2
    # What was started is ended, too, when this is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    table = Table()
    for one in chosen:
        run(one, table, seconds=options.seconds or one.seconds, part=options.part)
    print(f"{len(table.missed)} of {len(table.lines)} figures beyond their bounds")
    return 1 if table.missed else 0


def run(one: Scenario, table: Table, *, seconds: float, part: float) -> None:
    """Run one scenario on a pool of its own: what an attack leaves behind must not help or hinder the next."""
    print(f"-- {one.name}: {one.summary}", flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"\r   {time.monotonic() - began:5.0f} s  {text:<90.90}", end="", file=sys.stderr, flush=True)

    try:
        if one.own_pool:
            report = one.run(AttackContext(pool=None, seconds=seconds, say=say, part=part))  # type: ignore[arg-type]
        else:
            say("a pool starts")
            with AttackedPool() as pool:
                report = one.run(AttackContext(pool=pool, seconds=seconds, say=say, part=part))
    except (RuntimeError, OSError) as error:
        print(file=sys.stderr)
        table.add("ended early", repr(error)[:300], "", holds=False)
        return
    print(f"\r{'':<100}\r", end="", file=sys.stderr)
    show(report, table)


def show(report: AttackReport, table: Table) -> None:
    """Print readings as lines, with what explains those beyond their bounds."""
    for reading in report.readings:
        unit = f" {reading.unit}" if reading.unit else ""
        wanted = "" if reading.most is None else f"<= {reading.most:g}{unit}"
        table.add(reading.what, f"{reading.figure:.3g}{unit}", wanted, None if reading.most is None else reading.holds)
        if reading.note and (not reading.holds or reading.most is None):
            print(f"     {reading.note}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
