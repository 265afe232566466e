"""What the pool answers can be sent back: to every chat template that is at hand, as clients keep it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from openai.types.chat import ChatCompletion

from gateway.routes.chat import _choice
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.decode import decode
from gateway.schema.parts.answers import ChatCompletion as OurCompletion
from gateway.schema.parts.answers import usage_of
from protocol.messages import ChatPrompt, Delta, ToolCall, Usage
from tests.support.chat_templates import REAL, TEMPLATES, make_prompter
from tests.support.harmony_template import HARMONY_TEMPLATE
from tests.support.real_tokenizers import fetch_tokenizer
from worker.engines.chat.prompts import Prompter

Json = dict[str, Any]

pytestmark = pytest.mark.mlx

CONVERSATIONS = 30
HARMONY = "gpt-oss with its tokenizer"
NAMES = (*REAL, *TEMPLATES, HARMONY)
FUNCTIONS = ("get_weather", "read-file", "math.add", "noop")
TOOLS: list[Json] = [
    {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": {"type": "object"}}}
    for name in FUNCTIONS
]
ASKED = decode(b'{"messages": [{"role": "user", "content": "hello"}]}', ChatCompletionRequest)
AWKWARD = ("", "ü—漢 🦊", 'a "quoted" word', "two\nlines", "<b>&amp;</b>", "{{ braces }}", "back\\slash", "'single'")
"""What texts and arguments end with."""


@pytest.fixture(scope="module")
def prompter(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Prompter:
    """The prompter of the template that the test asks for."""
    name: str = request.param
    if name == HARMONY:
        return make_prompter(fetch_tokenizer("gpt-oss"), HARMONY_TEMPLATE)
    if name in REAL:
        return make_prompter(fetch_tokenizer(name))
    return make_prompter(model_folder("qwen3"), TEMPLATES[name])


class Writer:
    """Writes one conversation, from a seed; `words` is what a prompt of it has to show."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.messages: list[Json] = []
        self.words: list[str] = []
        self._number = 0

    def write_word(self, *, awkward: bool = True) -> str:
        """A text that is nowhere else."""
        self._number += 1
        text = f"word{self._number:03}x"
        if awkward and (tail := self.random.choice(AWKWARD)):
            text = f"{text} {tail}"
        self.words.append(text)
        return text

    def write_value(self, level: int = 0) -> Any:
        """A value of an argument."""
        kinds = ["text", "text", "number", "flag", "null"] + (["list", "object"] if level < 2 else [])
        match self.random.choice(kinds):
            case "text":
                return self.write_word()
            case "number":
                return self.random.choice([0, -3, 2.5, 10**9])
            case "flag":
                return self.random.random() < 0.5
            case "null":
                return None
            case "list":
                return [self.write_value(level + 1) for _ in range(self.random.randint(0, 2))]
        return {f"key{at}": self.write_value(level + 1) for at in range(self.random.randint(0, 2))}

    def write_arguments(self) -> str:
        """As models write them: an object, none, or, where they were cut off, no JSON at all."""
        if self.random.random() < 0.1:
            return self.random.choice(["", "{}"])
        if self.random.random() < 0.05:
            return f'{{"cut": "{self.write_word(awkward=False)}'
        arguments = {f"arg_{at}": self.write_value() for at in range(self.random.randint(1, 3))}
        return json.dumps(arguments, ensure_ascii=self.random.random() < 0.3)

    def write_user(self) -> None:
        """One message, or two; a text, or parts."""
        for _ in range(1 if self.random.random() < 0.8 else 2):
            text: Any = self.write_word()
            if self.random.random() < 0.3:
                text = [{"type": "text", "text": text}, {"type": "text", "text": self.write_word()}]
            self.messages.append({"role": "user", "content": text})

    def write_system(self) -> None:
        """Sometimes, anywhere."""
        if self.random.random() < 0.3:
            role = self.random.choice(["system", "developer"])
            self.messages.append({"role": role, "content": self.write_word()})

    async def write_answer(self, *, turn: int) -> None:
        """As the pool answers, as the client dumps it; with the results of its calls."""
        calls = [
            ToolCall(at, f"call_{turn:020}{at:04}", self.random.choice(FUNCTIONS), self.write_arguments())
            for at in range(self.random.choice([0, 0, 1, 1, 2, 3]))
        ]
        text = self.write_word() if not calls or self.random.random() < 0.4 else ""
        if not calls and self.random.random() < 0.1:
            self.words.remove(text)
            text = ""
        reasoning = "hm, let me think" if self.random.random() < 0.4 else ""
        finish = "tool_calls" if calls else self.random.choice(["stop", "length"])
        self.messages.append(await self._dumped(Delta(1, 1, 0, [], text, reasoning, calls, [], finish)))
        if calls and self.random.random() < 0.9:
            order = self.random.sample(calls, len(calls)) if self.random.random() < 0.3 else calls
            self.messages += [self._write_result(call) for call in order]

    async def _dumped(self, delta: Delta) -> Json:
        completion = OurCompletion(
            id="chatcmpl-1", object="chat.completion", created=1, model="m", system_fingerprint="f",
            choices=[await _choice(delta, ASKED)], usage=usage_of([Usage(1, 1)]),
        )  # fmt: skip
        message = ChatCompletion.model_validate(orjson.loads(msgspec.json.encode(completion))).choices[0].message
        dumped: Json = message.model_dump(exclude_none=self.random.random() < 0.5)
        return dumped

    def _write_result(self, call: ToolCall) -> Json:
        content: Any = self.random.choice(["", None, []])
        if self.random.random() < 0.8:
            content = self.write_word()
            if self.random.random() < 0.3:
                content = [{"type": "text", "text": content}]
        return {"role": "tool", "tool_call_id": call.id, "content": content}


async def write_conversation(seed: int) -> Writer:
    """Up to five turns; the last word is anybody's."""
    writer = Writer(seed)
    for turn in range(writer.random.randint(1, 5)):
        writer.write_system()
        if turn == 0 or writer.random.random() < 0.8:
            writer.write_user()
        writer.write_system()
        await writer.write_answer(turn=turn)
    if writer.random.random() < 0.7:
        writer.write_user()
    return writer


def is_shown(word: str, prompt: str) -> bool:
    """Whether a prompt has a text, as it is or as JSON; templates may trim it."""
    forms = {word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1], repr(word)[1:-1]}
    # What is no JSON is a text within JSON on templates that list arguments by name.
    forms |= {json.dumps(form, ensure_ascii=False)[1:-1] for form in forms}
    return any(form in prompt for form in forms)


@pytest.mark.parametrize("prompter", NAMES, indirect=True)
async def test_every_answer_comes_back_when_conversations_are_of_all_kinds(prompter: Prompter) -> None:
    """No 400, no failure; each text, argument and result is in the prompt, with tools and without."""
    for seed in range(CONVERSATIONS):
        writer = await write_conversation(seed)
        for tools in (None, TOOLS):
            body = {"messages": writer.messages, **({"tools": tools} if tools else {})}
            request = decode(orjson.dumps(body), ChatCompletionRequest)
            prompt = request.make_job(None, request_id="r", tenant="t").prompt
            assert isinstance(prompt, ChatPrompt)
            text = prompter.render_chat(prompt)
            missing = [word for word in writer.words if not is_shown(word, text)]
            assert not missing, f"conversation {seed}: {missing} in {text}"
            assert tools is None or all(name in text for name in FUNCTIONS)
            calls = [
                call["function"]["name"] for message in writer.messages for call in message.get("tool_calls") or ()
            ]
            assert all(name in text for name in calls)
