"""mlx-embeddings called directly, in process: what a server on top of it can't beat without changing it.

Run as a program, a JSON line per measurement, as `benchmarks.direct`. Texts are tokenised here, too, as a server must.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from benchmarks.direct import serve
from worker.engines import weights
from worker.engines.skip_init import enter_package

BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Model:
    """A BERT of mlx-embeddings with the weights of a folder, as its `load` makes it: float32 here."""

    def __init__(self, folder: Path) -> None:
        enter_package("mlx_embeddings")
        from mlx_embeddings.models import bert

        config = json.loads((folder / "config.json").read_text())
        self._model = bert.Model(bert.ModelArgs.from_dict(config))
        weights.fill(self._model, self._model.sanitize(weights.read(folder)), config, optional=("pooler.",))
        weights.settle(self._model, config, quantize="none")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)

    def embed(self, texts: list[str]) -> Any:
        """Compute one pass, padded to the longest."""
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        longest = max(map(len, found))
        tokens = np.array([ids + [0] * (longest - len(ids)) for ids in found])
        mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in found])
        return np.array(self._model(mx.array(tokens), attention_mask=mx.array(mask)).text_embeds)


def measure(folder: str, texts: list[str], batch: int) -> float:
    """Return texts a second, sorted by length where they share passes."""
    if folder not in _LOADED:
        _LOADED[folder] = Model(Path(folder))
    model = _LOADED[folder]
    ordered = sorted(texts, key=len) if batch > 1 else texts
    began = time.perf_counter()
    for start in range(0, len(ordered), batch):
        model.embed(ordered[start : start + batch])
    return len(texts) / (time.perf_counter() - began)


_LOADED: dict[str, Model] = {}


if __name__ == "__main__":
    serve(measure, sys.stdin)
