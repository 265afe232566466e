"""Shelves in temporary folders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disk_cache_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Callable[..., Rig]:
    """Open the same folder, as one process more."""
    return lambda **options: Rig(tmp_path / "prefixes", **options)
