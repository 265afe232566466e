"""`--quantize`: fewer bits for weights that come with more, the same answers nearly, and the truth about it."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from models import encoders

from protocol.settings import ConfigError
from tests.support.embedding_runs import embed_job, loaded, rows, run
from worker.config import parse_arguments
from worker.engines import weights
from worker.engines.base import EngineLoadError
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.write("qwen3", tmp_path_factory.mktemp("quantised") / "qwen3")


@pytest.mark.parametrize(("quantize", "least", "share"), [("q8", 0.99, 0.45), ("q4", 0.8, 0.35)])
def test_vectors_stay_close_and_memory_shrinks(folder: Path, quantize: str, least: float, share: float) -> None:
    """Layers whose rows can't be cut into groups keep their precision: here those 96 wide."""
    plain = loaded(folder)
    engine = loaded(folder, quantize=quantize)
    job = embed_job(1, tokens=encoders.texts())
    cosines = (rows(run(plain, job)[1]) * rows(run(engine, job)[1])).sum(axis=1)
    assert cosines.mean() > least
    ready, before = engine.describe(), plain.describe()
    assert (before.quantization, ready.quantization) == ("none", quantize)
    assert ready.weights_bytes < share * before.weights_bytes + 3 * 4 * 64 * 96
    assert ready.revision != before.revision
    assert engine.model.padding_is_harmless()


def test_chat_model_is_quantised_too(model_folder: Callable[[str], Path], engine_of: Callable[..., ChatEngine]) -> None:
    """And says so."""
    plain, engine = engine_of("qwen3"), engine_of("qwen3", quantize="q8")
    assert (plain.describe().quantization, engine.describe().quantization) == ("none", "q8")
    assert engine.describe().weights_bytes < plain.describe().weights_bytes
    engine.warm()
    assert not engine.busy


def test_quantised_weights_stay_as_they_came(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bits that are gone don't come back; what was asked for in vain is in the log."""
    config = {**encoders.CONFIGS["qwen3"], "quantization": {"group_size": 64, "bits": 4}}
    engine = loaded(folder, quantize="q4")
    copy = encoders.write("qwen3", tmp_path / "copy")
    encoders.change_config(copy, quantization=config["quantization"])
    mx.save_safetensors(str(copy / "model.safetensors"), dict(weights_of(engine)))
    stored = loaded(copy, quantize="q8")
    assert stored.describe().quantization == "q4"
    assert "are q4 already" in caplog.text
    job = embed_job(1, tokens=encoders.texts())
    assert (rows(run(stored, job)[1]) == rows(run(engine, job)[1])).all()


def test_auto_goes_by_the_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """8 bits where there is memory, 4 where there is little, none on the CPU, where it would cost speed."""
    if mx.default_device() == mx.Device(mx.cpu):
        assert loaded(folder, quantize="auto").describe().quantization == "none"
    for gigabytes, wanted in ((16, "q4"), (24, "q4"), (32, "q8"), (192, "q8")):
        pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2**30 // 4096}
        monkeypatch.setattr(weights.os, "sysconf", pages.__getitem__)
        assert weights._automatic(on_cpu=False) == wanted


def test_model_with_nothing_to_quantise_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Asked for by name, silence would be a lie."""
    monkeypatch.setattr(weights, "GROUP", 1000)
    with pytest.raises(EngineLoadError, match="--quantize q8: no layer"):
        loaded(folder, quantize="q8")


def test_other_bits_are_refused() -> None:
    """The setting names what there is."""
    assert parse_arguments(["--model-path", "m", "--quantize", "Q4"], {}).quantize == "q4"
    with pytest.raises(ConfigError, match="auto, q4, q8 or none"):
        parse_arguments(["--model-path", "m", "--quantize", "q5"], {})


def weights_of(engine: object) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return [(f"model.{name}", array) for name, array in tree_flatten(engine.model._model.parameters())]  # type: ignore[attr-defined]
