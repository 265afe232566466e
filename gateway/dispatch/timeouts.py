"""The dispatcher's bounds, in one frozen struct, so that tests and configuration can change them."""

import msgspec


class PoolTimeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that hold for every model. What a worker decides (slots, queue) comes with its `Announce`."""

    beat_timeout_s: float = 5.0
    """A connected peer that stays silent for longer is lost."""
    load_s: float = 300.0
    """A worker that loads or warms up and makes no progress for longer is killed. It may be silent: loading can hold
    the interpreter for minutes."""
    work_shown_s: float = 2.5
    """Work of a silent engine that its supervisor saw so lately shows that it lives. Supervisors report each second."""
    supervisor_grace_s: float = 2.0
    """So long a supervisor whose connection broke may take to be heard of again."""
    stall_s: float = 60.0
    """A ready engine whose step counter stands still for longer, with work to do, is killed; so is one that is silent
    for longer, however busy its process is."""
    resume_s: float = 60.0
    """So long a stream that lost its worker waits for another one before it ends as `worker_lost`."""
    slotless_jobs: int = 64
    """Tokenise and detokenise jobs at one worker; they take no slot."""
    settle_s: float = 1.5
    """So long after start-up an unknown model is "not ready" and no model is lost: peers beat once a second, and
    until then nobody knows who is there."""
    hello_interval_s: float = 0.2
    """A peer that has not announced itself is greeted at most this often."""
    tick_s: float = 0.25
    """How often silence and queue timeouts are looked at."""
