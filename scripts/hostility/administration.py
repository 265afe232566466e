"""Operators that write at the same time: a key that one revokes stays revoked, whatever the others change."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hostility.context import AttackContext
from hostility.exchanges import Exchange, ask
from hostility.pool import ROOT, AttackedPool
from hostility.report import AttackReport
from hostility.traces import key_traces

PAIRS = 200
SIDE_BY_SIDE = 8
NOTICED_S = 2.0
"""A gateway notices within a second what another program has written."""


def writes(context: AttackContext) -> AttackReport:
    """Revoke 200 keys beside a change, a rotation, or a command: none opens again, even after a restart."""
    pool, report = context.pool, AttackReport()
    count = max(8, round(PAIRS * context.part))
    texts: list[tuple[str, str]] = []
    faults: list[str] = []
    for start in range(0, count, SIDE_BY_SIDE):
        batch = range(start, min(count, start + SIDE_BY_SIDE))
        made = [_make(pool, at) for at in batch]
        texts += [(key["id"], key["key"]) for key in made]
        acts = [
            act for at, key in zip(batch, made, strict=True) for act in (_revoke(pool, key), _beside(pool, key, at))
        ]
        for answer in _at_once(acts):
            if answer.status >= 500 or not answer.status:
                faults.append(f"{answer.status} {answer.fault} {answer.body[:80]!r}")
            body = answer.json()
            if isinstance(body, dict) and body.get("key"):
                texts.append((body["id"], body["key"]))
        context.say(f"{len(texts)} of {count} keys")
    pool.made_keys += [text for _, text in texts]
    time.sleep(NOTICED_S)
    report.add("pairs of writes", count)
    report.add("revoked keys that open, in memory", _open(pool, texts), 0)
    report.add(
        "revoked keys that are open in the database", _open_in_database(pool, {key_id for key_id, _ in texts}), 0
    )
    pool.stop_gateway()
    pool.start_gateway()
    pool.wait_healthy()
    report.add("revoked keys that open after a restart", _open(pool, texts), 0)
    report.add("writes answered with 5xx, or not", len(faults), 0, "", "; ".join(faults[:4]))
    found = key_traces(pool)
    report.add("places that hold a key", len(found), 0, "", "; ".join(found[:5]))
    return report


def secrets(context: AttackContext) -> AttackReport:
    """Look for keys in every log, event, metric, process list and environment of an engine."""
    report = AttackReport()
    for path in ("/v1/models", "/admin/api-keys", "/v1/nothing"):
        for key in context.pool.made_keys:
            ask(context.pool.outside, "GET", f"{path}?api_key={key}", headers={"Authorization": f"Bearer {key}"})
    found = key_traces(context.pool)
    report.add("places that hold a key", len(found), 0, "", "; ".join(found[:6]))
    return report


def _make(pool: AttackedPool, at: int) -> dict[str, Any]:
    body = {"name": f"pair {at}", "permissions": ["models"], "limits": {"burst": 0, "rpm": 0, "rph": 0, "rpd": 0}}
    made: dict[str, Any] = pool.ask("POST", "/admin/api-keys", body, key=pool.keys.master).json()
    return made


def _revoke(pool: AttackedPool, key: dict[str, Any]) -> Callable[[], Exchange]:
    return lambda: pool.ask("DELETE", f"/admin/api-keys/{key['id']}", key=pool.keys.master)


def _beside(pool: AttackedPool, key: dict[str, Any], at: int) -> Callable[[], Exchange]:
    """Return what somebody else does to that key. One in ten is a command, which takes longest to start."""
    path = f"/admin/api-keys/{key['id']}"
    if at % 10 == 0:
        return lambda: _command(pool, key["id"], at)
    if at % 2:
        return lambda: pool.ask("PATCH", path, {"name": f"renamed {at}"}, key=pool.keys.master)
    return lambda: pool.ask("POST", f"{path}/rotate", {"grace": 3600}, key=pool.keys.master)


def _command(pool: AttackedPool, key_id: str, at: int) -> Exchange:
    began = time.monotonic()
    act = ["change", key_id, "--name", f"by command {at}"] if at % 20 else ["rotate", key_id]
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "keys", "--data-dir", str(pool.folder / "data"), *act],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if not at % 20 and ended.returncode == 0:
        pool.made_keys.append(ended.stdout.strip())
    # Whoever comes too late is told so, with a code of its own: that is no fault.
    return Exchange(
        status=200 if ended.returncode in (0, 2) else 500,
        headers={},
        took_s=time.monotonic() - began,
        fault=ended.stderr,
    )


def _at_once(acts: list[Callable[[], Exchange]]) -> list[Exchange]:
    """Do all of them at the same time."""
    answers: list[Exchange] = []
    gate = threading.Barrier(len(acts))

    def run(act: Callable[[], Exchange]) -> None:
        gate.wait()
        answers.append(act())

    threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _open(pool: AttackedPool, texts: list[tuple[str, str]]) -> int:
    """Count how many open. Each that does not is a failed login, and an operator's address should have none."""
    headers = [{"Authorization": f"Bearer {text}"} for _, text in texts]
    return sum(ask(pool.outside, "GET", "/v1/models", headers=one).status == 200 for one in headers)


def _open_in_database(pool: AttackedPool, ids: set[str]) -> int:
    place = f"file:{pool.folder / 'data' / 'keys.db'}?mode=ro"
    database = sqlite3.connect(place, uri=True)
    try:
        rows = database.execute("SELECT id FROM keys WHERE revoked_at IS NULL").fetchall()
    finally:
        database.close()
    return len(ids & {row[0] for row in rows})
