"""`scripts/chaos`: engines are killed under load; nobody may notice. The seed decides what is asked and killed."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Table

from stress import conversations, kills, requests
from stress.running_pool import FAKE, ROOT

PARTS = ("fake", "model", "conversations")


def main() -> int:
    """Run what is asked for; exit 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--kills", type=int, default=100, help="engines killed in each run")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--replicas", type=int, nargs="*", default=[2, 1], help="workers in each run (2, then 1)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, seed {options.seed}, load {os.getloadavg()[0]:.1f}", flush=True
    )
    table = Table()
    parts = options.parts or PARTS
    if "fake" in parts:
        for replicas in options.replicas:
            _kills(table, "fake engine", [FAKE] * replicas, requests.of_the_fake_engine, options)
    if "model" in parts:
        flags = _model()
        make = requests.of_a_model(flags, prompts=24, max_tokens=160, seed=options.seed)
        for replicas in options.replicas:
            _kills(table, "tiny Qwen3", [flags] * replicas, make, options)
    if "conversations" in parts:
        _conversations(table, options.seed)
    return 1 if table.missed else 0


def _model() -> tuple[str, ...]:
    from make_models import make

    folder: Path = make("qwen3", ROOT / ".models")
    return ("--model-path", str(folder), "--prefix-cache-bytes", "128MB")


def _kills(
    table: Table, name: str, workers: list[tuple[str, ...]], make: requests.Make, options: argparse.Namespace
) -> None:
    report = kills.run(
        workers, make, clients=options.clients, kills=options.kills, seed=options.seed, pause_s=(0.3, 2.0)
    )
    for fault in report.load.faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    what = f"{name}, {len(workers)} replica(s): {options.kills} kills, {options.clients} clients"
    asked, continued = report.load.asked, report.continued
    figure = f"{asked} requests, {continued} continued, {len(report.load.faults)} faults"
    table.add(what, figure, "0 faults", report.fine)
    table.add(
        "  a death is noticed within",
        _times(report.noticed_s),
        "p99 < 100 ms",
        kills.quantile(report.noticed_s, 0.99) < 0.1,
    )
    table.add("  by somebody who waits for nothing else", _times(report.gone_s))


def _times(values: Sequence[float]) -> str:
    return ", ".join(f"p{share * 100:g} {kills.quantile(values, share) * 1e3:.0f} ms" for share in (0.5, 0.9, 0.99))


def _conversations(table: Table, seed: int) -> None:
    alone, two = (
        conversations.hit_rate(_model(), replicas=replicas, conversations=20, turns=10, seed=seed)
        for replicas in (1, 2)
    )
    figure = f"{two:.3f} of {alone:.3f}: {two / alone:.2f}"
    table.add("prefix hits, 20 conversations of 10 turns, 2 replicas", figure, ">= 0.90", two >= 0.9 * alone)


if __name__ == "__main__":
    sys.exit(main())
