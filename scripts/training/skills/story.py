"""Stories in simple English: a small grammar with a hero, a friend, a place and a thing that stay the same."""

from training import vocabulary
from training.draw import Draw
from training.sample import Sample, ask

_ASK = (
    "Tell me a story about a {animal}.",
    "Write a story about a {animal}.",
    "A story about a {animal}, please.",
    "tell me a story about a {animal}",
)
_ASK_ANY = ("Tell me a story.", "Write a story.", "A story, please.", "tell me a story")
_ASK_NAMED = ("Tell me a story about a {animal} called {name}.", "Write a story about a {animal} called {name}.")
_CONTINUE = ("Continue the story: {start}", "Go on: {start}", "Continue: {start}")
_PLACES = ("forest", "garden", "village", "valley", "harbor", "meadow", "farm", "castle", "mountain", "river")
_THINGS = ("key", "lamp", "map", "bell", "boat", "ring", "drum", "kite", "book", "coin", "stone", "box")
_MOODS = ("happy", "tired", "brave", "curious", "quiet", "kind", "clever", "sad", "calm", "proud")
_DAYS = (
    "One day",
    "The next morning",
    "In the evening",
    "After lunch",
    "A little later",
    "On the next day",
    "That night",
    "Soon",
)
_ACTS = (  # what may happen, roughly in an order that makes sense
    "{day} {name} walked to the {place} with {friend}.",
    "{day} it began to rain, and {name} looked for a dry place.",
    "{name} found a small {thing} under a tree.",
    "{friend} said that the {thing} was very old.",
    "{name} asked {friend} about the {thing}.",
    "They sat down under a tree and ate some {food}.",
    "{day} they saw a {color} bird above the {place}.",
    "{name} was {mood}, but {friend} was {mood2}.",
    "The wind was cold, so they went back to the {place}.",
    "{friend} sang a song about the {color} moon.",
    "{day} {name} lost the {thing} in the grass.",
    "They looked for the {thing} until the sun went down.",
    "An old {animal2} gave them some {food}.",
    "The {animal2} told them where to find the {thing}.",
    "{name} put the {thing} into a {color} bag.",
    "{day} {friend} heard a noise behind the door.",
    "It was only the {animal2}, who wanted to play.",
    "They laughed and ran through the {place}.",
    "{name} felt {mood} and thanked {friend}.",
    "The stars came out, and the {place} was still.",
)
_ENDS = (
    "In the end {name} and {friend} went home and were {mood}.",
    "And so {name} kept the {thing} and was {mood} ever after.",
    "At last they came home, and {name} fell asleep.",
)


def tell(source: Draw, animal: str, name: str, sentences: int) -> list[str]:
    """Return the sentences of one story."""
    friend = source.pick([other for other in vocabulary.NAMES if other != name])
    animal2 = source.pick(vocabulary.ANIMALS)
    place, thing = source.pick(_PLACES), source.pick(_THINGS)

    def say(form: str) -> str:
        return form.format(
            name=name,
            friend=friend,
            animal2=animal2,
            place=place,
            thing=thing,
            day=source.pick(_DAYS),
            mood=source.pick(_MOODS),
            mood2=source.pick(_MOODS),
            food=source.pick(vocabulary.FOODS),
            color=source.pick(vocabulary.COLORS),
        )

    told = [
        f"Once upon a time there was a {animal} called {name}.",
        say(f"{name} lived near a {{place}} and had a friend called {{friend}}."),
    ]
    # In the order of the list, with leaps: a greedy model would turn in circles if any sentence could follow any other.
    act = source.below(4)
    for _ in range(sentences):
        told.append(say(_ACTS[act % len(_ACTS)]))
        act += source.pick((1, 1, 1, 2, 2, 3))
    return [*told, say(source.pick(_ENDS))]


def sample(source: Draw) -> Sample:
    """Draw a story from a question, the rest of a story that was begun, or a story outside any chat."""
    animal, name = source.pick(vocabulary.ANIMALS), source.name()
    long = source.chance(0.4)
    told = tell(source, animal, name, source.between(12, 17) if long else source.between(4, 8))
    key, text = f"{animal} {name}", " ".join(told)
    size = "long " if long else "short " if source.chance(0.3) else ""
    match source.below(11):
        case 10:
            question = source.pick(_ASK_ANY)
        case 0:
            return Sample(skill="story", key=key, raw=text)
        case 1 | 2 | 3:
            cut = source.between(1, 2)
            question = source.pick(_CONTINUE).format(start=" ".join(told[:cut]))
            question = question.replace("the story", "the long story") if long else question
            return ask("story", key, question, " ".join(told[cut:]))
        case 4 | 5:
            question = source.pick(_ASK).format(animal=animal)
        case _:
            question = source.pick(_ASK_NAMED).format(animal=animal, name=name)
    return ask("story", key, question.replace("story", f"{size}story"), text)
