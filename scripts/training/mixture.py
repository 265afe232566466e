"""How much of each skill, and conversations made of several: an endless stream of training samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from training.draw import Draw
from training.sample import Message, Sample, chain, draw
from training.skills import SKILLS

SHORT: Mapping[str, float] = MappingProxyType(
    {
        "echo": 4,
        "spelling": 2.5,
        "counting": 1.8,
        "sorting": 4,
        "sums": 7,
        "thinking": 3.5,
        "facts": 3,
        "talk": 2,
        "names": 2.5,
        "json": 3,
    }
)
LONG: Mapping[str, float] = MappingProxyType(
    {"tool_call": 5, "tool_answer": 3.5, "story": 1.2, "names": 1, "json": 0.5}
)
_CHAINED = ("echo", "spelling", "counting", "sums", "sums", "sums", "facts", "talk", "json")
SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer in short sentences.",
    "You are a demo model.",
    "You are a helpful assistant. Be brief.",
    "Be polite.",
)


def stream(source: Draw, mix: Mapping[str, float], *, chained: Sequence[str] = _CHAINED) -> Iterator[Sample]:
    """Yield training samples without end; some follow turns of the `chained` skills."""
    names, weights = tuple(mix), tuple(mix.values())
    while True:
        yield _varied(source, draw(SKILLS[_weighted(source, names, weights)], source, held_out=False), chained)


def _weighted(source: Draw, names: Sequence[str], weights: Sequence[float]) -> str:
    rest = source.below(10**6) / 10**6 * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        rest -= weight
        if rest < 0:
            return name
    return names[-1]


def _varied(source: Draw, sample: Sample, chained: Sequence[str]) -> Sample:
    """Vary a sample: some are told not to think, some follow other talk, some have a system message."""
    if sample.raw:
        return sample
    plain = sample.messages[-1].get("content") and not sample.messages[-1].get("reasoning_content")
    if plain and source.chance(0.1):
        sample = replace(sample, thinks=False)
    elif sample.skill == "thinking" and source.chance(0.15):
        *before, last = sample.messages
        sample = replace(sample, thinks=False, messages=(*before, {"role": "assistant", "content": last["content"]}))
    first: list[Message] = []
    if source.chance(0.12):
        first.append({"role": "system", "content": source.pick(SYSTEM)})
    earlier: list[Sample] = []
    if not sample.tools and source.chance(0.25):
        earlier.extend(
            draw(SKILLS[source.pick(chained)], source, held_out=False) for _ in range(source.pick((1, 1, 2)))
        )
    return chain([*earlier, sample], first) if first or earlier else sample
