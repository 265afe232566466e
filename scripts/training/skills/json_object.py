"""JSON for a small schema: the keys that are asked for, in their order, with values from a sentence."""

import json

from training import vocabulary
from training.draw import Draw
from training.sample import Sample, ask

_ASK = (
    "Give me JSON with {keys} for: {text}",
    "Return JSON with {keys}: {text}",
    "Extract {keys} as JSON: {text}",
    "JSON with {keys} for: {text}",
    "Answer in JSON with the keys {keys}: {text}",
    "Write JSON with {keys}. {text}",
    "{text} Give me JSON with {keys}.",
    "Give me a JSON object with {keys} for: {text}",
)


def _person(source: Draw) -> tuple[str, dict[str, str | int]]:
    name, age, city = source.name(), source.between(1, 99), source.city()
    job, color, food = source.pick(vocabulary.JOBS), source.pick(vocabulary.COLORS), source.pick(vocabulary.FOODS)
    parts: list[tuple[str, str, str | int]] = [
        (f"is {age}", "age", age),
        (f"lives in {city}", "city", city),
        (f"works as a {job}", "job", job),
        (f"likes {color}", "color", color),
        (f"eats {food}", "food", food),
    ]
    chosen = source.some(parts, source.pick((1, 1, 2, 2, 3)))
    if not any(part[1] in ("age", "city") for part in chosen):
        chosen[0] = parts[source.below(2)]
    text = f"{name} " + _listed([part[0] for part in chosen]) + "."
    return text, {"name": name, **{key: value for _, key, value in chosen}}


def _thing(source: Draw) -> tuple[str, dict[str, str | int]]:
    item = source.word() if source.chance(0.5) else source.pick(vocabulary.WORDS)
    price, count, color = source.number(), source.between(2, 60), source.pick(vocabulary.COLORS)
    match source.below(3):
        case 0:
            return f"The {item} costs {price} dollars.", {"item": item, "price": price}
        case 1:
            return f"The {item} is {color} and costs {price} dollars.", {"item": item, "color": color, "price": price}
        case _:
            shop = source.city()
            text = f"There are {count} of the {item} in {shop}."
            return text, {"item": item, "count": count, "city": shop}


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def sample(source: Draw) -> Sample:
    """Ask for all the facts of the sentence or some of them, sometimes in another order."""
    text, values = _person(source) if source.chance(0.65) else _thing(source)
    keys = list(values)
    if source.chance(0.3):
        keys = source.some(keys, source.between(min(2, len(keys)), len(keys)))
    question = source.pick(_ASK).format(keys=_listed(keys), text=text)
    answer = json.dumps({key: values[key] for key in keys})
    return ask("json", text + ",".join(keys), question, answer)
