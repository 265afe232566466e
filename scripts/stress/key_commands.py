"""A pool that asks for keys, managed by its command line, and what its database says of them."""

import sqlite3
import subprocess
import sys

from stress.key_traces import shown
from stress.running_pool import ROOT, RunningPool

MASTER = shown("quince-71-harbour-velvet-orbit")
PRODUCTION = {"POOL_ENV": "production", "POOL_API_KEY": MASTER}


def keys(pool: RunningPool, *argv: str) -> str:
    """Run `python -m gateway keys`."""
    place = ["--data-dir", str(pool.folder / "data")]
    command = [sys.executable, "-m", "gateway", "keys", *place, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def bearer(key: str) -> dict[str, str]:
    """Return a header with a key."""
    return {"Authorization": f"Bearer {key}"}


def used(pool: RunningPool, key: str) -> tuple[int, int]:
    """Return the requests and tokens of a key, as the database has them."""
    path = pool.folder / "data" / "keys.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        found = db.execute("SELECT requests, tokens FROM keys WHERE id = ?", (key[4:12],)).fetchone()
    db.close()
    return int(found[0]), int(found[1])


def known(pool: RunningPool, key: str) -> bool:
    """Return whether a key opens the list of models."""
    return pool.get("/v1/models", headers=bearer(key)).status == 200


def metric(pool: RunningPool, name: str) -> float:
    """Return the sum of a metric over its labels; -1 where it has no sample."""
    text = pool.get("/metrics", headers=bearer(MASTER)).body.decode()
    found = [float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(found) if found else -1.0
