"""Text to tokens: the same ids as ever, without holding the interpreter; of long texts only what is kept."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer

from protocol.errors import Code, JobError
from protocol.messages import DetokenizeJob, EmbedJob, TextPrompt, TokenizeJob
from tests.support.embedding_runs import embed_job
from tests.support.hostile_texts import KINDS, hostile_text
from tests.support.interpreter_watch import InterpreterWatch
from tests.support.tokenizer_kinds import MINILM, ROOT, TOKENIZERS
from worker.engines.embedding.inputs import EmbeddingInputs, InputForm
from worker.engines.embedding.model_files import EmbeddingFiles
from worker.engines.tokenizing import MOST_COUNTED_TOKENS, TokenCoder

LIMIT = 200
BEHIND = "<|end|>"
TEXTS = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=12),
        st.sampled_from([*KINDS.values(), "ﬁ", "ⅷ", "한", "İ", "Σ", "<mask>", "\u200b", "\t"]),
    ),
    min_size=1,
    max_size=8,
)


@cache
def tokenizer_of(name: str) -> Tokenizer:
    found = TOKENIZERS[name]()
    found.add_special_tokens([BEHIND])
    found.no_truncation()
    found.no_padding()
    return found


@cache
def sentences_of(name: str, *, lower_case: bool = False, behind: str = "") -> EmbeddingInputs:
    files = EmbeddingFiles(config={"model_type": "any", "max_position_embeddings": LIMIT}, lower_case=lower_case)
    return EmbeddingInputs(tokenizer_of(name), files, asked=None, form=InputForm(behind=behind))


def read(sentences: EmbeddingInputs, job: EmbedJob) -> list[list[int]]:
    """The tokens of each text of a job."""
    pieces = sentences.prepare_texts(job, (), vocab_size=1 << 20)
    return [text.tokens for piece in pieces if not isinstance(piece, Future) for text in piece]


def cut(name: str, text: str, limit: int, behind: str = "") -> list[int]:
    """All tokens of all of a text, then as many as are kept: what cutting is defined as."""
    tokenizer = tokenizer_of(name)
    ids: list[int] = tokenizer.encode(text + behind).ids
    special = tokenizer.encode("a").special_tokens_mask
    ending = special[::-1].index(0) + len(tokenizer.encode(behind, add_special_tokens=False).ids)
    if len(ids) <= limit:
        return ids
    ending = 0 if limit <= ending else ending
    return [*ids[: limit - ending], *ids[len(ids) - ending :]]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(parts=TEXTS, times=st.integers(300, 2500), limit=st.integers(1, LIMIT))
def test_cut_text_has_the_tokens_of_the_whole_one(name: str, parts: list[str], times: int, limit: int) -> None:
    """Words, marks, white space and characters that normalisation joins, repeated far beyond what is read at first."""
    text = "".join(parts) * times
    job = embed_job(1, text[:60_000], max_tokens_per_text=limit)
    assert read(sentences_of(name), job) == [cut(name, job.texts[0], limit)]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_long_text_of_one_kind_is_cut_where_the_whole_is(name: str, kind: str) -> None:
    """Also with a control token behind it, and with another kind of text before or behind."""
    text = hostile_text(kind, 20_000)
    sentences = sentences_of(name, behind=BEHIND)
    for given_text in (f"{text} and more", f"Some words. {text}<mask>"):
        for limit in (3, LIMIT):
            job = embed_job(1, given_text, max_tokens_per_text=limit)
            assert read(sentences, job) == [cut(name, given_text, limit, BEHIND)]


def test_long_text_that_fits_is_read_whole_and_another_refused() -> None:
    """White space that vanishes is no token; what has too many is told how many it has at least."""
    text = "Some words. " + " " * 40_000 + "others"
    [ids] = read(sentences_of("word piece"), embed_job(1, text))
    assert ids == tokenizer_of("word piece").encode(text).ids
    for long in ("a b " * 5000, "a b " * 100_000):
        with pytest.raises(JobError, match="tokens") as refused:
            read(sentences_of("word piece"), embed_job(1, long))
        assert (refused.value.code, refused.value.param) == (Code.CONTEXT_LENGTH, "input")


def test_text_is_lower_case_before_it_is_cut() -> None:
    """A model that wants that gets it of long texts, too."""
    text = "THE İSTANBUL ΣΑΣ Quick " * 2000
    lower = sentences_of("word piece", lower_case=True)
    assert read(lower, embed_job(1, text, max_tokens_per_text=50)) == [cut("word piece", text.lower(), 50)]


def test_text_of_one_endless_word_is_refused_by_its_length() -> None:
    """It may be one unknown token, which only all of it would tell; so much is not read."""
    text = "a" * 3_000_000
    with pytest.raises(JobError, match="3000000 characters") as refused:
        read(sentences_of("word piece"), embed_job(1, "x", text, max_tokens_per_text=50))
    assert (refused.value.code, refused.value.param) == (Code.CONTEXT_LENGTH, "input[1]")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_others_run_while_a_long_text_is_read(name: str, kind: str) -> None:
    """Megabytes to embed, cut or not, and a million characters to tokenise: no thread stands still."""
    sentences = sentences_of(name)
    text = hostile_text(kind, 2_000_000)
    with InterpreterWatch() as watch:
        for job in (
            embed_job(1, text),
            embed_job(1, text, max_tokens_per_text=LIMIT),
            TokenizeJob(1, 1, TextPrompt(text)),
        ):
            done(sentences, job)
    assert watch.longest_gap_s < 1


def test_others_run_while_a_text_is_tokenised_whole() -> None:
    """As long as any that is: a million characters, and 262,144 tokens back to text."""
    sentences = sentences_of("byte-level")
    with InterpreterWatch() as watch:
        done(sentences, TokenizeJob(1, 1, TextPrompt(hostile_text("words", 1_000_000))))
        done(sentences, DetokenizeJob(1, 1, [5] * MOST_COUNTED_TOKENS))
    assert watch.longest_gap_s < 1


def done(sentences: EmbeddingInputs, job: Any) -> None:
    """To its end, whatever that is."""
    pieces: Iterator[Any]
    if isinstance(job, EmbedJob):
        pieces = sentences.prepare_texts(job, (), vocab_size=1 << 20)
    else:
        pieces = sentences.answer_job(job, vocab_size=1 << 20)
    try:
        for _ in pieces:
            pass
    except JobError as error:
        assert error.code == Code.CONTEXT_LENGTH


@pytest.mark.parametrize("count", [MOST_COUNTED_TOKENS + 1, 2_000_000])
def test_endless_lists_of_tokens_are_refused(count: int) -> None:
    """By their length, which is named."""
    with pytest.raises(JobError, match=str(count)) as refused:
        [*sentences_of("byte-level").answer_job(DetokenizeJob(1, 1, [5] * count), vocab_size=1500)]
    assert refused.value.param == "tokens"


@pytest.fixture(scope="module")
def chat_tokenizers(model_folder: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "demo": load_tokenizer(ROOT / "demo" / "chat"),
        "tiny": load_tokenizer(model_folder("qwen3")),
        "word piece": load_tokenizer(MINILM),
    }


@settings(max_examples=40, deadline=None)
@given(parts=TEXTS, special=st.booleans())
def test_tokens_are_those_of_the_tokenizer(chat_tokenizers: dict[str, Any], parts: list[str], special: bool) -> None:
    """What `transformers` says, also where the tokenizer's file cuts and pads; and back to text."""
    text = "".join(parts)
    for name, tokenizer in chat_tokenizers.items():
        coder = TokenCoder(tokenizer)
        ids = coder.encode_text(text, special=special)
        assert ids == [*tokenizer.encode(text, add_special_tokens=special)], name
        assert coder.decode_tokens(ids) == tokenizer.decode(ids, skip_special_tokens=False), name


@settings(max_examples=15, deadline=None)
@given(parts=TEXTS, times=st.integers(2000, 9000), most=st.integers(100, 20_000))
def test_text_is_refused_only_if_it_has_more_tokens(parts: list[str], times: int, most: int) -> None:
    """The least that a text is said to have is never more than it has, cut up as it may be for that."""
    text = ("".join(parts) * times)[:50_000]
    for name in TOKENIZERS:
        coder = TokenCoder(tokenizer_of(name))
        least = coder.least_tokens(text, most)
        assert least == 0 or most < least <= len(coder.encode_text(text, special=False)), name
