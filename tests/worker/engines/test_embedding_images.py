"""Embedding models that take images: the vectors of PyTorch, pairs, limits, and files that are none."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import encoders, seeing
from PIL import Image as Pillow

from protocol.errors import Code, JobError
from protocol.messages import Failed, Image, Vectors
from tests.support.embedding_runs import Rows, embed_job, images, loaded, prepared, rows, run, step, table, unpacked
from worker.engines.base import EngineLoadError
from worker.engines.embedding.engine import EmbeddingEngine

pytestmark = pytest.mark.mlx

NAMES = tuple(seeing.CONFIGS)
FILES = seeing.pictures()


@pytest.fixture(scope="module")
def engine_that_sees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EmbeddingEngine]:
    """An engine with the tiny model of an architecture."""
    engines: dict[str, EmbeddingEngine] = {}

    def make(name: str) -> EmbeddingEngine:
        if name not in engines:
            engines[name] = loaded(seeing.write(name, tmp_path_factory.mktemp("tiny") / name))
        return engines[name]

    return make


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest, engine_that_sees: Callable[[str], EmbeddingEngine]) -> EmbeddingEngine:
    return engine_that_sees(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_pytorchs_alone_and_together(engine_that_sees: Callable[[str], EmbeddingEngine], name: str) -> None:
    """Texts, images and pairs, with images of all shapes: each alone, and all in one batch."""
    engine = engine_that_sees(name)
    wanted = unpacked(table("tiny")[name], 12)
    kinds = [embed_job(1, *seeing.TEXTS), embed_job(2, images=images(4)), embed_job(3, *seeing.TEXTS, images=images(4))]
    ends = run(engine, *kinds, files=FILES)
    together = np.concatenate([rows(ends[job]) for job in (1, 2, 3)])
    assert closest(together, wanted) >= 0.9999
    alone = [run(engine, embed_job(1, text))[1] for text in seeing.TEXTS]
    alone += [run(engine, embed_job(1, images=images(1)), files=[file])[1] for file in FILES]
    alone += [
        run(engine, embed_job(1, text, images=images(1)), files=[file])[1]
        for text, file in zip(seeing.TEXTS, FILES, strict=True)
    ]
    assert closest(np.concatenate([rows(end) for end in alone]), wanted) >= 0.9999
    assert (wanted @ wanted.T - 2 * np.eye(12)).max() < 0.999


def test_description_says_that_images_are_taken(engine: EmbeddingEngine) -> None:
    """The gateway sends them only there."""
    ready = engine.describe()
    assert set(ready.capabilities) == {"embeddings", "embed_image", "tokenize"}
    assert ready.dimensions == encoders.WIDTH
    engine.warm()


@pytest.mark.parametrize("quantize", ["q8"])
@pytest.mark.parametrize("name", NAMES)
def test_quantised_weights_give_nearly_the_same(
    tmp_path: Path, engine_that_sees: Callable[[str], EmbeddingEngine], name: str, quantize: str
) -> None:
    """And take less memory."""
    plain, small = engine_that_sees(name), loaded(seeing.write(name, tmp_path / name), quantize=quantize)
    job = embed_job(1, *seeing.TEXTS, images=images(4))
    assert closest(rows(run(small, job, files=FILES)[1]), rows(run(plain, job, files=FILES)[1])) > 0.98
    assert small.describe().weights_bytes < plain.describe().weights_bytes


def test_corrupt_image_fails_its_job_only(engine: EmbeddingEngine) -> None:
    """By name; the jobs beside it get their vectors."""
    engine.admit(prepared(engine, embed_job(1, images=images(4)), FILES))
    for bad in (b"", b"no image", FILES[0][:200]):
        error = refused(engine, embed_job(2, images=images(2)), [FILES[1], bad])
        assert (error.code, error.param) == (Code.INVALID_REQUEST, "image[1]")
    assert refused(engine, embed_job(2, images=images(1)), [b"x"]).param == "image"
    assert refused(engine, embed_job(2, images=[Image(1, b"")]), [FILES[0]]).param == "image"
    [end] = step(engine)
    assert rows(end).shape == (4, encoders.WIDTH)


def test_number_of_texts_has_to_be_that_of_images(engine: EmbeddingEngine) -> None:
    """Or none."""
    for fields in ({"tokens": [[4]]}, {"texts": ["w4"]}):
        texts = fields.pop("texts", [])
        assert refused(engine, embed_job(1, *texts, images=images(2), **fields), FILES).param == "input"


def test_image_is_refused_where_only_text_works(tmp_path: Path) -> None:
    """The parameter at fault is the input."""
    engine = loaded(encoders.write("bert", tmp_path / "bert"))
    assert refused(engine, embed_job(1, images=images(1)), FILES).param == "input"
    assert engine.describe().capabilities == ["embeddings", "tokenize"]


def test_images_are_batched_by_what_they_cost(engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass takes more than the budget, and a text beside many images waits for two steps at most."""
    monkeypatch.setattr(EmbeddingEngine, "budget", 100)
    passes: list[int] = []
    real = engine.model.encode

    def encode(texts: Any, *, normalize: bool) -> Rows:
        passes.append(sum(text.size for text in texts))
        return real(texts, normalize=normalize)

    monkeypatch.setattr(engine.model, "encode", encode)
    monkeypatch.setattr(engine.inputs, "limit", 64)
    engine.admit(prepared(engine, embed_job(1, images=images(4) * 6), FILES))
    step(engine)
    engine.admit(prepared(engine, embed_job(2, "w4")))
    first = [end.job for _ in range(2) for end in step(engine)]
    assert 2 in first
    while engine.busy:
        first += [end.job for end in step(engine)]
    assert sorted(first) == [1, 2]
    largest = max(text.size for text in prepared(engine, embed_job(3, images=images(4)), FILES).texts)
    assert len(passes) >= 5
    assert max(passes) <= max(100, largest)


def test_number_that_is_none_never_leaves(engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from an image either."""
    real = engine.model.encode

    def encode(texts: Any, *, normalize: bool) -> Rows:
        vectors = real(texts, normalize=normalize).copy()
        vectors[[text.job == 1 for text in texts], 0] = np.nan
        return vectors

    monkeypatch.setattr(engine.model, "encode", encode)
    ends = run(engine, embed_job(1, images=images(1)), embed_job(2, images=images(1)), files=FILES)
    assert (ends[1].code, type(ends[2])) == (Code.NOT_FINITE, Vectors)


def test_failed_batch_fails_its_jobs_only(engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that an image's pass does not get; texts may share that pass, where padding is cheap, but not the next."""
    real = engine.model.encode

    def encode(texts: Any, *, normalize: bool) -> Rows:
        if any(text.image for text in texts):
            raise ValueError("shapes do not fit")
        return real(texts, normalize=normalize)

    monkeypatch.setattr(engine.model, "encode", encode)
    failed = run(engine, embed_job(1, images=images(1)), files=FILES)[1]
    assert (type(failed), type(run(engine, embed_job(2, "w4"))[2])) == (Failed, Vectors)


# -- Qwen2-VL ----------------------------------------------------------------


def test_prompt_is_the_instruction_of_the_conversation(tmp_path: Path) -> None:
    """It stands where "You are a helpful assistant." stands otherwise, not before the text."""
    folder = seeing.write("qwen2_vl", tmp_path / "model")
    encoders.write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "w8 w9"}})
    engine = loaded(folder)
    plain = run(engine, embed_job(1, "w4"))[1]
    asked = run(engine, embed_job(1, "w4", prompt_name="query"))[1]
    assert plain.token_counts[0] - asked.token_counts[0] == len(["You", "are", "a", "helpful", "assistant."]) - 2
    assert float(rows(plain)[0] @ rows(asked)[0]) < 0.999


def test_text_can_not_spell_an_image(engine_that_sees: Callable[[str], EmbeddingEngine]) -> None:
    """Control tokens in a request would shift everything behind them."""
    engine = engine_that_sees("qwen2_vl")
    for text in ("w4 <|image_pad|>", "<|vision_start|> w5"):
        assert refused(engine, embed_job(1, "w4", text), []).param == "input[1]"
        assert refused(engine, embed_job(1, text, images=images(1)), FILES).param == "input"


def test_cut_text_keeps_its_image_and_its_ending(engine_that_sees: Callable[[str], EmbeddingEngine]) -> None:
    """What is cut is the text; an image that does not fit is refused."""
    engine = engine_that_sees("qwen2_vl")
    words = " ".join(["w9"] * 50)
    end = run(engine, embed_job(1, words, images=images(1), max_tokens_per_text=60), files=FILES)[1]
    assert end.token_counts == [60]
    shorter = " ".join(["w9"] * (50 - (prepared_length(engine, words) - 60)))
    spelled = run(engine, embed_job(1, shorter, images=images(1)), files=FILES)[1]
    assert np.array_equal(rows(end), rows(spelled))
    error = refused(engine, embed_job(1, words, images=images(1), max_tokens_per_text=12), FILES)
    assert (error.code, error.param) == (Code.CONTEXT_LENGTH, "image")


def prepared_length(engine: EmbeddingEngine, text: str) -> int:
    [found] = prepared(engine, embed_job(1, text, images=images(1)), FILES).texts
    return len(found.tokens)


def test_line_is_no_image_for_qwen(engine_that_sees: Callable[[str], EmbeddingEngine]) -> None:
    """Its models take nothing 200 times as wide as high; SigLIP makes a square of everything."""
    file = io.BytesIO()
    Pillow.new("RGB", (402, 2)).save(file, "PNG")
    assert refused(engine_that_sees("qwen2_vl"), embed_job(1, images=images(1)), [file.getvalue()]).param == "image"
    run(engine_that_sees("siglip"), embed_job(1, images=images(1)), files=[file.getvalue()])


def test_tokenizer_without_tokens_for_images_is_refused(tmp_path: Path) -> None:
    """Vectors of texts alone would look right."""
    folder = seeing.write("qwen2_vl", tmp_path / "model")
    encoders.write_tokenizer(folder)
    with pytest.raises(EngineLoadError, match="tokens for images"):
        loaded(folder)


def test_published_size_of_images_is_that_of_embedding_models(tmp_path: Path) -> None:
    """Every relative of Qwen2-VL carries its bounds; those that embed were trained with narrower ones."""
    folder = seeing.write("qwen2_vl", tmp_path / "model")
    stock = {**seeing.PROCESSORS["qwen2_vl"], "min_pixels": 3136, "max_pixels": 12845056}
    encoders.write_json(folder / "preprocessor_config.json", stock)
    [text] = prepared(loaded(folder), embed_job(1, images=images(1)), FILES).texts
    assert text.image is not None
    height, width, _ = text.image.pixels.shape
    assert 256 * 28 * 28 <= height * width <= 1280 * 28 * 28


# -- SigLIP ------------------------------------------------------------------


def test_text_of_siglip_is_prepared_as_in_training(tmp_path: Path) -> None:
    """Its first tokenizer took punctuation and capitals away; transformers does, and the vector shows it."""
    folder = seeing.write("siglip", tmp_path / "model")
    plain = rows(run(loaded(folder), embed_job(1, "w4 w5"))[1])
    encoders.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "pad_token": "w1"})
    engine = loaded(folder)
    assert np.array_equal(rows(run(engine, embed_job(1, "  W4,  w5!"))[1]), plain)
    with pytest.raises(JobError) as caught:
        prepared(engine, embed_job(1, " ".join(["w4"] * (seeing.TEXT_LENGTH + 1))))
    assert caught.value.code == Code.CONTEXT_LENGTH


def refused(engine: EmbeddingEngine, job: Any, files: Sequence[bytes]) -> JobError:
    with pytest.raises(JobError) as caught:
        prepared(engine, job, files)
    return caught.value


def closest(found: Rows, wanted: Rows) -> float:
    return float((found * wanted).sum(axis=1).min())
