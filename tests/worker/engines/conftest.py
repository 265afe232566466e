"""Engines driven without a process around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine


@pytest.fixture(scope="session")
def engine_of(model_folder: Callable[[str], Path]) -> Callable[..., ChatEngine]:
    """A loaded engine, shared by the tests that ask for the same one."""
    engines: dict[str, ChatEngine] = {}

    def make(name: str, **config: Any) -> ChatEngine:
        key = f"{name} {sorted(config.items())}"
        if key not in engines:
            engine = ChatEngine(WorkerConfig(model_path=str(model_folder(name)), served_name=name, **config))
            engine.load()
            engines[key] = engine
        return engines[key]

    return make
