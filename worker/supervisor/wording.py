"""How an engine's end is said, in the log and to operators."""

import signal

EXIT_MEMORY = 71
"""The exit code of an engine that ran out of memory."""


def describe_death(code: int, killed_for: str | None) -> str:
    """Return how a process ended, after "process 7 …"; `killed_for` is why we killed it."""
    if killed_for is not None:
        return f"was killed ({killed_for})"
    if code == -signal.SIGKILL:
        return "was killed by the system, likely out of memory (signal 9),"
    if code == EXIT_MEMORY:
        return "ran out of memory,"
    if code < 0:
        return f"died of {_signal_name(-code)}"
    return f"ended with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_span(seconds: float) -> str:
    """Return a duration to read."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
