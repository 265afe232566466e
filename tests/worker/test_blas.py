"""Finding the system's OpenBLAS."""

from pathlib import Path

from worker.supervisor.blas import find_openblas


def test_library_is_found_in_the_places_of_distributions(tmp_path: Path) -> None:
    """Debian's threaded build comes first, Fedora's folder is looked into as well."""
    assert find_openblas(tmp_path, platform="linux") is None
    fedora = tmp_path / "usr/lib64/libopenblas.so.0"
    debian = tmp_path / "usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0"
    for library in (fedora, debian):
        library.parent.mkdir(parents=True)
        library.touch()
    assert find_openblas(tmp_path, platform="linux") == debian
    debian.unlink()
    assert find_openblas(tmp_path, platform="linux") == fedora


def test_nothing_is_preloaded_off_linux(tmp_path: Path) -> None:
    """macOS has Accelerate."""
    library = tmp_path / "usr/lib/libopenblas.so.0"
    library.parent.mkdir(parents=True)
    library.touch()
    assert find_openblas(tmp_path, platform="darwin") is None
