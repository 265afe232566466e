"""Tools for models whose chat template shows none: told in the system message, called in a form that the pool reads."""

import json
from typing import Any

from mlx_lm.tool_parsers import json_tools

from worker.engines.chat.arrangement import GAP, JsonMessage, arrange_messages, mark_call, mark_result
from worker.engines.chat.template_probe import TOOL_NAME, RenderMessages, probe_tool
from worker.engines.chat.template_traits import TemplateTraits
from worker.text.tool_calls.formats import parser_name

NAME = "function_name"
VALUE = "value"


def adopt_generic_tools(tokenizer: Any) -> None:
    """Give a tokenizer the parser of the generic form, where it has none and its template leaves tools out."""
    if tokenizer.tool_parser is None and tokenizer.has_chat_template and not _shows_tools(tokenizer):
        tokenizer._tool_parser = json_tools.parse_tool_call
        tokenizer._tool_call_start, tokenizer._tool_call_end = json_tools.tool_call_start, json_tools.tool_call_end


def calls_generically(tokenizer: Any) -> bool:
    """Return whether calls of its model are read in the generic form."""
    return parser_name(tokenizer) == "json_tools"


def find_example(tokenizer: Any, render: RenderMessages, traits: TemplateTraits) -> str:
    """Return a call as the template writes earlier ones, if its model's calls are read so; empty: neither is so."""
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    if not start or not traits.calls:
        return ""
    function = {"name": NAME, "arguments": {"argument": VALUE}}
    said: list[JsonMessage] = [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
    ]
    try:
        text = render(arrange_messages(said, traits), add_generation_prompt=False)
    except Exception:
        # Whatever a template raises: it shows none.
        return ""
    begun, shown = text.find(start), text.rfind(VALUE)
    if not 0 <= begun < text.find(NAME) < shown:
        return ""
    ended = text.find(end, shown) if end else -1
    if ended >= 0:
        return text[begun : ended + len(end)]
    # Some templates leave the end of a single call out, and what else ends a message is not part of a call.
    return text[begun:].removesuffix(tokenizer.eos_token or "").rstrip() + (end or "")


def tell_tools(messages: list[JsonMessage], tools: list[dict[str, Any]], example: str) -> list[JsonMessage]:
    """Return a conversation whose system message says which tools there are, and how they are called.

    `example` is a call in the model's own form; empty: the generic one.
    """
    text = _describe_tools(tools, example)
    if messages and messages[0]["role"] == "system":
        own = messages[0]["content"]
        return [{**messages[0], "content": f"{own}{GAP}{text}" if own else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _describe_tools(tools: list[dict[str, Any]], example: str) -> str:
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    own = example or mark_call(NAME, {"argument": VALUE})
    result = "" if example else f"\nThen wait: each result comes in this form:\n{mark_result('result')}"
    return (
        f"You can call functions. These are there, one on each line, with the JSON Schema of their arguments:\n"
        f"<tools>\n{functions}\n</tools>\n\n"
        f"To call one, write nothing but its name and its arguments in this form:\n{own}\n\n"
        f"To call several, write one such block after the other.{result}"
    )


def _shows_tools(tokenizer: Any) -> bool:
    """Return whether the tools of a request are in the prompt; some templates take parts for contents, and no text."""
    contents: list[Any] = ["Hello", [{"type": "text", "text": "Hello"}]]
    return any(TOOL_NAME in _text_with_tools(tokenizer, content) for content in contents)


def _text_with_tools(tokenizer: Any, content: Any) -> str:
    said = [{"role": "user", "content": content}]
    try:
        text: str = tokenizer.apply_chat_template(
            said, tools=[probe_tool()], add_generation_prompt=True, tokenize=False
        )
    except Exception:
        # Whatever a template raises: it shows none.
        return ""
    return text
