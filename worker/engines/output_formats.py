"""Which format a model's answers have, told from its chat template and its tokens, where mlx-lm does not know it."""

import importlib
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from mlx_lm.tokenizer_utils import _infer_tool_parser
from mlx_lm.tool_parsers import json_tools

from worker.text import harmony
from worker.text.markers import Markers, markers_of
from worker.text.tool_calls import deepseek_v3, deepseek_v31, deepseek_v32, llama3
from worker.text.tool_calls import harmony as harmony_calls

DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names of chat templates, where a model has several: with tools the one is used, else the other."""

OBJECT_SIGNS = ("<tool_call>", "</tool_call>", '"name"', '"arguments"')
"""What templates hold whose calls are objects between tags, as Hermes's."""


def recognise_format(tokenizer: Any) -> None:
    """Give a tokenizer (mlx-lm's wrapper) the parser of calls that mlx-lm lacks for its model."""
    _name_default(tokenizer)
    if _is_dsml(tokenizer):
        _prepare_dsml(tokenizer)
    parser = _unseen_parser(tokenizer) or _own_parser(tokenizer)
    if parser is not None:
        tokenizer._tool_parser = parser.parse_tool_call
        tokenizer._tool_call_start, tokenizer._tool_call_end = parser.tool_call_start, parser.tool_call_end


def read_markers(tokenizer: Any) -> Markers:
    """Return the markers of a tokenizer's model."""
    found = harmony.harmony_markers(tokenizer.get_vocab()) if _is_harmony(tokenizer) else None
    return found or markers_of(tokenizer)


def _own_parser(tokenizer: Any) -> Any:
    """Return our own module for a model's calls, None where there is none."""
    template = _template_with_tools(tokenizer)
    if _is_harmony(tokenizer):
        return harmony_calls
    if _is_dsml(tokenizer):
        return deepseek_v32
    if deepseek_v31.SIGN in template:
        return deepseek_v3 if deepseek_v3.SIGN in template else deepseek_v31
    if tokenizer.tool_parser is None and llama3.SIGN in template:
        return llama3
    # mlx-lm wants to find `tool_call.name` as well, which is but a name of the template's own.
    return json_tools if tokenizer.tool_parser is None and all(sign in template for sign in OBJECT_SIGNS) else None


def _unseen_parser(tokenizer: Any) -> Any:
    """Return mlx-lm's module for one of several chat templates, which it does not look at; None where it has none."""
    if not isinstance(tokenizer.chat_template, Mapping) or tokenizer.tool_parser is not None:
        return None
    name = _infer_tool_parser(
        SimpleNamespace(chat_template=_template_with_tools(tokenizer), get_vocab=tokenizer.get_vocab)
    )
    return importlib.import_module(f"mlx_lm.tool_parsers.{name}") if name else None


def _template_with_tools(tokenizer: Any) -> str:
    """Return the chat template that is used where tools are offered; empty where it is no text."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get(WITH_TOOLS, template.get(DEFAULT))
    return template if isinstance(template, str) else ""


def _name_default(tokenizer: Any) -> None:
    """Have a default among several chat templates: without one no conversation without tools could be rendered."""
    templates = tokenizer.chat_template
    if isinstance(templates, Mapping) and templates and DEFAULT not in templates:
        chosen = templates.get(WITH_TOOLS) or next(iter(templates.values()))
        tokenizer.chat_template = {**templates, DEFAULT: chosen}


def _is_harmony(tokenizer: Any) -> bool:
    template = _template_with_tools(tokenizer)
    return harmony.harmony_markers(tokenizer.get_vocab()) is not None and (not template or harmony.START in template)


# -- DeepSeek V3.2, whose template is a program

EMPTY_THOUGHT = "\n"
DSML_OPTIONS = ("enable_thinking", "add_generation_prompt", "continue_final_message")


def _is_dsml(tokenizer: Any) -> bool:
    # Its own folder has no template in Jinja.
    return deepseek_v32.SIGN in (_template_with_tools(tokenizer) or tokenizer.get_vocab())


def _prepare_dsml(tokenizer: Any) -> None:
    """Have conversations rendered as the model's own program does, and the sign of its tags be a control token."""
    if deepseek_v32.SIGN in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [deepseek_v32.SIGN]})
    if tokenizer._chat_template is None and tokenizer.chat_template is None:
        program = importlib.import_module("mlx_lm.chat_templates.deepseek_v32")
        tokenizer._chat_template = program.apply_chat_template
        tokenizer.has_chat_template = True
    if getattr(tokenizer._chat_template, "__module__", "").endswith(".deepseek_v32"):
        tokenizer._chat_template = _taking_any_options(tokenizer._chat_template)


def _taking_any_options(render: Callable[..., str]) -> Callable[..., str]:
    """Return the program with what it lacks.

    It reads arguments of calls as JSON text, writes tools into system messages alone (into each of them), takes no
    answer without a thought behind the last question, knows no options but thinking, and refuses with assertions.
    """

    def render_conversation(messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
        asked = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
        messages = [_for_dsml(message, last=at > asked) for at, message in enumerate(messages)]
        if tools:
            first = next((at for at, message in enumerate(messages) if message["role"] == "system"), None)
            if first is None:
                first = 0
                messages.insert(0, {"role": "system", "content": ""})
            messages[first] = {**messages[first], "tools": tools}
        known = {key: value for key, value in options.items() if key in DSML_OPTIONS}
        try:
            return render(messages, **known)
        except (AssertionError, NotImplementedError) as error:
            raise ValueError(str(error)) from error

    return render_conversation


def _for_dsml(message: dict[str, Any], *, last: bool) -> dict[str, Any]:
    """Return a message as the program takes it; `last`: no question follows it."""
    if calls := message.get("tool_calls"):
        return {**message, "tool_calls": [_with_text(call) for call in calls]}
    if last and message["role"] == "assistant":
        return {**message, "reasoning_content": message.get("reasoning_content") or EMPTY_THOUGHT}
    return message


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
