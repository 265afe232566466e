"""Calls of gpt-oss: a message to a function, whose name stands in the message's header, whose text is JSON."""

import json
from typing import Any

MESSAGE = "<|message|>"
tool_call_start = "<|channel|>commentary to=functions."
tool_call_end = "<|call|>"


def parse_tool_call(text: str, _tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the call in `recipient<|message|>{…}`. Raises `ValueError` for a text that is no JSON object."""
    recipient, found, body = text.partition(MESSAGE)
    # Without parameters some write nothing at all.
    arguments = json.loads(body.strip() or "{}", strict=False)
    if not found or not isinstance(arguments, dict):
        raise ValueError("a message, but no call")
    return {"name": recipient.removeprefix("functions."), "arguments": arguments}
