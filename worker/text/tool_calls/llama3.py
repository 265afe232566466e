"""Tool calls of Llama 3.1 to 3.3, for which mlx-lm ships no parser: a JSON object in place of an answer.

`{"name": "f", "parameters": {...}}`, with `"type": "function"` or without, behind `<|python_tag|>` or nothing: any
object may be one, and what turns out to be something else is text again.
"""

from typing import Any

tool_call_start = '{"name"'
tool_call_end = ""
SIGN = '"parameters": dictionary of argument name and its value'
"""What the chat templates of these models say to them."""


def parse_tool_call(_text: str, _tools: Any = None) -> Any:
    """Raise `ValueError`: all calls of this format are read by its entry in `formats`."""
    raise ValueError("not a tool call")
