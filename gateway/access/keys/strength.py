"""Whether a master key could be guessed. Pure."""

import itertools
import re

LEAST_CHARS = 16
LEAST_DIFFERENT = 8
LEAST_OWN = 8
"""Characters, and different ones, that have to be left without well-known words."""
_WORDS = re.compile(
    "password|passwort|passwd|secret|changeme|changeit|change|default|example|admin|root|master|letmein|welcome|"
    "qwertyuiop|qwerty|asdfghjkl|asdf|zxcvbnm|iloveyou|dragon|monkey|"
    "apikey|token|test|dev|prod|local|host|user|login|access|mlx|pool|gateway|server|openai|embedding|"
    "key|api|abc|xyz|foo|bar|baz|your|here|this|that|the|my|please|replace|insert|none|null|sk"
)
HOW = "make one with: openssl rand -hex 32"


def weakness(key: str) -> str | None:
    """Return why a key is too weak, as the end of a sentence that begins with its name; None where it is not."""
    if len(key) < LEAST_CHARS:
        return f"is shorter than {LEAST_CHARS} characters"
    if len(set(key)) < LEAST_DIFFERENT:
        return f"has fewer than {LEAST_DIFFERENT} different characters"
    if key in (key + key)[1:-1] or _repeats(key):
        return "repeats itself"
    steps = [abs(ord(after) - ord(before)) for before, after in itertools.pairwise(key)]
    if sum(step <= 1 for step in steps) > len(steps) / 2:
        return "is a row of neighbouring characters"
    own = re.sub(r"(?:19|20)\d\d|0?123456?7?8?9?0?", "", _WORDS.sub("", re.sub(r"[^a-z0-9]", "", key.lower())))
    if len(own) < LEAST_OWN or len(set(own)) < LEAST_OWN - 2:
        return "consists of well-known words"
    return None


def _repeats(key: str) -> bool:
    """Return whether all of it is a piece no longer than half of it, again and again, the last time in part."""
    return any(key == (key[:length] * len(key))[: len(key)] for length in range(1, len(key) // 2 + 1))
