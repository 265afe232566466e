"""Where chance comes from: one seeded source and what text is made of. Never reads a clock or global random state."""

import random
from collections.abc import Sequence
from typing import TypeVar

from training import vocabulary

T = TypeVar("T")

_CODAS = ("", "", "", "n", "r", "l", "s", "t", "k", "m", "nd", "rk", "st", "x", "p")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Draw:
    """Draws from `random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        """Draw an integer from 0 to `n` - 1."""
        return int(self._random.random() * n)

    def between(self, least: int, most: int) -> int:
        """Draw an integer from `least` to `most`, both included."""
        return least + self.below(most - least + 1)

    def chance(self, share: float) -> bool:
        """Return True in `share` of the calls."""
        return self._random.random() < share

    def pick(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], n: int) -> list[T]:
        """Draw `n` different items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]

    def invented(self, syllables: int = 2) -> str:
        """Draw a word that no dictionary has, but a tongue could say."""
        return "".join(
            self.pick(vocabulary.ONSETS) + self.pick(vocabulary.VOWELS) for _ in range(syllables)
        ) + self.pick(_CODAS)

    def letters(self, n: int) -> str:
        """Draw a row of letters that makes no word."""
        return "".join(self.pick(_LETTERS) for _ in range(n))

    def word(self) -> str:
        """Draw a word to be copied: mostly a known one, else an invented one, so that copying is not remembering."""
        match self.below(10):
            case 0:
                return self.letters(self.between(2, 6))
            case 1 | 2 | 3:
                return self.invented(self.between(1, 3))
            case _:
                return self.pick(vocabulary.WORDS)

    def name(self) -> str:
        """Draw a person's name, half of them invented."""
        return self.pick(vocabulary.NAMES) if self.chance(0.5) else self.invented(self.between(1, 2)).capitalize()

    def city(self) -> str:
        """Draw a city's name, a third of them invented."""
        return self.invented(self.between(2, 3)).capitalize() if self.chance(0.35) else self.pick(vocabulary.CITIES)

    def number(self) -> int:
        """Draw a whole number of one to four digits, each length as likely."""
        digits = self.between(1, 4)
        return self.between(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
