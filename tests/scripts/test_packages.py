"""What is installed, and what the pins say."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def named(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


PINS = {named(line): line.partition("==")[2] for line in LINES}


def test_constraints_hold_names_and_versions_only() -> None:
    """No address of any registry, no hash, no path."""
    assert LINES
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


def test_every_requirement_is_pinned() -> None:
    """What pyproject.toml asks for has a tested version."""
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    for requirement in (*PROJECT["dependencies"], *extras):
        assert named(requirement) in {*PINS, PROJECT["name"]}, requirement


def test_installed_packages_have_the_pinned_versions() -> None:
    """The suite runs on what the constraints promise; a package that no pin names has slipped in."""
    own = {named(PROJECT["name"]), "pip", "setuptools", "wheel"}
    if Path(sys.prefix).resolve() != ROOT / ".venv":
        own |= {named(distribution.name) for distribution in distributions() if named(distribution.name) not in PINS}
    for distribution in distributions():
        name = named(distribution.name)
        assert name in own or PINS.get(name) == distribution.version, f"{name} {distribution.version}"


@pytest.mark.parametrize("package", ["torch", "tensorflow", "jax", "torchvision"])
def test_no_heavy_framework_is_installed(package: str) -> None:
    """PyTorch would be gigabytes, and doubles the start of every engine."""
    with pytest.raises(PackageNotFoundError):
        version(package)
