"""How the C library hands memory back: on Linux with glibc, large blocks go to the system as soon as they are freed.

Left to itself, glibc raises the size from which blocks are mapped one by one to that of the largest one freed so far,
up to 32 MB. A body of 20 MB then lies within the heap, and whatever is allocated behind it keeps it there: after a
burst of large bodies hundreds of megabytes stayed for good. Smaller blocks stay until they are asked for.
"""

import contextlib
import ctypes
import sys

M_MMAP_THRESHOLD = -3
MAPPED_BYTES = 64 * 1024


def map_large_blocks() -> bool:
    """Have blocks from `MAPPED_BYTES` on mapped one by one. Return whether the C library knows how."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))
    except (OSError, AttributeError):
        # Another C library; musl maps large blocks anyway.
        return False


def release_free_memory() -> None:
    """Give free pages of the heap back to the system. Blocks for milliseconds, without the interpreter's lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
