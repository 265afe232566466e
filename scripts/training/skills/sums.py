"""One- and two-digit sums, straight away or after thinking; and two other questions worth a thought."""

from training import vocabulary
from training.draw import Draw
from training.sample import Sample, ask

_ASK = (
    "What is {} + {}?",
    "What is {} plus {}?",
    "{} + {}",
    "{} + {} = ?",
    "How much is {} + {}?",
    "How much is {} plus {}?",
    "Add {} and {}.",
    "what is {}+{}?",
    "{}+{}=",
    "What is the sum of {} and {}?",
    "Calculate {} + {}.",
    "Please add {} and {}.",
)
_THINK_FIRST = (
    "Think step by step: {}",
    "Think first: {}",
    "Think step by step. {}",
    "Please think step by step: {}",
    "Think: {}",
    "Think carefully: {}",
)
_THINK_LAST = (
    "{} Think step by step.",
    "{} Think first.",
    "{} Please think step by step.",
    "{} Think before you answer.",
)


def _pair(source: Draw) -> tuple[int, int]:
    if source.chance(0.15):
        return source.below(10), source.below(10)
    # Two digits each, mostly; short numbers would else be nine tenths of what is seen of them.
    return source.below(100), source.below(100)


def _key(a: int, b: int) -> str:
    return f"{min(a, b)}+{max(a, b)}"


def direct(source: Draw) -> Sample:
    """Ask for `47 + 38 = 85`: both orders of a pair are one case."""
    a, b = _pair(source)
    return ask("sums", _key(a, b), source.pick(_ASK).format(a, b), f"{a} + {b} = {a + b}")


def _steps(a: int, b: int) -> str:
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10
    if ones < 10:
        return f"{a % 10} + {b % 10} = {ones}. {a // 10} + {b // 10} = {tens}."
    return f"{a % 10} + {b % 10} = {ones}, carry 1. {a // 10} + {b // 10} + 1 = {tens + 1}."


def thinking(source: Draw) -> Sample:
    """Ask for thought: on sums, on the letters of a word, on the first of some words."""
    match source.below(4):
        case 0:
            word = source.pick(vocabulary.WORDS)
            question = source.pick(
                ("How many letters has {}?", "How many letters are in {}?", "Count the letters of {}.")
            )
            reasoning = ", ".join(f"{letter} {place}" for place, letter in enumerate(word, 1))
            key, question, answer = word, question.format(word), str(len(word))
        case 1:
            words = source.some(vocabulary.WORDS, 3)
            key, answer = " ".join(words), min(words)
            question = f"Which word is first in the alphabet: {', '.join(words)}?"
            reasoning = ", ".join(f"{word} {word[0]}" for word in words) + f". First: {answer[0]}."
        case _:
            a, b = _pair(source)
            key, reasoning, answer = _key(a, b), _steps(a, b), f"{a} + {b} = {a + b}"
            question = source.pick(_ASK).format(a, b)
    prompt = source.pick(_THINK_LAST if question[-1] in ".?" and source.chance(0.4) else _THINK_FIRST).format(question)
    return ask("thinking", key, prompt, answer, reasoning=reasoning)
