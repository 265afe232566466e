"""Models for the tests in this folder, made once and kept in a git-ignored folder between runs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Answers the folder of a tiny model, by name."""
    from make_models import make

    return lambda name: make(name, ROOT / ".models")
