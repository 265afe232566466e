"""The OpenBLAS that MLX's CPU build for Linux is given: without one it computes with the slow reference BLAS.

Each library is tried in a process of its own. One that can't be loaded would keep every process from starting, and one
that was built for another processor would end it.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PLACES = (
    "usr/lib/*/openblas-pthread/libopenblas.so.0",
    "usr/lib/*/libopenblas.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib/libopenblas.so.0",
    "usr/local/lib/libopenblas.so.0",
)
WHEEL = "cmeel.prefix/lib"
"""Where the package cmeel-openblas keeps its libraries."""
CORETYPE = "OPENBLAS_CORETYPE"
NEWER = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids")
"""Kernels of x86 that use AVX2 or more. OpenBLAS takes old ones for a processor that is newer than itself."""
NEEDED = (
    ("SkylakeX", ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")),
    ("Haswell", ("avx2", "fma")),
)
"""Kernels to ask for, the newest first, with the flags in `/proc/cpuinfo` that they need."""
ADVICE = "OpenBLAS is missing: float32 matmul on the CPU is 20-80x slower (apt-get install libopenblas0-pthread)"
TRIAL_S = 20.0
TRIAL = """
import ctypes
blas, size = ctypes.CDLL(None), 64
ones, product = (ctypes.c_float * size**2)(*[1.0] * size**2), (ctypes.c_float * size**2)()
blas.cblas_sgemm(101, 111, 111, size, size, size, ctypes.c_float(1), ones, size, ones, size, ctypes.c_float(0), product, size)
assert product[0] == size
blas.openblas_get_corename.restype = ctypes.c_char_p
print(blas.openblas_get_corename().decode())
"""  # noqa: E501


@dataclass(frozen=True)
class Blas:
    """A library that computes here, with the processor whose kernels it takes."""

    core: str
    environment: Mapping[str, str]
    """What a process needs to use it. `LD_` names hold paths, to be put in front of those that are there."""

    def __str__(self) -> str:
        chosen = f", as {CORETYPE} says" if CORETYPE in self.environment else ""
        return f"OpenBLAS: {self.environment['LD_PRELOAD']} with kernels for {self.core}{chosen}"


def find_openblas(
    root: Path = Path("/"),
    site: Path | None = None,
    *,
    platform: str = sys.platform,
    try_library: "Callable[[Mapping[str, str]], str | None] | None" = None,
) -> Blas | None:
    """Return what to preload; None where there is nothing or (off Linux) nothing is needed."""
    if platform != "linux":
        return None
    try_library = try_library or _try_library
    for environment in _candidates(root, site or Path(sysconfig.get_path("platlib"))):
        core = try_library(environment)
        if core is None:
            continue
        wanted = choose_core(core, _read_flags(root))
        if wanted is not None:
            chosen = {**environment, CORETYPE: wanted}
            if try_library(chosen) == wanted:
                return Blas(wanted, chosen)
        return Blas(core, environment)
    return None


def choose_core(core: str, flags: set[str]) -> str | None:
    """Return the kernels to ask for instead of those for `core`; None where those are good enough."""
    if core.lower() in map(str.lower, NEWER):
        return None
    return next((name for name, needed in NEEDED if flags.issuperset(needed)), None)


def _candidates(root: Path, site: Path) -> Iterator[dict[str, str]]:
    for place in PLACES:
        for path in sorted(root.glob(place)):
            yield {"LD_PRELOAD": str(path)}
    library = site / WHEEL / "libopenblas.so.0"
    if library.exists():
        # Beside it the Fortran library that it needs may be linked.
        yield {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(library.parent)}


def _read_flags(root: Path) -> set[str]:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _try_library(environment: Mapping[str, str]) -> str | None:
    """Compute with a library; returns the processor whose kernels it took, None where it can't be used."""
    settings = [f"{name}={value}" for name, value in environment.items()]
    command = ["env", *settings, "OPENBLAS_NUM_THREADS=1", sys.executable, "-I", "-S", "-c", TRIAL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=True)  # noqa: S603 - our own Python
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def main() -> None:
    """Print what a script needs: the path alone, or with `--export` lines for a shell to evaluate."""
    found = find_openblas()
    if found is None:
        if sys.platform == "linux":
            print(ADVICE, file=sys.stderr)
    elif "--export" not in sys.argv:
        print(found.environment["LD_PRELOAD"])
    else:
        print(found, file=sys.stderr)
        for name, value in found.environment.items():
            rest = f"${{{name}:+:${name}}}" if name.startswith("LD_") else ""
            print(f'export {name}="{value}{rest}"')


if __name__ == "__main__":
    main()
