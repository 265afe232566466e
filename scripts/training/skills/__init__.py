"""What the model learns to do, a module for each family of skills; `SKILLS` names them all."""

from collections.abc import Mapping
from types import MappingProxyType

from training.sample import Skill
from training.skills import facts, json_object, memory, story, sums, talk, tools, words

SKILLS: Mapping[str, Skill] = MappingProxyType(
    {
        "echo": words.echo,
        "spelling": words.spelling,
        "counting": words.counting,
        "sorting": words.sorting,
        "sums": sums.direct,
        "thinking": sums.thinking,
        "facts": facts.sample,
        "talk": talk.sample,
        "names": memory.sample,
        "json": json_object.sample,
        "tool_call": tools.call,
        "tool_answer": tools.answer,
        "story": story.sample,
    }
)
