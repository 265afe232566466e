"""The tiny Qwen3 engine, which knows no JSON: what it writes is right because it can't write anything else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine


@pytest.fixture(scope="session")
def _loaded_engine(model_folder: Callable[[str], Path]) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="qwen3", prefix_cache_bytes=0))
    engine.load()
    return engine


@pytest.fixture
def engine(_loaded_engine: ChatEngine) -> Iterator[ChatEngine]:
    """Idle before and after."""
    engine = _loaded_engine
    yield engine
    for number in list(engine._running):
        engine.cancel(number)
    while engine.busy:
        engine.step()
