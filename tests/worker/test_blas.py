"""Finding an OpenBLAS that works, and the kernels that it is told to use."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from worker.supervisor.blas import WHEEL, Blas, choose_core, find_openblas

AVX2 = "fma avx avx2"
AVX512 = f"{AVX2} avx512f avx512cd avx512bw avx512dq avx512vl"
DEBIAN, FEDORA = "usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0", "usr/lib64/libopenblas.so.0"


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Blas | None]:
    """A machine with these libraries; `cores` says what each takes the processor for, None where it can't be used."""

    def look(cores: Mapping[str, str | None], flags: str = "", obeys: bool = True) -> Blas | None:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
        for name in cores:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

        def try_library(environment: Mapping[str, str]) -> str | None:
            core = cores[str(Path(environment["LD_PRELOAD"]).relative_to(tmp_path))]
            return environment.get("OPENBLAS_CORETYPE", core) if obeys else core

        return find_openblas(tmp_path, tmp_path / "site", platform="linux", try_library=try_library)

    return look


def test_library_is_found_in_the_places_of_distributions(machine: Callable[..., Blas | None], tmp_path: Path) -> None:
    """Debian's threaded build comes first, Fedora's folder is looked into as well, a wheel is the last."""
    wheel = f"site/{WHEEL}/libopenblas.so.0"
    assert machine({}) is None
    found = machine({wheel: "SkylakeX"})
    assert found == Blas(
        "SkylakeX", {"LD_PRELOAD": str(tmp_path / wheel), "LD_LIBRARY_PATH": str(tmp_path / "site" / WHEEL)}
    )
    assert machine({FEDORA: "Zen", wheel: "Zen"}) == Blas("Zen", {"LD_PRELOAD": str(tmp_path / FEDORA)})
    assert machine({DEBIAN: "Zen", FEDORA: "Zen", wheel: "Zen"}) == Blas("Zen", {"LD_PRELOAD": str(tmp_path / DEBIAN)})


def test_next_library_is_taken_when_one_can_not_be_used(machine: Callable[..., Blas | None], tmp_path: Path) -> None:
    """It is broken, or was built for another processor."""
    found = machine({DEBIAN: None, FEDORA: "Haswell"}, AVX2)
    assert found is not None
    assert found.environment == {"LD_PRELOAD": str(tmp_path / FEDORA)}
    assert machine({DEBIAN: None, FEDORA: None}) is None


def test_newer_kernels_are_asked_for_when_a_processor_is_not_known(machine: Callable[..., Blas | None]) -> None:
    """And only where the library has them."""
    found = machine({DEBIAN: "Prescott"}, AVX512)
    assert found is not None
    assert (found.core, found.environment["OPENBLAS_CORETYPE"]) == ("SkylakeX", "SkylakeX")
    assert "kernels for SkylakeX, as OPENBLAS_CORETYPE says" in str(found)
    disobeyed = machine({DEBIAN: "Prescott"}, AVX512, obeys=False)
    assert disobeyed is not None
    assert (disobeyed.core, "OPENBLAS_CORETYPE" in disobeyed.environment) == ("Prescott", False)


@pytest.mark.parametrize(
    ("core", "flags", "wanted"),
    [
        ("Prescott", AVX512, "SkylakeX"),
        ("Prescott", AVX2, "Haswell"),
        ("Prescott", "sse2", None),
        ("Sandybridge", AVX2, "Haswell"),
        ("Zen", AVX512, None),
        ("SKYLAKEX", AVX512, None),
        ("neoversen1", "", None),
    ],
)
def test_kernels_are_chosen_by_the_processors_flags(core: str, flags: str, wanted: str | None) -> None:
    """Those that a library took by itself stay where they are no older than AVX2."""
    assert choose_core(core, set(flags.split())) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is preloaded elsewhere")
def test_library_of_this_machine_computes() -> None:
    """What is found here has been tried; a file that is no library is not taken."""
    found = find_openblas()
    assert found is None or (found.core and Path(found.environment["LD_PRELOAD"]).exists())


def test_file_is_not_taken_when_it_is_no_library(tmp_path: Path) -> None:
    """The loader says so in a process that is made for it."""
    broken = tmp_path / FEDORA
    broken.parent.mkdir(parents=True)
    broken.write_text("no library")
    assert find_openblas(tmp_path, tmp_path, platform="linux") is None


def test_nothing_is_preloaded_off_linux(tmp_path: Path) -> None:
    """macOS has Accelerate."""
    library = tmp_path / "usr/lib/libopenblas.so.0"
    library.parent.mkdir(parents=True)
    library.touch()
    assert find_openblas(tmp_path, platform="darwin") is None
