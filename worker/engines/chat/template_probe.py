"""Finding out what a chat template takes, by rendering small conversations with it. No lists of names.

A template that raises, or that leaves out or moves what was said, does not take it. The first way that shows all of it,
in its order, is the one that is used from then on.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import jinja2
import jinja2.meta
import msgspec

from protocol.template_names import is_reserved
from worker.engines.chat.arrangement import JsonMessage, arrange_messages
from worker.engines.chat.template_traits import TemplateTraits

RenderMessages = Callable[..., str]
"""Messages, and by name `tools` and `add_generation_prompt`, to a prompt. It may raise whatever it likes."""

OWN_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""What transformers adds to Jinja's tags."""
FILLERS = ("", " ", "(nothing)")
TOOL_NAME = "probe_tool"
ODD_ID = "call:probe/1-odd"


def _says(role: str, text: str) -> JsonMessage:
    return {"role": role, "content": text}


def probe_tool() -> dict[str, Any]:
    """Return a tool as requests offer them."""
    probed = {"type": "string", "description": "What."}
    parameters = {"type": "object", "properties": {"probed": probed}, "required": ["probed"]}
    return {"type": "function", "function": {"name": TOOL_NAME, "description": "Probes.", "parameters": parameters}}


USER, ANSWER, NEXT, SYSTEM = (
    _says("user", "zuser"),
    _says("assistant", "zanswer"),
    _says("user", "znext"),
    _says("system", "zsystem"),
)
THOUGHT = "zthought"


def _called(
    count: int = 1, *, content: str = "", arguments: Any = None, reasoning_content: str | None = None
) -> JsonMessage:
    """Return a message with calls of `zcall0`, `zcall1` …; their results are those of `_result`."""
    calls = [
        {
            "id": f"{ODD_ID}{number}",
            "type": "function",
            "function": {"name": f"zcall{number}", "arguments": arguments or {"zkey": f"zvalue{number}", "zcount": 3}},
        }
        for number in range(count)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    return message if reasoning_content is None else {**message, "reasoning_content": reasoning_content}


def _result(number: int = 0, text: str | None = None) -> JsonMessage:
    content = f"zresult{number}" if text is None else text
    return {"role": "tool", "content": content, "tool_call_id": f"{ODD_ID}{number}"}


def probe_template(render: RenderMessages, variables: frozenset[str] = frozenset()) -> TemplateTraits:
    """Return what a template takes. Never raises; a template that renders nothing at all gets the defaults."""
    probe = _Probe(render, TemplateTraits(variables=variables))
    if probe.is_whole([USER]):
        probe.try_roles()
        probe.try_calls()
        probe.try_tools()
        probe.try_images()
    return probe.traits


class _Probe:
    """One template, and what is known of it so far."""

    def __init__(self, render: RenderMessages, traits: TemplateTraits) -> None:
        self._render = render
        self.traits = traits

    def try_roles(self) -> None:
        """Find out which orders of system, user and assistant it takes."""
        self._find("users_in_row", True, False, on=[[USER, NEXT]])
        self._find("assistants_in_row", True, False, on=[[USER, ANSWER, _says("assistant", "zmore"), NEXT]])
        self._find("assistant_first", True, False, on=[[ANSWER, NEXT]])
        self._find("system", True, False, on=[[SYSTEM, USER, ANSWER, NEXT]])
        self._find("user_absent", True, False, on=[[SYSTEM], [ANSWER]])
        self._find("systems_in_row", True, False, on=[[SYSTEM, _says("system", "zmore"), USER]])
        later = [[USER, ANSWER, SYSTEM, NEXT], [USER, SYSTEM], [USER, ANSWER, NEXT, SYSTEM]]
        self._find("system_anywhere", True, False, on=[*later, [_says("system", "zfirst"), *later[0]]])
        empty = [[_says("user", ""), ANSWER, NEXT], [USER, _says("assistant", ""), NEXT]]
        self._find("filler", *FILLERS, on=empty)

    def try_calls(self) -> None:
        """Find out how it takes calls, their results and thoughts."""
        turns = [[USER, _called(), _result()], [USER, _called(), _result(), ANSWER, NEXT, _called(), _result()]]
        turns.append([USER, _called(), _result(), _called(), _result(text=""), ANSWER, NEXT])
        if not self._find_all(_call_ways(), on=turns):
            self.traits = msgspec.structs.replace(self.traits, calls=False, images_in_results=False)
            return
        self._find("text_arguments", True, False, on=[[USER, _called(arguments="zraw"), _result(), ANSWER]])
        thinking = [USER, {**ANSWER, "reasoning_content": THOUGHT}, NEXT]
        self._find("thoughts", True, False, on=[[USER, _called(reasoning_content=THOUGHT), _result()], thinking])
        with_text = [_called(content="zsaid", reasoning_content=thought) for thought in (None, THOUGHT)]
        self._find("call_text", "beside", "before", "apart", on=[[USER, m, _result(), ANSWER, NEXT] for m in with_text])
        two = [[USER, _called(2), _result(0), _result(1)], [USER, _called(2), _result(0), _result(1), ANSWER, NEXT]]
        # Some show each result right behind its call, whatever came between.
        self._find("parallel_calls", True, False, on=two, ordered=False)
        self._find("user_after_calls", True, False, on=[[USER, _called(), _result(), NEXT], [USER, _called(), NEXT]])
        lone = [[USER, _result(), ANSWER], [_result(), ANSWER, NEXT], [USER, ANSWER, _result(), ANSWER]]
        self._find("lone_results", True, False, on=lone)

    def try_tools(self) -> None:
        """Find out whether it shows tools."""
        shown = [self._rendered(messages, tools=[probe_tool()]) for messages in ([USER], [SYSTEM, USER, ANSWER, NEXT])]
        tools = all(text is not None and TOOL_NAME in text for text in shown)
        self.traits = msgspec.structs.replace(self.traits, tools=tools)
        if tools and self.traits.user_absent:
            self._find("user_absent", True, False, on=[[SYSTEM], [SYSTEM, ANSWER]], tools=[probe_tool()])

    def try_images(self) -> None:
        """Find out whether an image that a tool answers stands in the prompt as a user's does."""
        if not self.traits.calls:
            return
        told = {"type": "text", "text": "zresult0"}
        shown = [told, {"type": "image"}]
        traits = msgspec.structs.replace(self.traits, images_in_results=True)

        def length(said: Any, answered: Any) -> int | None:
            result = {**_result(), "content": answered}
            text = self._rendered([{**USER, "content": said}, _called(), result], traits)
            return None if text is None else len(text)

        plain, asked, answered = (
            length([told], "zresult0"),
            length(shown, "zresult0"),
            length([told], shown),
        )
        if None not in (plain, asked, answered) and asked != plain and asked == answered:
            self.traits = traits

    def is_whole(
        self, messages: list[JsonMessage], traits: TemplateTraits | None = None, *, ordered: bool = True, **more: Any
    ) -> bool:
        """Return whether the prompt shows all of a conversation in its order, or (not `ordered`) in any."""
        text = self._rendered(messages, traits, **more)
        if text is None or any(f"{quote}zkey{quote}" in text for quote in ("'", '\\"')):
            # Arguments in Python's words, or as JSON within JSON.
            return False
        at = 0
        for word in _words(messages):
            found = text.find(word, at)
            if found < 0:
                return False
            at = found + len(word) if ordered else 0
        return True

    def _rendered(self, messages: list[JsonMessage], traits: TemplateTraits | None = None, **more: Any) -> str | None:
        try:
            text = self._render(arrange_messages(messages, traits or self.traits), **more)
        except Exception:
            # Whatever a template raises: it does not take this.
            return None
        return text if isinstance(text, str) else None

    def _find(self, name: str, *values: Any, on: list[list[JsonMessage]], **more: Any) -> None:
        """Keep the first of the values with which all conversations are whole, else the last."""
        if not self._find_all([{name: value} for value in values], on=on, **more):
            self.traits = msgspec.structs.replace(self.traits, **{name: values[-1]})

    def _find_all(self, ways: list[dict[str, Any]], *, on: list[list[JsonMessage]], **more: Any) -> bool:
        for way in ways:
            traits = msgspec.structs.replace(self.traits, **way)
            if all(self.is_whole(messages, traits, **more) for messages in on):
                self.traits = traits
                return True
        return False


def _call_ways() -> list[dict[str, Any]]:
    """List the forms in which templates take calls, the most usual one first."""
    return [
        {"call_ids": ids, "mapped_arguments": mapped, "call_content": content}
        for ids, content, mapped in product(("any", "plain", "named"), ("", None), (True, False))
    ]


def _words(messages: list[JsonMessage]) -> Iterator[str]:
    """Yield what a prompt has to show of a conversation, in order."""
    for message in messages:
        if isinstance(message["content"], str) and message["content"]:
            yield message["content"]
        for call in message.get("tool_calls", ()):
            yield call["function"]["name"]
            arguments = call["function"]["arguments"]
            yield arguments if isinstance(arguments, str) else arguments["zkey"]


def read_variables(tokenizer: Any) -> frozenset[str]:
    """Return the names that a chat template reads and a request may set; none where that can't be told."""
    source = getattr(tokenizer, "_chat_template", None)
    try:
        names = _parameters(source) if callable(source) else _undeclared(tokenizer.chat_template)
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError):
        return frozenset()
    return frozenset(name for name in names if not is_reserved(name))


def _parameters(renderer: Callable[..., Any]) -> set[str]:
    """Return the names of a renderer that is Python; mlx-lm gives each the one that is added."""
    parameters = inspect.signature(renderer).parameters.values()
    return {one.name for one in parameters if one.kind is not one.VAR_KEYWORD} | {"enable_thinking"}


def _undeclared(source: Any) -> set[str]:
    sources = source.values() if isinstance(source, dict) else [source]
    # It renders nothing: it only reads.
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701
    trees = [environment.parse(OWN_TAGS.sub("", text)) for text in sources if isinstance(text, str)]
    return {name for tree in trees for name in jinja2.meta.find_undeclared_variables(tree)}
