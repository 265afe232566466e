"""How patient a supervisor is with its engine. Numbers only."""

import msgspec


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How patient to be. Seconds and counts.

    `delays_s` are the waits before the starts that follow each other's failures; the last one repeats.
    """

    delays_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    healthy_s: float = 60.0
    """An engine that was ready so long, or has done work, owes nothing for what its predecessors did. Loading, however
    long it takes, proves nothing."""
    settled_s: float = 10.0
    """An engine that ends by itself with code 0 after so long was asked to (drained), and is no crash."""
    crash_limit: int = 5
    crash_window_s: float = 120.0
    crash_pause_s: float = 60.0
    config_tries: int = 3
    memory_tries: int = 2
    """So many loads in a row may run out of memory. Then no more are tried until somebody asks."""
    config_pause_s: float = 600.0
    """The longest pause after settings that can't work; from `crash_pause_s` on each is twice the one before."""
    drain_s: float = 4.0
    """honcho kills 5 s after its SIGTERM."""
    end_extra_s: float = 1.0
    """How much longer than its grace an engine may take to end."""
    kill_s: float = 0.5
    """How long a killed process may take to be gone before nobody waits for it any more."""
