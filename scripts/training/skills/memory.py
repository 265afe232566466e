"""What the user said in an earlier turn and asks for later."""

from training import vocabulary
from training.draw import Draw
from training.sample import Sample, assistant, draw, user
from training.skills import facts, sums, words

_NAME = (
    "My name is {}.",
    "Hi, my name is {}.",
    "Hello, I am {}.",
    "I am {}.",
    "my name is {}",
    "Hi! My name is {}.",
    "Call me {}.",
)
_ASK_NAME = (
    "What is my name?",
    "what is my name?",
    "Do you remember my name?",
    "What's my name?",
    "Who am I?",
    "Can you tell me my name?",
)
_CITY = ("I live in {}.", "My home is in {}.")
_ASK_CITY = ("Where do I live?", "Which city do I live in?", "Do you remember where I live?")
_COLOR = ("My favorite color is {}.", "I like the color {}.")
_ASK_COLOR = ("What is my favorite color?", "Which color do I like?")
_PET = ("My {} is called {}.", "I have a {} called {}.")
_ASK_PET = ("What is my {} called?", "What is the name of my {}?")


def sample(source: Draw) -> Sample:
    """Tell one or two things, talk between, ask for one of them."""
    things = [_name(source)]
    if source.chance(0.4):
        things.append(source.pick((_city, _color, _pet))(source))
        if source.chance(0.5):
            things.reverse()
    _, _, question, answer, key = source.pick(things) if source.chance(0.4) else _named(things)
    messages = [turn for told, reply, *_ in things for turn in (user(told), assistant(reply))]
    for _ in range(source.pick((0, 0, 1, 1, 2))):
        messages.extend(draw(source.pick((facts.sample, sums.direct, words.echo)), source, held_out=False).messages)
    messages.extend((user(question), assistant(answer)))
    return Sample(skill="names", key=key, messages=tuple(messages))


_Thing = tuple[str, str, str, str, str]


def _named(things: list[_Thing]) -> _Thing:
    return next(thing for thing in things if thing[4].startswith("name"))


def _name(source: Draw) -> _Thing:
    name = source.name()
    return (
        source.pick(_NAME).format(name),
        f"Nice to meet you, {name}!",
        source.pick(_ASK_NAME),
        f"Your name is {name}.",
        f"name {name}",
    )


def _city(source: Draw) -> _Thing:
    city = source.city()
    return (
        source.pick(_CITY).format(city),
        f"{city} is a nice place.",
        source.pick(_ASK_CITY),
        f"You live in {city}.",
        city,
    )


def _color(source: Draw) -> _Thing:
    color = source.pick(vocabulary.COLORS) if source.chance(0.7) else source.invented()
    reply, answer = f"I like {color} too.", f"Your favorite color is {color}."
    return source.pick(_COLOR).format(color), reply, source.pick(_ASK_COLOR), answer, color


def _pet(source: Draw) -> _Thing:
    animal, name = source.pick(vocabulary.ANIMALS), source.name()
    answer = f"Your {animal} is called {name}."
    return (
        source.pick(_PET).format(animal, name),
        f"{name} is a good name for a {animal}.",
        source.pick(_ASK_PET).format(animal),
        answer,
        f"{animal} {name}",
    )
