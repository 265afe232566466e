"""What the system says of processes: memory, processor time, time spent waiting for a processor. Linux only."""

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            # A process may end between its listing and its reading.
            with contextlib.suppress(OSError, IndexError):
                found[int(entry.name)] = int(_fields(int(entry.name))[1])
    return found


def family(pid: int) -> list[int]:
    """A process and all below it, itself first."""
    above = parents()
    members = [pid]
    for member in members:
        members += [child for child, parent in above.items() if parent == member]
    return members


def memory_bytes(pid: int) -> int:
    """The memory of a process, shared pages by its share; 0 where it has ended."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def processor_s(pid: int) -> float:
    """Processor time of a process and of those of its children that have ended; 0 where it has ended itself."""
    try:
        return sum(map(int, _fields(pid)[11:15])) / TICKS
    except (OSError, IndexError):
        return 0.0


def starved_s(pid: int) -> float:
    """How long the main thread of a process was ready to run while others ran; 0 where nobody counts that."""
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def machine_busy_s() -> float:
    """Processor time that all processes of the machine have had, in sum over its cores."""
    user, nice, system, _idle, _wait, *rest = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) / TICKS


def descriptors(pid: int) -> int:
    """Open descriptors of a process; 0 where it has ended."""
    try:
        return len(list((PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return 0


def environment(pid: int) -> bytes:
    """What a process was started with; empty where it has ended."""
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def command_line(pid: int) -> bytes:
    """The same of its arguments."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on: the second, a name, may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
