"""Embedding engines driven without a process around them, and the tables that their vectors are compared with."""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np

from protocol.messages import Accepted, EmbedJob, Failed, Image, Job, ToGateway, Vectors
from worker.config import WorkerConfig
from worker.engines.embedding.engine import EmbeddingEngine, PreparedTexts

TABLES = Path(__file__).parents[1] / "worker" / "engines"
Rows = np.ndarray[Any, np.dtype[np.float32]]


def loaded(folder: Path, **config: Any) -> EmbeddingEngine:
    engine = EmbeddingEngine(WorkerConfig(model_path=str(folder), served_name="m", **config))
    engine.load()
    return engine


def embed_job(number: int, *texts: str, tokens: list[list[int]] | None = None, **fields: Any) -> EmbedJob:
    return EmbedJob(number, 1, f"r{number}", "tenant", list(texts), tokens or [], **fields)


def run(engine: EmbeddingEngine, *jobs: EmbedJob, files: Sequence[bytes] = ()) -> dict[int, Any]:
    """Run jobs together to their ends; `files` are the images that they point into."""
    ends: dict[int, Any] = {}
    for job in jobs:
        [accepted] = engine.admit(prepared(engine, job, files))
        assert isinstance(accepted, Accepted)
    while engine.busy:
        ends |= {message.job: message for message in step(engine)}
    return ends


def prepared(engine: EmbeddingEngine, job: Job, files: Sequence[bytes] = ()) -> PreparedTexts:
    """As the reception does it, but all pieces at once."""
    pieces: list[Any] = []
    for piece in engine.prepare(job, files):
        if isinstance(piece, Future):
            wait([piece], timeout=60)
        else:
            pieces.append(piece)
    [*rest, last] = pieces
    assert last is not None
    assert not any(rest)
    return last


def step(engine: EmbeddingEngine) -> list[Vectors | Failed]:
    found = []
    for message in engine.step():
        assert isinstance(message, Vectors | Failed)
        found.append(message)
    return found


def rows(vectors: ToGateway) -> Rows:
    assert isinstance(vectors, Vectors), vectors
    return np.frombuffer(vectors.data, "<f4").reshape(-1, vectors.dimensions)


def images(count: int) -> list[Image]:
    return [Image(at, b"digest%d" % at) for at in range(count)]


def table(name: str) -> dict[str, Any]:
    """A checked-in table, its vectors still packed."""
    found: dict[str, Any] = json.loads((TABLES / f"{name}_reference.json").read_text())
    return found


def unpacked(vectors: str, count: int) -> Rows:
    return np.frombuffer(base64.b64decode(vectors), "<f4").reshape(count, -1)
