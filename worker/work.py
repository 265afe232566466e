"""Whether a process is at work, whatever at: seen by itself, and from outside while something holds its interpreter."""

import contextlib
import ctypes
import resource
import struct
import sys
import time
from pathlib import Path

OWN_WORK_PER_S = 5.0
"""Milliseconds of processor time, page faults or pages of input and output, in sum, that a process at work takes each
second at least. One that only beats, without a gateway to connect to, takes 1.2; with one, 0.2."""
BLOCKS_PER_PAGE = 8
THREAD_SHARE = 0.1
"""Of a core, that a thread at work takes at least. One that waits for the interpreter asks for it again and again,
and takes up to 0.04 for that."""
FAULTS_PER_S = 8
"""Pages that a process at work waits for at least, if that is all that it does."""
LOOK_S = 0.5
TICKS_PER_S = 100
"""Of `/proc/PID/stat`."""
RUSAGE_BYTES = 512


class OwnWork:
    """Counts the looks at which this process had worked since the last one: had computed, read or written.

    For one thread, whose own processor time does not count: it beats on in a process that does nothing else.
    """

    def __init__(self) -> None:
        self._count = 1
        self._last: tuple[float, float] | None = None

    def count_work(self) -> int:
        """Look, and return the count, from 1."""
        work, now = _work_of_others(), time.monotonic()
        if self._last is None or work - self._last[0] >= OWN_WORK_PER_S * (now - self._last[1]):
            self._count += 1
        self._last = work, now
        return self._count


class ProcessWork:
    """The same of another process, by what the system tells of it. Costs a millisecond a look, at most."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._count = 1
        self._at = time.monotonic()
        self._threads, self._faults = _usage_of(pid)

    def count_work(self) -> int:
        """Look, unless that was done a moment ago, and return the count, from 1; 0 where the system tells nothing."""
        now = time.monotonic()
        if (elapsed_s := now - self._at) >= LOOK_S:
            threads, faults = _usage_of(self._pid)
            took_s = [used_s - self._threads.get(thread, 0.0) for thread, used_s in threads.items()]
            share, faults_per_s = max(took_s, default=0.0) / elapsed_s, (faults - self._faults) / elapsed_s
            if share >= THREAD_SHARE or faults_per_s >= FAULTS_PER_S:
                self._count += 1
            self._at, self._threads, self._faults = now, threads, faults
        return self._count if self._threads else 0


def _work_of_others() -> float:
    """Return what all threads but this one have done since the start: milliseconds computed, and pages moved."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = used.ru_majflt + (used.ru_inblock + used.ru_oublock) / BLOCKS_PER_PAGE
    return (time.process_time() - time.thread_time()) * 1000 + pages


def _usage_of(pid: int, *, platform: str = sys.platform) -> tuple[dict[str, float], int]:
    """Processor seconds by thread, and pages that were waited for; no threads where the system does not tell.

    macOS tells of the whole process only.
    """
    threads: dict[str, float] = {}
    faults = 0
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        if platform == "linux":
            for task in Path(f"/proc/{pid}/task").iterdir():
                # The name in parentheses may hold anything; the fields count from behind it.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                threads[task.name] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
                faults += int(fields[9])
            return threads, faults
        system = ctypes.CDLL(None)
        usage, base = ctypes.create_string_buffer(RUSAGE_BYTES), ctypes.create_string_buffer(8)
        # `rusage_info_v0` begins with a UUID, processor times in units of the timebase, two counts, and pages read.
        if system.proc_pid_rusage(pid, 0, usage) == 0 and system.mach_timebase_info(base) == 0:
            user, kernel, _, _, faults = struct.unpack_from("=5Q", usage, 16)
            numerator, denominator = struct.unpack("=2I", base)
            return {"all": (user + kernel) * numerator / denominator / 1e9}, int(faults)
    return threads, faults
