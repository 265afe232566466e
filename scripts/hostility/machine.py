"""What the system says of processes: memory, processor time, time spent waiting for a processor. Linux only."""

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def parents() -> dict[int, int]:
    """Return the parent of every process, by its id."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            # A process may end between its listing and its reading.
            with contextlib.suppress(OSError, IndexError):
                found[int(entry.name)] = int(_fields(int(entry.name))[1])
    return found


def family(pid: int) -> list[int]:
    """Return a process and all below it, itself first."""
    above = parents()
    members = [pid]
    for member in members:
        members += [child for child, parent in above.items() if parent == member]
    return members


def memory_bytes(pid: int) -> int:
    """Return the memory of a process, shared pages by its share; 0 where it has ended."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def processor_s(pid: int) -> float:
    """Return a process's processor time and that of its ended children; 0 where it has ended itself."""
    try:
        return sum(map(int, _fields(pid)[11:15])) / TICKS
    except (OSError, IndexError):
        return 0.0


def starved_s(pid: int) -> float:
    """Return how long a main thread was ready to run while others ran; 0 where nobody counts that."""
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def machine_busy_s() -> float:
    """Return the processor time of all processes of the machine, in sum over its cores."""
    user, nice, system, _idle, _wait, *rest = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) / TICKS


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process; 0 where it has ended."""
    try:
        return len(list((PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return 0


def environment(pid: int) -> bytes:
    """Return what a process was started with; empty where it has ended."""
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def command_line(pid: int) -> bytes:
    """Return the arguments that a process was started with; empty where it has ended."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _fields(pid: int) -> list[str]:
    """Return fields of /proc/PID/stat from the third, the state, on: the name may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
