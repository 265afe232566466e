"""Questions about pictures, with their answers: a kind of question for each function, and conversations made of them.

What is held out is what a picture shows, never a way of asking.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from training.draw import Draw
from training.pictures import CELLS, COLORS, SHAPES, Picture, Thing, compose
from training.sample import Message, Sample, assistant, said

Turn = tuple[str, str]
"""A question and its answer."""
_IMAGE = MappingProxyType({"type": "image"})
_PICTURES = ("picture", "picture", "image", "photo")
_COLOR = ("color", "color", "colour")
_OBJECT = ("object", "object", "thing", "shape")
_ORDINALS = ("first", "second")


def at(cell: str) -> str:
    """Return where a cell is, in words."""
    return "in the middle" if cell == "middle" else f"at the {cell}"


def _article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def _picture(source: Draw) -> str:
    return f"{source.pick(('the', 'the', 'this'))} {source.pick(_PICTURES)}"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _alone(values: Iterable[str], value: str) -> bool:
    return list(values).count(value) == 1


def color(source: Draw, picture: Picture) -> Turn | None:
    """Ask for a colour: `The circle is red.`, or `It is red.` where the question names no shape."""
    word, kind = source.pick(_COLOR), source.pick(_OBJECT)
    whole = source.pick(("What {} is it?", "What {} is this?", "What {} is {}?", "Which {} is it?"))
    whole = whole.format(word, _picture(source))
    if picture.plain:
        return whole, f"It is {picture.plain}."
    thing = source.pick(picture.things)
    if _alone((one.shape for one in picture.things), thing.shape) and source.chance(0.55):
        asked = source.pick(("What {} is the {}?", "What {} is the {}?", "Which {} is the {}?", "What {} has the {}?"))
        return asked.format(word, thing.shape), f"The {thing.shape} is {thing.color}."
    if len(picture.things) == 1:
        return source.pick((whole, f"What {word} is the {kind}?")), f"It is {thing.color}."
    return f"What {word} is the {kind} {at(thing.cell)}?", f"It is {thing.color}."


def shape(source: Draw, picture: Picture) -> Turn | None:
    """Ask for a shape: `The red object is a circle.`, or `It is a circle.` where the question names no colour."""
    if not picture.things:
        return None
    kind = source.pick(("object", "object", "thing", "one"))
    thing = source.pick(picture.things)
    if _alone((one.color for one in picture.things), thing.color) and source.chance(0.55):
        asked = source.pick(("What shape is the {} {}?", "Which shape is the {} {}?", "What shape has the {} {}?"))
        return asked.format(thing.color, kind), f"The {thing.color} {kind} is {_article(thing.shape)}."
    if len(picture.things) == 1:
        asked = source.pick(("What shape is it?", "What shape is this?", "Which shape is it?", "What shape is the {}?"))
        return asked.format("object"), f"It is {_article(thing.shape)}."
    return f"What shape is the {kind} {at(thing.cell)}?", f"It is {_article(thing.shape)}."


def count(source: Draw, picture: Picture) -> Turn | None:
    """Ask for the number of all things."""
    return _counted(source, picture, source.pick(_OBJECT), picture.things)


def tally(source: Draw, picture: Picture) -> Turn | None:
    """Ask for the number of a shape or colour, also where there are none; two in three are of shapes."""
    return _tally(source, picture, _one_there(source, picture), by_shape=source.below(3) < 2)


def any_count(source: Draw, picture: Picture) -> Turn | None:
    """Ask for the number of all things in two cases of five, else of a shape or of a colour."""
    thing, kind = _one_there(source, picture), source.below(5)
    return count(source, picture) if kind < 2 else _tally(source, picture, thing, by_shape=kind < 4)


def _one_there(source: Draw, picture: Picture) -> Thing | None:
    return source.pick(picture.things) if picture.things and source.chance(0.75) else None


def _tally(source: Draw, picture: Picture, thing: Thing | None, *, by_shape: bool) -> Turn:
    if by_shape:
        kind = thing.shape if thing else source.pick(SHAPES)
        return _counted(source, picture, kind, [one for one in picture.things if one.shape == kind])
    tint = thing.color if thing else source.pick(tuple(COLORS))
    kind = f"{tint} {source.pick(_OBJECT)}"
    return _counted(source, picture, kind, [one for one in picture.things if one.color == tint])


def _counted(source: Draw, picture: Picture, kind: str, counted: Sequence[Thing]) -> Turn:
    """Answer by going through the picture and counting aloud: few layers cannot count at one glance."""
    many = f"{kind}es" if kind == "cross" else f"{kind}s"
    asked = source.pick(
        ("How many {} are there?", "How many {} are in {}?", "How many {} do you see?", "Count the {}.")
    ).format(many, _picture(source))
    seen = [
        f"{_article(one.name)} {at(one.cell)}" + (f" ({counted.index(one) + 1})" if one in counted else "")
        for one in picture.things
    ]
    match len(counted):
        case 0:
            total = f"There are no {many}."
        case 1:
            total = f"There is 1 {kind}."
        case n:
            total = f"There are {n} {many}."
    return asked, f"{_sentence(', '.join(seen))} {total}" if seen else total


def position(source: Draw, picture: Picture) -> Turn | None:
    """Ask which third of the picture, down and across."""
    if not picture.things:
        return None
    thing = source.pick(picture.things)
    if len(picture.things) == 1 and source.chance(0.25):
        return source.pick(("Where is it?", "Where is the object?")), f"It is {at(thing.cell)}."
    by_shape = _alone((one.shape for one in picture.things), thing.shape)
    if not by_shape and not _alone((one.name for one in picture.things), thing.name):
        return None
    name = thing.shape if by_shape and source.chance(0.4) else thing.name
    asked = source.pick(("Where is the {}?", "Where is the {}?", "Where is the {} in {}?", "Where do you see the {}?"))
    return asked.format(name, _picture(source)), f"The {name} is {at(thing.cell)}."


def place(source: Draw, picture: Picture) -> Turn | None:
    """Ask what is in a third of the picture."""
    if not picture.things:
        return None
    thing = source.pick(picture.things) if source.chance(0.8) else None
    cell = thing.cell if thing else source.pick(CELLS)
    found = next((_article(one.name) for one in picture.things if one.cell == cell), "nothing")
    asked = source.pick(("What is {}?", "What is {}?", "What do you see {}?", "Which object is {}?"))
    return asked.format(at(cell)), _sentence(found)


def presence(source: Draw, picture: Picture) -> Turn | None:
    """Ask whether it is there: yes or no, half of each."""
    if not picture.things:
        return None
    thing: Thing = source.pick(picture.things)
    wanted = source.pick((thing.name, thing.shape, f"{thing.color} object"))
    if source.chance(0.55):
        other = replace(thing, color=source.pick(tuple(COLORS)), shape=source.pick(SHAPES))
        wanted = source.pick((f"{thing.color} {other.shape}", f"{other.color} {thing.shape}", other.shape))
    names = [name for one in picture.things for name in (one.name, one.shape, f"{one.color} object")]
    asked = source.pick(("Is there {}?", "Is there {} in {}?", "Do you see {}?"))
    question = asked.format(_article(wanted), _picture(source))
    return question, "Yes." if wanted in names else "No."


def description(source: Draw, picture: Picture) -> Turn | None:
    """Ask for everything in the picture, in reading order."""
    asked = source.pick(
        (
            *("Describe {}.", "Please describe {}.", "What do you see?", "What is this?", "Name all objects."),
            *("What is in {}?", "What is in {}?", "What's in {}?", "What does {} show?", "What do you see in {}?"),
        )
    ).format(_picture(source))
    if picture.plain:
        return asked, f"Everything is {picture.plain}."
    found = [f"{_article(thing.name)} {at(thing.cell)}" for thing in picture.things]
    told = ", ".join(found[:-1]) + " and " + found[-1] if len(found) > 1 else found[0]
    return asked, _sentence(told)


Kind = Callable[[Draw, Picture], Turn | None]
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "color": color,
        "shape": shape,
        "count": count,
        "tally": tally,
        "position": position,
        "place": place,
        "presence": presence,
        "description": description,
    }
)
_TAUGHT: Sequence[Kind] = (
    *(color, color, shape, shape, any_count, any_count),
    *(position, position, place, presence),
)
"""What is asked next, beside descriptions."""


def turn(source: Draw, picture: Picture, kind: str | None = None) -> Turn | None:
    """Ask about the picture, of any kind unless one is named; None where it leaves nothing to ask."""
    if kind is not None:
        return KINDS[kind](source, picture)
    ask = description if source.chance(0.3) else source.pick(_TAUGHT)
    return ask(source, picture)


def user(source: Draw, question: str, *, pictures: int) -> Message:
    """Return a user's turn with so many pictures, mostly before the question."""
    if pictures == 0:
        return {"role": "user", "content": question}
    images, text = [_IMAGE] * pictures, {"type": "text", "text": question}
    return {"role": "user", "content": [text, *images] if source.chance(0.35) else [*images, text]}


def _sample(skill: str, pictures: Iterable[Picture], messages: Iterable[Message]) -> Sample:
    shown, told = tuple(pictures), tuple(messages)
    key = " & ".join([*(picture.key for picture in shown), *(said(message) for message in told[:-1])])
    return Sample(skill=skill, key=key, messages=told, pictures=shown)


class VisionSkill(Protocol):
    """A conversation about pictures that are all on the asked side of the split."""

    def __call__(self, source: Draw, /, *, held_out: bool) -> Sample:
        """Draw one conversation."""
        ...


def about(kind: str) -> VisionSkill:
    """Return a skill of one picture and one question of the kind."""

    def one(source: Draw, *, held_out: bool) -> Sample:
        while True:
            picture = compose(source, held_out=held_out)
            if asked := turn(source, picture, kind):
                return _sample(kind, [picture], [user(source, asked[0], pictures=1), assistant(asked[1])])

    return one


def pair(source: Draw, *, held_out: bool, turns: int = 1) -> Sample:
    """Draw two pictures in the first turn, and in each a question about one of them or which one it is."""
    shown = [compose(source, held_out=held_out) for _ in _ORDINALS]
    messages: list[Message] = []
    while len(messages) < 2 * turns:
        if asked := _which(source, shown) if source.chance(0.3) else _of_one(source, shown):
            messages += [user(source, asked[0], pictures=0 if messages else 2), assistant(asked[1])]
    return _sample("pair", shown, messages)


def _of_one(source: Draw, shown: list[Picture]) -> Turn | None:
    number = source.below(2)
    asked = turn(source, shown[number])
    if asked is None:
        return None
    question, answer = asked
    words = f"the {_ORDINALS[number]} {source.pick(_PICTURES)}"
    if any(f"the {word}" in question or f"this {word}" in question for word in _PICTURES):
        question = " ".join(question.split())
        for word in _PICTURES:
            question = question.replace(f"this {word}", words).replace(f"the {word}", words)
        return question, answer
    if question[-1] == "?" and source.chance(0.5):
        return f"{question[:-1]} in {words}?", answer
    return f"In {words}: {question[0].lower()}{question[1:]}", answer


def _which(source: Draw, shown: list[Picture]) -> Turn | None:
    number = source.below(2)
    if not shown[number].things:
        return None
    thing = source.pick(shown[number].things)
    wanted = source.pick((thing.name, thing.shape))
    if any(wanted in (one.name, one.shape) for one in shown[1 - number].things):
        return None
    asked = source.pick(("Which {} has {}?", "Which {} shows {}?", "In which {} is {}?"))
    return asked.format(source.pick(_PICTURES), _article(wanted)), f"The {_ORDINALS[number]} picture."


def talk(source: Draw, *, held_out: bool, least: int = 2, most: int = 4) -> Sample:
    """Draw several turns about one picture, or about a new one that comes in on the way."""
    shown = [compose(source, held_out=held_out)]
    wanted = source.between(least, most)
    messages: list[Message] = []
    fresh = 1
    while len(messages) < 2 * wanted:
        if messages and len(shown) == 1 and source.chance(0.2):
            shown.append(compose(source, held_out=held_out))
            fresh = 1
        if asked := turn(source, shown[-1]):
            messages += [user(source, asked[0], pictures=fresh), assistant(asked[1])]
            fresh = 0
        elif len(shown) == 2 and fresh:
            shown.pop()
            fresh = 0
    return _sample("turns", shown, messages)


VISION_SKILLS: Mapping[str, VisionSkill] = MappingProxyType(
    {**{kind: about(kind) for kind in KINDS}, "pair": pair, "turns": talk}
)
TARGETS: Mapping[str, float] = MappingProxyType({"color": 0.95, "shape": 0.95, "count": 0.85, "position": 0.85})
"""The share of right answers that the vision model must reach."""
