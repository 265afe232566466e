"""Jobs that prefer a backend or a device: PyTorch where it is installed, a refusal that says how where it is not."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from models import encoders, seeing

from protocol.errors import Code, JobError
from tests.support.embedding_runs import embed_job, images, loaded, prepared, rows, run
from worker.engines.embedding import torch_models
from worker.engines.embedding.engine import EmbeddingEngine

pytestmark = pytest.mark.mlx

with_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
without_gpu = pytest.mark.skipif(mx.is_available(mx.Device(mx.gpu)), reason="there is a GPU")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    return loaded(encoders.write("bert", tmp_path_factory.mktemp("torch") / "bert"))


def test_missing_torch_is_refused_with_the_way_to_install_it(
    engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameter is the client's, the advice the operator's."""
    monkeypatch.setattr(torch_models.importlib.util, "find_spec", lambda _name: None)
    error = refused(engine, backend="torch")
    assert (error.code, error.param) == (Code.INVALID_REQUEST, "backend_preference")
    assert "'scripts/install torch' in the pool's folder adds it" in error.message


@without_gpu
def test_missing_gpu_is_refused(engine: EmbeddingEngine) -> None:
    """A CPU's vectors would not be what was asked for."""
    error = refused(engine, device="gpu")
    assert (error.code, error.param) == (Code.INVALID_REQUEST, "device_preference")


@pytest.mark.parametrize("fields", [{"backend": "onnx"}, {"device": "tpu"}])
def test_unknown_preference_is_refused(engine: EmbeddingEngine, fields: dict[str, str]) -> None:
    """By name."""
    assert refused(engine, **fields).param == f"{next(iter(fields))}_preference"


def test_answer_says_where_it_was_computed(engine: EmbeddingEngine) -> None:
    """What the worker loaded, where nothing else is preferred; MLX on the CPU is always there."""
    own = engine.describe().device
    for fields in ({}, {"backend": "auto", "device": "auto"}, {"backend": "mlx"}):
        end = run(engine, embed_job(1, tokens=[[4, 5]], **fields))[1]
        assert (end.backend, end.device) == ("mlx", own)
    end = run(engine, embed_job(1, tokens=[[4, 5]], device="cpu"))[1]
    assert (end.backend, end.device) == ("mlx", "cpu")


@with_torch
@pytest.mark.parametrize("name", [*encoders.CONFIGS, *seeing.CONFIGS])
def test_torch_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    """Texts of all lengths, alone and together; images and pairs, too."""
    if name in encoders.CONFIGS:
        engine = loaded(encoders.write(name, tmp_path / name))
        jobs = [embed_job(1, tokens=encoders.texts())]
    else:
        engine = loaded(seeing.write(name, tmp_path / name))
        jobs = [embed_job(1, *seeing.TEXTS), embed_job(1, images=images(4)),
                embed_job(1, *seeing.TEXTS, images=images(4))]  # fmt: skip
    for job in jobs:
        mine = run(engine, job, files=seeing.pictures())[1]
        other = run(engine, with_backend(job), files=seeing.pictures())[1]
        assert (other.backend, other.device) == ("torch", "cpu")
        assert (rows(mine) * rows(other)).sum(axis=1).min() >= 0.9999
        assert not np.array_equal(rows(mine), rows(other))


@with_torch
def test_jobs_of_both_backends_run_side_by_side(engine: EmbeddingEngine) -> None:
    """In one step, each on its own."""
    texts = encoders.texts()
    ends = run(engine, embed_job(1, tokens=texts), with_backend(embed_job(2, tokens=texts)), embed_job(3, tokens=texts))
    assert [ends[job].backend for job in (1, 2, 3)] == ["mlx", "torch", "mlx"]
    assert (rows(ends[1]) * rows(ends[2])).sum(axis=1).min() >= 0.9999


@with_torch
def test_weights_that_only_mlx_reads_are_refused(tmp_path: Path, engine_kept: Callable[[], Path]) -> None:
    """Not with a traceback."""
    engine = loaded(engine_kept())
    assert refused(engine, backend="torch").param == "backend_preference"


@pytest.fixture
def engine_kept(tmp_path: Path) -> Callable[[], Path]:
    """A folder with weights in MLX's own 4 bits."""

    def make() -> Path:
        small = loaded(encoders.write("qwen3", tmp_path / "plain"), quantize="q4")
        folder = encoders.write("qwen3", tmp_path / "small")
        encoders.change_config(folder, quantization={"group_size": 64, "bits": 4})
        from mlx.utils import tree_flatten

        parameters = tree_flatten(small.model._model.parameters())
        mx.save_safetensors(str(folder / "model.safetensors"), {f"model.{name}": array for name, array in parameters})
        return folder

    return make


def with_backend(job: object) -> object:
    import msgspec

    return msgspec.structs.replace(job, backend="torch", device="cpu")  # type: ignore[type-var]


def refused(engine: EmbeddingEngine, **fields: str) -> JobError:
    with pytest.raises(JobError) as caught:
        prepared(engine, embed_job(1, tokens=[[4]], **fields))
    return caught.value
