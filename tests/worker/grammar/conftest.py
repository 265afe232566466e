"""The tiny Qwen3 engine, which knows no JSON: what it writes is right because it can't write anything else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import tokenizer_utils

from worker.config import WorkerConfig
from worker.engines.chat.engine import ChatEngine


@pytest.fixture(scope="session")
def _loaded_engine(model_folder: Callable[[str], Path]) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="qwen3", prefix_cache_bytes=0))
    engine.load()
    return engine


@pytest.fixture(scope="session")
def tokenizer(model_folder: Callable[[str], Path]) -> Any:
    """The engine's, read anew."""
    folder = model_folder("qwen3")
    return tokenizer_utils.load(folder, eos_token_ids=json.loads((folder / "config.json").read_text())["eos_token_id"])


@pytest.fixture
def engine(_loaded_engine: ChatEngine) -> Iterator[ChatEngine]:
    """Idle before and after."""
    engine = _loaded_engine
    yield engine
    while engine.busy:
        engine.step()
