"""Where the system keeps OpenBLAS. MLX's CPU build for Linux links the slow reference BLAS unless it is preloaded."""

import sys
from pathlib import Path

PLACES = (
    "usr/lib/*/openblas-pthread/libopenblas.so.0",
    "usr/lib/*/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib/libopenblas.so.0",
    "usr/local/lib/libopenblas.so.0",
)
ADVICE = "OpenBLAS is missing: float32 matmul on the CPU is 20-80x slower (apt-get install libopenblas0-pthread)"


def find_openblas(root: Path = Path("/"), *, platform: str = sys.platform) -> Path | None:
    """The library to preload; None where there is none or (off Linux) none is needed."""
    if platform != "linux":
        return None
    return next((path for place in PLACES for path in sorted(root.glob(place))), None)


if __name__ == "__main__":
    # For scripts: the path, or nothing and a word about what that costs.
    if found := find_openblas():
        print(found)
    elif sys.platform == "linux":
        print(ADVICE, file=sys.stderr)
