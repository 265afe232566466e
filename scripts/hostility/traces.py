"""Where keys must never turn up: logs, events, metrics, environments and command lines of engines."""

from hostility import machine
from hostility.pool import AttackedPool

LONGEST_KNOWN = 8
"""Characters of a key that may be shown: as many as its id has."""


def key_traces(pool: AttackedPool) -> list[str]:
    """Find each place that holds a key of the pool, whole or in part longer than its id, with the line."""
    needles = [piece for key in pool.made_keys for piece in _pieces(key)]
    headers = {"key": pool.keys.master}
    places = dict(pool.files())
    for path in ("/metrics", "/admin/events?limit=1000", "/admin/config", "/admin/stats", "/admin/api-keys", "/health"):
        places[path] = pool.ask("GET", path, **headers).body
    for kind, supervisor in pool.supervisors.items():
        for pid in machine.family(supervisor.pid)[1:]:
            places[f"environment of a process of {kind}"] = machine.environment(pid)
    for pid in pool.processes():
        places[f"command line of process {pid}"] = machine.command_line(pid)
    return [f"{name}: {_line(text, needles)}" for name, text in places.items() if any(one in text for one in needles)]


def _pieces(key: str) -> set[bytes]:
    """Return all parts of the secret of a key that are one character too long."""
    # mlx_ID_SECRET: the id is public.
    secret = key[13:] if key.startswith("mlx_") else key
    return {secret[at : at + LONGEST_KNOWN + 1].encode() for at in range(len(secret) - LONGEST_KNOWN)}


def _line(text: bytes, needles: list[bytes]) -> str:
    lines = text.replace(b"\0", b"\n").splitlines()
    found = next((line for line in lines if any(one in line for one in needles)), b"")
    return found[:60].decode(errors="replace")
