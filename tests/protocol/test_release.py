"""One version for the whole project."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from protocol import RELEASE


@pytest.mark.parametrize("program", ["gateway", "worker"])
def test_program_says_its_version_when_asked(program: str) -> None:
    """Both programs say the version that the package was installed with."""
    done = subprocess.run([sys.executable, "-m", program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mlx-pool {RELEASE}\n"
    assert version("mlx-pool") == RELEASE
