"""How much memory another process holds, as the system tells; for systems that bound none by themselves."""

import ctypes
import mmap
import sys
from pathlib import Path

_RUSAGE_INFO_V0 = 0
_V0_WORDS = 12
"""`struct rusage_info_v0`: a UUID of two words, then ten counters of 64 bits."""
_FOOTPRINT_WORD = 9


def footprint_bytes(pid: int) -> int:
    """Bytes of a process of the same user; 0 where it can't be told (it has ended, say)."""
    if sys.platform == "darwin":
        words = (ctypes.c_uint64 * _V0_WORDS)()
        library = ctypes.CDLL("/usr/lib/libproc.dylib")
        if library.proc_pid_rusage(pid, _RUSAGE_INFO_V0, ctypes.byref(words)):
            return 0
        return int(words[_FOOTPRINT_WORD])
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0
