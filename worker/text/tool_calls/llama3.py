"""Tool calls of Llama 3.1 to 3.3, for which mlx-lm ships no parser: a JSON object in place of an answer.

`{"name": "f", "parameters": {...}}`, without any marker: the beginning of the object is taken for one, and what turns
out to be something else is text again.
"""

import json
from typing import Any

tool_call_start = '{"name"'
tool_call_end = ""
SIGN = '"parameters": dictionary of argument name and its value'
"""What the chat templates of these models say to them."""


def parse_tool_call(text: str, tools: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the calls in what follows the marker, parted by `;`.

    Raises `ValueError` for anything but calls of `tools`.
    """
    offered = {tool["function"]["name"] for tool in tools or ()}
    text = tool_call_start + text
    decoder = json.JSONDecoder()
    calls = []
    at = 0
    while at < len(text):
        found, at = decoder.raw_decode(text, at)
        arguments = found.get("parameters", found.get("arguments")) if isinstance(found, dict) else None
        if not isinstance(arguments, dict) or found.get("name") not in offered:
            raise ValueError("an object, but no call")
        calls.append({"name": found["name"], "arguments": arguments})
        at += len(text[at:]) - len(text[at:].lstrip("; \n"))
    return calls
