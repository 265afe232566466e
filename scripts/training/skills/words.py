"""Work on the letters and words of the question: echo, spelling, counting, sorting."""

from training import vocabulary
from training.draw import Draw
from training.sample import Sample, ask

_VERBATIM = (
    "Repeat after me: {}",
    "Say: {}",
    "Echo: {}",
    "Repeat: {}",
    "Repeat this: {}",
    "Please repeat: {}",
    "Echo this: {}",
    "Say exactly this: {}",
    "repeat after me: {}",
    "Answer with these words: {}",
    "say: {}",
    "Repeat the following: {}",
)
_LOOSE = (
    "Say {}",
    "Say {}.",
    "say {}",
    "Please say {}",
    "Please say {}.",
    "Can you say {}?",
    "Just say {}.",
    "Echo {}",
    'Say "{}"',
    'Say "{}".',
    'Repeat "{}"',
    'Please repeat "{}".',
)
_SPELL = (
    "Spell {}.",
    "Spell the word {}.",
    "How do you spell {}?",
    "Spell: {}",
    "Please spell {}.",
    "spell {}",
    'Spell "{}".',
)
_SORT = (
    "Sort these words: {}",
    "Sort: {}",
    "Put these words in order: {}",
    "Sort the words {}.",
    "Sort alphabetically: {}",
    "Please sort these words: {}",
)
_MARKS = ("", "", "", ".", "!", "?")


def phrase(source: Draw) -> str:
    """Draw one to six words, sometimes with capitals and numbers, no mark at the end."""
    words = [source.word() for _ in range(source.pick((1, 1, 2, 2, 3, 3, 4, 5, 6)))]
    if source.chance(0.25):
        words[source.below(len(words))] = str(source.number())
    if source.chance(0.15):
        words[source.below(len(words))] = source.name()
    if source.chance(0.3):
        words[0] = words[0].capitalize()
    if source.chance(0.03):
        words = [word.upper() for word in words]
    if len(words) > 2 and source.chance(0.2):
        words[source.below(len(words) - 1)] += ","
    return " ".join(words)


def echo(source: Draw) -> Sample:
    """Ask for `Say X`, answered by X; after a colon its full stop belongs to X."""
    text = phrase(source)
    if source.chance(0.5):
        text += source.pick(_MARKS)
        return ask("echo", text, source.pick(_VERBATIM).format(text), text)
    return ask("echo", text, source.pick(_LOOSE).format(text), text)


def spelling(source: Draw) -> Sample:
    """Ask for letters with hyphens between."""
    word = source.invented() if source.chance(0.3) else source.pick(vocabulary.WORDS)
    return ask("spelling", word, source.pick(_SPELL).format(word), "-".join(word))


def counting(source: Draw) -> Sample:
    """Ask for counting up to a number, from one to another, or the words of a list."""
    match source.below(4):
        case 0:
            last = source.between(2, 30)
            question = source.pick(
                ("Count to {}.", "Count from 1 to {}.", "Please count to {}.", "count to {}", "Count up to {}.")
            )
            return ask("counting", f"1-{last}-{question}", question.format(last), _numbers(1, last))
        case 1:
            first = source.between(2, 60)
            last = first + source.between(2, 12)
            question = source.pick(("Count from {} to {}.", "Count from {} up to {}.", "Please count from {} to {}."))
            return ask("counting", f"{first}-{last}", question.format(first, last), _numbers(first, last))
        case _:
            words = [source.pick(vocabulary.WORDS) for _ in range(source.between(1, 9))]
            question = source.pick(("How many words are here: {}", "Count the words: {}", "How many words: {}"))
            return ask("counting", " ".join(words), question.format(" ".join(words)), str(len(words)))


def _numbers(first: int, last: int) -> str:
    return ", ".join(str(number) for number in range(first, last + 1))


def sorting(source: Draw) -> Sample:
    """Ask for three to five different words in the order of the alphabet."""
    words = source.some(vocabulary.WORDS, source.between(3, 5))
    return ask("sorting", " ".join(words), source.pick(_SORT).format(", ".join(words)), ", ".join(sorted(words)))
