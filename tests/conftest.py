"""What every test may need: the tiny models, made once and kept between runs in a git-ignored folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pool_fixtures"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Answers the folder of a tiny model, by name."""
    from make_models import make

    return lambda name: make(name, ROOT / ".models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A bound of time says something about the code only if the machine gave it the time."""
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))
