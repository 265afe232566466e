"""The text that the tokenizer learns from: generated, so that nothing has to be downloaded.

Owns words, sentences, code, JSON, numbers and a little of many scripts. Emoji and rare scripts stay rare on
purpose: a byte-level tokenizer then splits their characters over several tokens, which streaming has to survive.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_COMMON, _STEMS = (
    block.split() for block in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split("\n\n")
)
_PREFIXES = ("", "", "", "", "re", "un", "over", "under", "out", "pre", "inter", "mis", "counter", "dis")
_SUFFIXES = (
    "", "", "", "s", "s", "ed", "ing", "er", "ers", "ly", "ness", "ful", "less", "able", "ment", "ation", "ish",
    "ward", "like", "ship", "work", "man", "time", "side", "ling", "ity", "ous", "ive",
)  # fmt: skip
_OTHER_SCRIPTS = (
    "Été à la plage, où naît l'œuvre; garçon, forêt, île.", "Größe, Straße, schöne Füße, über Bäume.",
    "¿Dónde está el niño? Mañana, señor.", "Zażółć gęślą jaźń, proszę.", "Ο ποταμός κυλά προς τη θάλασσα.",
    "Река течёт к морю, а дом стоит на горе.", "النهر يجري نحو البحر والبيت على الجبل.", "הנהר זורם אל הים.",
    "नदी समुद्र की ओर बहती है।", "แม่น้ำไหลลงสู่ทะเล", "河流向大海，房子在山上。你好，世界！",
    "川は海へ流れ、家は山にある。こんにちは。", "강은 바다로 흐르고 집은 산에 있다. 안녕하세요.",
    "ß ð þ ø å ñ € £ ¥ × ÷ ≈ ≤ ≥ ∑ √ ∞ → ← “ ” ‘ ’ – — …",
)  # fmt: skip
_EMOJI = ("🙂", "🚀", "🌍", "🦜", "👩‍🚀", "🇫🇷", "❤️", "🎉")
_VERBS = ("get", "set", "load", "save", "find", "make", "read", "write", "parse", "send", "open", "close")
_TYPES = ("int", "str", "float", "bool", "bytes", "list[int]", "dict[str, str]", "None")


class _Source:
    """Draws from `random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        return int(self._random.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def word(self) -> str:
        if self.below(5) < 2:
            return self.pick(_COMMON)
        # Squared, so that some stems are far more common than others, as in any language.
        stem = _STEMS[int(self._random.random() ** 2 * len(_STEMS))]
        return self.pick(_PREFIXES) + stem + self.pick(_SUFFIXES)

    def words(self, least: int, most: int) -> list[str]:
        return [self.word() for _ in range(least + self.below(most - least + 1))]


def lines(seed: int, n: int) -> Iterator[str]:
    """Generate `n` paragraphs of text, the same ones for the same seed on every machine."""
    source = _Source(seed)
    for i in range(n):
        match i % 10:
            case 0:
                yield _code(source)
            case 1:
                yield _json(source)
            case 2 if i % 20 == 2:
                yield source.pick(_OTHER_SCRIPTS) + (" " + source.pick(_EMOJI) if i % 200 == 2 else "")
            case 2:
                yield _figures(source)
            case _:
                yield " ".join(_sentence(source) for _ in range(1 + source.below(4)))


def _sentence(source: _Source) -> str:
    words = source.words(4, 16)
    words[0] = words[0].capitalize()
    if len(words) > 8:
        words[source.below(6) + 1] += ","
    return " ".join(words) + source.pick((".", ".", ".", ".", "?", "!", ":"))


def _code(source: _Source) -> str:
    verb, noun, other, kind = source.pick(_VERBS), source.word(), source.word(), source.pick(_TYPES)
    return (
        f'def {verb}_{noun}({other}: {kind}) -> {source.pick(_TYPES)}:\n    """{_sentence(source)}"""\n'
        f"    for index in range({source.below(100)}):\n        if {other} != {source.below(1000)}:\n"
        f'            return self.{noun}[index]\n    raise ValueError(f"{noun} {{{other}}}")\n'
    )


def _json(source: _Source) -> str:
    value = {
        "name": f"{source.pick(_VERBS)}_{source.word()}",
        "arguments": {source.word(): source.word(), source.word(): source.below(10_000), "ok": source.below(2) == 0},
        "content": [source.word(), None, source.below(1000) / 100],
    }
    return json.dumps(value, indent=2 if source.below(3) == 0 else None)


def _figures(source: _Source) -> str:
    year, month, day = 1900 + source.below(150), 1 + source.below(12), 1 + source.below(28)
    return (
        f"{year}-{month:02}-{day:02} {source.below(24):02}:{source.below(60):02} | {source.below(10**6):,} "
        f"{source.word()} = {source.below(10**5) / 1000}% (+{source.below(100)}) #{source.below(9999)} "
        f"https://example.org/{source.word()}/{source.word()}?id={source.below(10**6)}"
    )
