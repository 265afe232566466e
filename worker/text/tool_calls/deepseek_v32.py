"""Calls of DeepSeek V3.2 (DSML): `<｜DSML｜invoke name="…">`, each argument in a tag that says if it is a string."""

import json
import re
from typing import Any

tool_call_start = "<｜DSML｜function_calls>"
tool_call_end = "</｜DSML｜function_calls>"
SIGN = "｜DSML｜"
"""What the tags of these models have in common; a token of its own in their vocabulary."""

_CALL = re.compile(r'\s*<｜DSML｜invoke name="(?P<name>[^"]+)">')
_END = re.compile(r"\s*</｜DSML｜invoke>\s*")
_ARGUMENT = re.compile(r'\s*<｜DSML｜parameter name="(?P<name>[^"]*)"(?: string="(?P<string>true|false)")?>')
_CLOSING = re.compile(r"</｜DSML｜parameter>(?=\s*(?:<｜DSML｜parameter\s|</｜DSML｜invoke>|\Z))")
_SPACED_CLOSING = re.compile(r"\s*</｜DSML｜parameter>")
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder(strict=False)


def parse_tool_call(text: str, _tools: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the calls in a block. Raises `ValueError` for anything else."""
    calls = []
    at = 0
    while at < len(text):
        call = _CALL.match(text, at)
        if call is None:
            raise ValueError("no call begins here")
        at = call.end()
        arguments = {}
        while (argument := _ARGUMENT.match(text, at)) is not None:
            arguments[argument["name"]], at = _value(text, argument.end(), is_text=argument["string"] == "true")
        ended = _END.match(text, at)
        if ended is None:
            raise ValueError("a call has no end")
        at = ended.end()
        calls.append({"name": call["name"], "arguments": arguments})
    return calls


def _value(text: str, at: int, *, is_text: bool) -> tuple[Any, int]:
    """Return the value that begins at a place, and the place behind its closing tag."""
    if not is_text:
        space = _SPACE.match(text, at)
        try:
            value, end = _DECODER.raw_decode(text, space.end() if space else at)
        except json.JSONDecodeError:
            pass
        else:
            if closing := _SPACED_CLOSING.match(text, end):
                return value, closing.end()
    # Text, or what was to be JSON and is none.
    found = _CLOSING.search(text, at)
    if found is None:
        raise ValueError("a value has no end")
    return text[at : found.start()], found.end()
