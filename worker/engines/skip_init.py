"""Packages of which single modules are used: entered without running what their `__init__` would import.

mlx-vlm's imports OpenCV, datasets and audio; mlx-embeddings' imports mlx-vlm. Their model files need none of that.
"""

import importlib.util
import sys

from worker.engines.base import EngineLoadError


def enter_package(name: str) -> None:
    """Make `name.x.y` importable without running `name/__init__.py`. Raises `EngineLoadError` where it is missing."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        hub_name = name.replace("_", "-")
        raise EngineLoadError(f"{hub_name} is not installed: pip install --no-deps {hub_name}")
    sys.modules[name] = importlib.util.module_from_spec(spec)
