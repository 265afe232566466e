"""Text is what the tokens say: streamed token by token, it is what the tokenizer's own decoder makes of them all."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from transformers import PreTrainedTokenizerFast

from tests.support.decoder_kinds import (
    ALL,
    AT_A_DISTANCE,
    BYTES,
    DECODERS,
    DETOKENIZERS,
    LETTERS,
    UNREADABLE,
    make_tokenizer,
)
from tests.support.real_tokenizers import PACKAGES, fetch_tokenizer
from tests.support.tokenizer_kinds import TOKENIZERS
from worker.engines.tokenizing import token_names
from worker.engines.vocabulary import Vocabulary
from worker.text.decoder_rules import strip_end, strip_start
from worker.text.detokenizer import CleanFilter, ReplaceFilter, StripFilter, WindowDetokenizer

pytestmark = pytest.mark.mlx

IDS = st.lists(st.integers(0, 1 << 30), max_size=24)
CUTS = st.lists(st.booleans(), min_size=1, max_size=8)


@cache
def kind_of(name: str, *, clean: bool = False) -> tuple[Any, Vocabulary]:
    """A tokenizer whose decoder is of that kind, and what is made of it."""
    tokenizer = make_tokenizer((DECODERS | AT_A_DISTANCE)[name](), clean=clean)
    return tokenizer, Vocabulary(tokenizer)


@cache
def small(name: str) -> tuple[Any, Vocabulary]:
    backend = TOKENIZERS[name]()
    backend.no_padding()
    backend.no_truncation()
    tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend))
    return tokenizer, Vocabulary(tokenizer)


@cache
def real(name: str) -> tuple[Any, Vocabulary]:
    tokenizer = load_tokenizer(fetch_tokenizer(name))
    return tokenizer, Vocabulary(tokenizer)


def streamed(vocabulary: Vocabulary, tokens: Sequence[int], cuts: Sequence[bool], *, answer: bool = True) -> list[str]:
    """The pieces that come of tokens, taken where `cuts` says, again and again."""
    made = vocabulary.make_detokenizer(answer=answer)
    pieces = []
    for at, token in enumerate(tokens):
        made.add_token(token)
        if cuts[at % len(cuts)]:
            pieces.append(made.last_segment)
    made.finalize()
    return [*pieces, made.last_segment]


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode([*tokens], skip_special_tokens=False)
    return text


def size_of(tokenizer: Any) -> int:
    """Ids of the tokenizer, and some behind them, as an output head may have."""
    return len(tokenizer) + 4


@pytest.mark.parametrize("clean", [False, True], ids=["spaces kept", "spaces cleaned"])
@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=80, deadline=None)
@given(ids=IDS, cuts=CUTS)
def test_streamed_text_is_the_decoders_when_ids_are_any(
    name: str, clean: bool, ids: list[int], cuts: list[bool]
) -> None:
    """Any sequence of ids, holes and ids beyond the vocabulary among them, taken in any pieces."""
    tokenizer, vocabulary = kind_of(name, clean=clean)
    tokens = [number % size_of(tokenizer) for number in ids]
    assert "".join(streamed(vocabulary, tokens, cuts)) == decoded(tokenizer, tokens)


@pytest.mark.parametrize("name", PACKAGES)
@settings(max_examples=150, deadline=None)
@given(ids=IDS, cuts=CUTS)
def test_text_is_the_decoders_when_the_tokenizer_is_real(name: str, ids: list[int], cuts: list[bool]) -> None:
    """Tokenizers that people run, any ids of theirs: half of these are no text at all."""
    tokenizer, vocabulary = real(name)
    tokens = [number % size_of(tokenizer) for number in ids]
    assert "".join(streamed(vocabulary, tokens, cuts)) == decoded(tokenizer, tokens)


@pytest.mark.parametrize("name", PACKAGES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), cuts=CUTS)
def test_no_piece_holds_half_a_character_when_a_text_is_streamed(name: str, text: str, cuts: list[bool]) -> None:
    """What is handed out never has to be taken back, whatever the text."""
    tokenizer, vocabulary = real(name)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(vocabulary, tokens, cuts)
    assert "".join(pieces) == decoded(tokenizer, tokens)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(ids=IDS, cuts=CUTS)
def test_text_is_the_decoders_when_the_tokenizer_is_small(name: str, ids: list[int], cuts: list[bool]) -> None:
    """Each with the decoder that it came with, which may be none."""
    tokenizer, vocabulary = small(name)
    tokens = [number % size_of(tokenizer) for number in ids]
    assert "".join(streamed(vocabulary, tokens, cuts)) == decoded(tokenizer, tokens)


@pytest.mark.parametrize("detokenizer", DETOKENIZERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=10, deadline=None)
@given(ids=IDS)
def test_what_mlx_lm_has_picked_is_of_no_account(name: str, detokenizer: Any, ids: list[int]) -> None:
    """It goes by the looks of a file: with any decoder it may have picked any of its three."""
    names = [name for name in ALL if name not in UNREADABLE]
    tokenizer = make_tokenizer(DECODERS[name](), detokenizer=detokenizer, names=names)
    tokens = [number % size_of(tokenizer) for number in ids]
    assert "".join(streamed(Vocabulary(tokenizer), tokens, [True])) == decoded(tokenizer, tokens)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(ids=IDS, cuts=CUTS)
def test_continued_text_is_what_comes_behind_another(name: str, ids: list[int], cuts: list[bool]) -> None:
    """A completion goes on with its prompt, and its first space counts."""
    tokenizer, vocabulary = kind_of(name)
    before = tokenizer.get_vocab()["."]
    tokens = [number % size_of(tokenizer) for number in ids]
    text = "".join(streamed(vocabulary, tokens, cuts, answer=False))
    assert decoded(tokenizer, [before]) + text == decoded(tokenizer, [before, *tokens])


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_is_followed_token_by_token_when_it_is_known(name: str) -> None:
    """None of these is decoded again and again, which would cost more with each token."""
    _, vocabulary = kind_of(name)
    made: Any = vocabulary.make_detokenizer(answer=True)
    kinds = {type(made), type(getattr(made, "_inner", None))}
    assert WindowDetokenizer not in kinds


@pytest.mark.parametrize("name", AT_A_DISTANCE)
def test_text_comes_whole_when_a_decoder_is_followed_at_a_distance(name: str) -> None:
    """Of ordinary words, hundreds of them, and of a character that comes in pieces."""
    tokenizer, vocabulary = kind_of(name)
    known = tokenizer.get_vocab()
    tokens = [known[word] for word in ["Hello", "word", "x", *BYTES[0x41:0x5A], ".", "Hello"] * 20]
    assert "".join(streamed(vocabulary, tokens, [True])) == decoded(tokenizer, tokens)


def test_text_is_the_tokenizers_when_it_decodes_in_its_own_way() -> None:
    """A class that changes what the library has decoded is asked for all of it."""

    class Shouting(PreTrainedTokenizerFast):  # type: ignore[misc]
        def decode(self, *args: Any, **kwargs: Any) -> str:
            return str(super().decode(*args, **kwargs)).upper()

    plain = make_tokenizer(DECODERS["SentencePiece"]())
    loud = Shouting(tokenizer_object=plain.backend_tokenizer)
    vocabulary = Vocabulary(TokenizerWrapper(loud))
    known = plain.get_vocab()
    tokens = [
        known[word] for word in ["▁Hello", "!", "▁How", "▁are", "you", *BYTES[0xE2:0xE3], "<0x82>", "<0xAC>", "."]
    ]
    assert "".join(streamed(vocabulary, tokens, [True])) == "HELLO! HOW AREYOU€."


@pytest.mark.parametrize(
    ("name", "words", "text"),
    [
        ("SentencePiece", ["▁Hello", "!", "▁How"], "Hello! How"),
        ("SentencePiece, no space before", ["▁Hello", "!", "▁How"], " Hello! How"),
        ("SentencePiece", ["▁", "▁Hello"], " Hello"),
        ("byte-level", ["ĠHow", "Ġare", "ĠnÃ¶"], " How are nö"),
        ("byte-level, stripped", ["ĠHow", "Ġare"], "How are"),
        ("Metaspace", ["▁Hello", "▁How"], "Hello How"),
        ("Metaspace, never", ["▁Hello", "▁How"], " Hello How"),
        ("WordPiece", ["word", "##ing", "."], "wording."),
        ("BPE", ["end</w>", "word", "end</w>"], "end wordend"),
        ("none", ["Hello", "word"], "Hello word"),
        ("SentencePiece", ["<0xE2>", "<0x82>", "<0xAC>", "!"], "€!"),
        ("SentencePiece", ["<0xE2>", "<0x82>", "!"], "\ufffd\ufffd!"),
        ("byte-level", ["â", "Ĥ", "Hello"], "\ufffdHello"),
    ],
)
def test_words_of_a_decoder_come_out(name: str, words: list[str], text: str) -> None:
    """Written out, so that both sides can't be wrong together."""
    tokenizer, vocabulary = kind_of(name)
    known = tokenizer.get_vocab()
    assert "".join(streamed(vocabulary, [known[word] for word in words], [True])) == text


@pytest.mark.parametrize("detokenizer", DETOKENIZERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [name for name in DECODERS if name.startswith("SentencePiece")])
def test_byte_level_names_are_read_when_the_decoder_is_sentence_pieces(name: str, detokenizer: Any) -> None:
    """Nobody wants to read `Hello!ĠHow`: such a decoder is replaced, for whoever decodes, and others are not."""
    names = [*LETTERS, "Hello", "ĠHow", "Ġare", "Ġyou", "æĹ¥æľ¬"]
    tokenizer = make_tokenizer(DECODERS[name](), detokenizer=detokenizer, names=names)
    tokens = [tokenizer.get_vocab()[name] for name in ("Hello", "!", "ĠHow", "æĹ¥æľ¬", "Ċ")]
    vocabulary = Vocabulary(tokenizer)
    assert "".join(streamed(vocabulary, tokens, [True])) == "Hello! How日本\n" == decoded(tokenizer, tokens)
    assert vocabulary[tokens[2]] == (" How", b" How")


def test_decoder_stays_when_its_vocabulary_is_of_many_languages() -> None:
    """All letters of byte-level names are tokens of Gemma's, too, and stand for themselves."""
    tokenizer, vocabulary = real("gemma3")
    [token] = tokenizer.encode("Ġ", add_special_tokens=False)
    assert vocabulary[token][0] == "Ġ"


def test_byte_level_names_are_read_when_a_class_has_brought_its_own_decoder(tmp_path: Path) -> None:
    """Transformers builds the decoder that goes with a class's name, whatever stands in the file."""
    shutil.copytree(fetch_tokenizer("qwen3"), tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GemmaTokenizer"}))
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(tmp_path / "model")
    tokens = real("qwen3")[0].encode("Hello! How", add_special_tokens=False)
    assert "".join(streamed(Vocabulary(tokenizer), tokens, [True])) == "Hello! How"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_token_has_a_name_when_ids_have_holes(name: str) -> None:
    """The last control token, too, however far behind the others it stands."""
    tokenizer, _ = real(name)
    backend = tokenizer.backend_tokenizer
    names = token_names(backend)
    assert {text: at for at, text in enumerate(names) if text is not None} == backend.get_vocab(with_added_tokens=True)


@settings(max_examples=400, deadline=None)
@given(text=st.text(alphabet=" .?!,'ntmsvre日", max_size=40), cuts=st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_spaces_are_cleaned_as_of_the_whole_text(text: str, cuts: list[int]) -> None:
    """Transformers cleans all of a text at once; here it comes in pieces."""
    clean = make_tokenizer(None).clean_up_tokenization
    made = CleanFilter(clean)
    pieces, at, number = [], 0, 0
    while at < len(text):
        pieces.append(made.feed_text(text[at : at + cuts[number % len(cuts)]]))
        at, number = at + cuts[number % len(cuts)], number + 1
    assert "".join(pieces) + made.finish_text() == clean(text)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="aab", max_size=24),
    pattern=st.text(alphabet="ab", min_size=1, max_size=4),
    cut=st.integers(1, 5),
)
def test_texts_are_replaced_as_in_the_whole_text(text: str, pattern: str, cut: int) -> None:
    """Wherever they were cut."""
    made = ReplaceFilter(pattern, "-")
    pieces = [made.feed_text(text[at : at + cut]) for at in range(0, len(text), cut)]
    assert "".join(pieces) + made.finish_text() == text.replace(pattern, "-")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ox", max_size=24), start=st.integers(0, 3), stop=st.integers(0, 3), cut=st.integers(1, 5))
def test_ends_are_stripped_as_of_the_whole_text(text: str, start: int, stop: int, cut: int) -> None:
    """So many at most, from each end."""
    made = StripFilter("o", start, stop)
    pieces = [made.feed_text(text[at : at + cut]) for at in range(0, len(text), cut)]
    assert "".join(pieces) + made.finish_text() == strip_end(strip_start(text, "o", start), "o", stop)
