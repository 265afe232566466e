"""Every architecture against the same weights in transformers on PyTorch, alone and padded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import encoders

from tests.support.embedding_runs import Rows, embed_job, loaded, rows, run, table, unpacked
from worker.engines.base import EngineLoadError
from worker.engines.embedding.engine import EmbeddingEngine
from worker.engines.embedding.queue import QueuedText

pytestmark = pytest.mark.mlx

NAMES = tuple(encoders.CONFIGS)


@pytest.fixture(scope="module")
def engine_of_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EmbeddingEngine]:
    """An engine with the tiny model of an architecture."""
    engines: dict[str, EmbeddingEngine] = {}

    def make(name: str) -> EmbeddingEngine:
        if name not in engines:
            engines[name] = loaded(encoders.write(name, tmp_path_factory.mktemp("tiny") / name))
        return engines[name]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_pytorchs_alone_and_together(engine_of_kind: Callable[[str], EmbeddingEngine], name: str) -> None:
    """Short texts, texts longer than the windows of layers that have one, each alone and all in any order."""
    texts = encoders.texts()
    wanted = unpacked(table("tiny")[name], len(texts))
    engine = engine_of_kind(name)
    together = rows(run(engine, embed_job(1, tokens=texts[::-1]))[1])[::-1]
    alone = np.concatenate([rows(run(engine, embed_job(1, tokens=[text]))[1]) for text in texts])
    assert closest(together, wanted) >= 0.9999
    assert closest(alone, wanted) >= 0.9999
    # Random models tell texts apart; otherwise the comparison above would say nothing.
    assert (wanted @ wanted.T - 2 * np.eye(len(texts))).max() < 0.99


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_proved_harmless(engine_of_kind: Callable[[str], EmbeddingEngine], name: str) -> None:
    """So texts of different lengths may share a pass; a very short one beside the longest keeps its vector."""
    encoder = engine_of_kind(name).model
    assert encoder.padding_is_harmless()
    texts = [QueuedText(0, at, tokens) for at, tokens in enumerate(encoders.texts())]
    padded = encoder.encode(texts, normalize=True)
    assert np.isfinite(padded).all()
    alone = np.concatenate([encoder.encode([text], normalize=True) for text in texts])
    assert closest(padded, alone) >= 0.99999


def test_model_that_padding_disturbs_is_computed_in_equal_lengths(
    engine_of_kind: Callable[[str], EmbeddingEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof finds a model file that lets padding through."""
    encoder = engine_of_kind("bert").model
    real = encoder._architecture.hidden
    careless = lambda model, tokens, mask: real(model, tokens, np.ones_like(mask))  # noqa: E731
    monkeypatch.setattr(
        encoder, "_architecture", encoder._architecture.__class__(build=lambda _: None, hidden=careless)
    )
    assert not encoder.padding_is_harmless()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("qwen2", {"is_causal": False}, "is_causal"),
        ("gemma3_text", {"use_bidirectional_attention": False}, "use_bidirectional_attention"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ],
)
def test_configuration_that_would_be_misread_is_refused(
    tmp_path: Path, name: str, change: dict[str, object], says: str
) -> None:
    """Wrong vectors look like right ones."""
    folder = encoders.write(name, tmp_path / "model")
    encoders.change_config(folder, **change)
    with pytest.raises(EngineLoadError, match=says):
        loaded(folder)


@pytest.mark.parametrize("name", ["modernbert", "qwen3", "gemma3_text"])
def test_configuration_of_transformers_5_says_the_same(
    tmp_path: Path, engine_of_kind: Callable[[str], EmbeddingEngine], name: str
) -> None:
    """It nests the rotary parameters, which MLX's model files look for at the top."""
    folder = encoders.write(name, tmp_path / "model")
    full, near = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    if name == "modernbert":
        full["rope_theta"] = 160000.0
    nested = full if name == "qwen3" else {"full_attention": full, "sliding_attention": near}
    old = ("rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
    encoders.change_config(folder, rope_parameters=nested, **dict.fromkeys(old))
    job = embed_job(1, tokens=encoders.texts())
    assert np.array_equal(rows(run(loaded(folder), job)[1]), rows(run(engine_of_kind(name), job)[1]))


def closest(found: Rows, wanted: Rows) -> float:
    """The least cosine of a pair of normalised vectors."""
    return float((found * wanted).sum(axis=1).min())
