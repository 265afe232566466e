"""What every test may need: the tiny models, made once and kept between runs in a git-ignored folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Answers the folder of a tiny model, by name."""
    from make_models import make

    return lambda name: make(name, ROOT / ".models")
