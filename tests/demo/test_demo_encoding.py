"""Samples as tokens: rendered as a server renders them, and learnt where the model speaks."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from models import bpe
from tokenizers import Tokenizer

from training import text
from training.answering import parse_answer
from training.batches import Packer, Shape, block
from training.draw import Draw
from training.evaluation import ModelAnswer, NamedCall
from training.mixture import LONG, SHORT, stream
from training.sample import Sample, ask, assistant, user
from training.skills import SKILLS

SHAPES = (Shape(rows=3, length=128, learnt=250), Shape(rows=2, length=384, learnt=500))


def learnt_text(tokenizer: Tokenizer, encoded: text.Encoded) -> list[str]:
    runs = itertools.groupby(zip(encoded.tokens, encoded.learnt, strict=True), key=lambda pair: pair[1])
    return [
        tokenizer.decode([token for token, _ in run], skip_special_tokens=False) for is_learnt, run in runs if is_learnt
    ]


def test_encode_when_there_are_two_turns(tokenizer: Tokenizer, encoder: text.SampleEncoder) -> None:
    """Both answers are learnt with the end of their turn, the questions and the template's words are not."""
    sample = Sample(skill="x", key="x", messages=(user("Hi"), assistant("Hello!"), user("Bye"), assistant("So long.")))
    assert learnt_text(tokenizer, encoder.encode(sample)) == ["Hello!<|im_end|>", "So long.<|im_end|>"]


def test_encode_when_the_model_thinks(tokenizer: Tokenizer, encoder: text.SampleEncoder) -> None:
    """Thoughts are the model's own words."""
    sample = ask("x", "x", "Think: 1 + 1", "2", reasoning="1 and 1.")
    assert learnt_text(tokenizer, encoder.encode(sample)) == ["<think>\n1 and 1.\n</think>\n\n2<|im_end|>"]


def test_encode_when_thinking_is_off(tokenizer: Tokenizer, encoder: text.SampleEncoder) -> None:
    """The empty thought is the template's, and the answer follows behind it."""
    sample = Sample(skill="x", key="x", messages=(user("1 + 1"), assistant("2")), thinks=False)
    encoded = encoder.encode(sample)
    assert learnt_text(tokenizer, encoded) == ["2<|im_end|>"]
    whole = tokenizer.decode(encoded.tokens, skip_special_tokens=False)
    assert whole.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n2<|im_end|>\n")


def test_encode_when_a_word_stands_elsewhere(tokenizer: Tokenizer) -> None:
    """A word is the same tokens at the start of a text, behind a space and in quotes: that makes copying learnable."""
    for word in ("quilt", "zorpenu", "Oslo", "4711"):
        alone = tokenizer.encode(word).ids
        for place in (f"Say {word}", f'{{"name": "{word}"}}', f"({word})", f"-{word}."):
            ids = tokenizer.encode(place).ids
            assert any(ids[start : start + len(alone)] == alone for start in range(len(ids))), place


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    bpe.write(tokenizer, folder, template=text.TEMPLATE, context_length=2048)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_render_agrees_with_the_server(served: Any) -> None:
    """What is trained on is what a server makes of the same messages with the shipped files, token by token."""
    renderer = text.Renderer()
    for skill in SKILLS.values():
        source = Draw(9)
        for sample in (sample for sample in (skill(source) for _ in range(25)) if not sample.raw):
            ours = renderer.text(sample)
            theirs = served.apply_chat_template(
                list(sample.messages), tools=list(sample.tools) or None, tokenize=False, add_generation_prompt=False
            )
            assert ours == theirs
            prompt = served.apply_chat_template(
                list(sample.messages[:-1]), tools=list(sample.tools) or None, tokenize=False, add_generation_prompt=True
            )
            assert ours.startswith(prompt)


def test_template_when_content_comes_in_parts(served: Any) -> None:
    """Text parts are joined by line ends, images stand where they were sent; a client need not send a plain string."""
    say, hi = {"type": "text", "text": "Say"}, {"type": "text", "text": "hi"}
    for image in ({"type": "image"}, {"type": "image_url", "image_url": {"url": "data:"}}):
        said = served.apply_chat_template([{"role": "user", "content": [say, hi, image, say]}], tokenize=False)
        assert said == "<|im_start|>user\nSay\nhi<|vision_start|><|image_pad|><|vision_end|>Say<|im_end|>\n"


def test_any_text_survives_the_tokenizer(served: Any) -> None:
    """Byte-level: scripts and signs that no sample has come back as they were."""
    for said in ("Été 🙂 河流 \t x  y\n\n z", "Zażółć\r\n", " the  a ", "\u2060\x00end"):
        assert served.decode(served.encode(said), clean_up_tokenization_spaces=False) == said


def test_blocks_keep_samples_apart(encoder: text.SampleEncoder) -> None:
    """A token sees itself and what is before it in its own sample, nothing else."""
    one, two = (encoder.encode(ask("x", "x", question, "yes")) for question in ("Is it?", "Can you say yes?"))
    packed = block([[one, two]], Shape(rows=1, length=64, learnt=16))
    sees = packed.bias[0, 0] == 0
    start, end = len(one.tokens), len(one.tokens) + len(two.tokens)
    assert sees[end - 1, start:end].all()
    assert not sees[end - 1, :start].any()
    assert not np.triu(sees, 1).any()
    assert sees[start - 1, :start].all()


def test_blocks_ask_for_the_next_token(encoder: text.SampleEncoder) -> None:
    """A target stands right behind its place, and is the model's to say."""
    for packed, _ in itertools.islice(Packer(encoder, seed=3, shapes=SHAPES).blocks(), 3):
        flat = packed.tokens.reshape(-1)
        asked = packed.weights > 0
        assert asked.sum() > 50
        assert (flat[packed.places[asked] + 1] == packed.targets[asked]).all()


def test_blocks_when_the_seed_is_the_same(encoder: text.SampleEncoder) -> None:
    """Training sees the same rows for the same seed, and hardly any of a row is empty."""
    left, right = (list(itertools.islice(Packer(encoder, seed=3, shapes=SHAPES).blocks(), 4)) for _ in range(2))
    for mine, other in zip(left, right, strict=True):
        for a, b in zip(mine, other, strict=True):
            assert (a.tokens == b.tokens).all()
            assert (a.tokens != 0).mean() > 0.75


def test_short_and_long_samples_fit_their_rows(encoder: text.SampleEncoder) -> None:
    """Next to nothing that is generated is too long to be trained on."""
    lengths = [
        len(encoder.encode(sample).tokens)
        for mix in (SHORT, LONG)
        for sample in itertools.islice(stream(Draw(2), mix), 500)
    ]
    assert sum(length > 2 * 384 for length in lengths) == 0


def test_read_when_there_are_thoughts_and_calls() -> None:
    """The model's own words come apart as a server takes them apart."""
    said = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert parse_answer(said) == ModelAnswer(
        content="", reasoning="hm", calls=(NamedCall(name="add", arguments={"a": 1}),)
    )
    assert parse_answer("plain") == ModelAnswer(content="plain")
    assert parse_answer("<tool_call>\nnonsense\n</tool_call>").calls == (NamedCall(name="", arguments="nonsense"),)
