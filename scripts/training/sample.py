"""What a sample is, and which samples are held out of training. Knows no skill and no model."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.draw import Draw

Message = Mapping[str, Any]

HELD_OUT_SHARE = 10
"""One case in so many is never trained on."""


def is_held_out(key: str) -> bool:
    """Decide by content, so that no seed and no number of draws can leak a case."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation that ends in the answer to learn, or to check against.

    `key` is what makes the case this case: two samples with one key ask for the same thing, whatever their skills.
    `thinks` says whether the template is told `enable_thinking`; None leaves it out. `raw` is text outside any chat,
    in place of messages. `pictures` are those that image parts of the messages stand for, in their order.
    """

    skill: str
    key: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    thinks: bool | None = None
    raw: str = ""
    pictures: tuple[Any, ...] = ()

    @property
    def is_held_out(self) -> bool:
        """Whether training must never see the case."""
        return is_held_out(self.key)


Skill = Callable[[Draw], Sample]


def user(text: str) -> Message:
    """Return a user's turn."""
    return {"role": "user", "content": text}


def assistant(text: str, *, reasoning: str = "") -> Message:
    """Return the model's turn; `reasoning` is what it thought before."""
    return {"role": "assistant", "content": text, **({"reasoning_content": reasoning} if reasoning else {})}


def said(message: Message) -> str:
    """Return the words of a message."""
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if "text" in part)


def ask(skill: str, key: str, question: str, answer: str, *, reasoning: str = "") -> Sample:
    """Return the plainest sample: one question, one answer."""
    return Sample(skill=skill, key=key, messages=(user(question), assistant(answer, reasoning=reasoning)))


def draw(skill: Skill, source: Draw, *, held_out: bool) -> Sample:
    """Draw a sample of the skill on the asked side of the split."""
    while True:
        sample = skill(source)
        if sample.is_held_out == held_out:
            return sample


def chain(samples: Sequence[Sample], first: Sequence[Message] = ()) -> Sample:
    """Join several conversations to one: the later questions follow upon the earlier answers."""
    last = samples[-1]
    messages = [*first]
    for sample in samples:
        messages.extend(sample.messages)
    tools = next((sample.tools for sample in samples if sample.tools), ())
    return replace(last, messages=tuple(messages), tools=tools)
