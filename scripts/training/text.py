"""The demo models' tokenizer and template, and samples as token ids with the ones to learn marked.

Words are split from the space before them, and digits from each other, so that a word is the same tokens wherever it
stands: what was read can be copied. Only some small words take their space along. Knows no model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
from models import bpe, corpus
from tokenizers import Tokenizer

from training.sample import Sample

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""For the vision model, which shares the tokenizer."""
CONTROL = (*bpe.CONTROL, *VISION)
"""Every control token; they have the last ids, in this order."""
_SMALL_WORDS = (
    "the|a|an|is|are|was|were|it|of|to|in|and|on|for|with|that|this|you|I|my|your|at|by|from|what|how|do|does|can|be|"
    "they|he|she|not|there|into|about|which|word|words|has|have|had|so|called|as|or|if|no|me|plus|please"
)
_SPLIT = rf" (?:{_SMALL_WORDS})(?!\p{{L}})|\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_PARAGRAPHS = 300
"""Of the tiny models' corpus, for a trace of code and other scripts."""


def train(texts: Iterator[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer of `vocab_size` tokens. Raises `ValueError` where the texts are too few."""
    parts = (part for text in (*texts, *_other()) for part in _without_control(text))
    return bpe.train(parts, split=_SPLIT, control=CONTROL, vocab_size=vocab_size)


def _other() -> Iterator[str]:
    return corpus.lines(0, _PARAGRAPHS)


def _without_control(text: str) -> list[str]:
    for token in CONTROL:
        text = text.replace(token, "\0")
    return text.split("\0")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, and for each whether it is the model's to say."""

    tokens: list[int]
    learnt: list[bool]


class Renderer:
    """Samples as text, as a server renders them."""

    def __init__(self) -> None:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - no HTML
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))

    def text(self, sample: Sample) -> str:
        """Return the whole conversation, the last answer included."""
        if sample.raw:
            return sample.raw + bpe.ENDS[0]
        options = {} if sample.thinks is None else {"enable_thinking": sample.thinks}
        if sample.thinks is False:
            *before, last = sample.messages
            prompt: str = self._template.render(
                messages=before, tools=sample.tools, add_generation_prompt=True, **options
            )
            return f"{prompt}{last['content']}{bpe.ENDS[0]}\n"
        rendered: str = self._template.render(messages=sample.messages, tools=sample.tools, **options)
        return rendered


class SampleEncoder:
    """Samples as token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer()

    @cached_property
    def _opening(self) -> list[int]:
        return self._ids("<|im_start|>assistant\n")

    @cached_property
    def _closed_thought(self) -> list[int]:
        return self._ids("<think>\n\n</think>\n\n")

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, sample: Sample) -> Encoded:
        """Encode a sample: learnt is what the model says, with the token that ends a turn; not an empty thought."""
        tokens = self._ids(self._renderer.text(sample))
        if sample.raw:
            return Encoded(tokens=tokens, learnt=[True] * len(tokens))
        end = self._tokenizer.token_to_id(bpe.ENDS[0])
        learnt = [False] * len(tokens)
        position = 0
        while position < len(tokens):
            if tokens[position : position + len(self._opening)] != self._opening:
                position += 1
                continue
            position += len(self._opening)
            if tokens[position : position + len(self._closed_thought)] == self._closed_thought:
                position += len(self._closed_thought)
            while position < len(tokens):
                learnt[position] = True
                position += 1
                if tokens[position - 1] == end:
                    break
        return Encoded(tokens=tokens, learnt=learnt)
