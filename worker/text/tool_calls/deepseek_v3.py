"""Calls of DeepSeek V3 and R1: a type, a name, and arguments as a block of code; one or more in a block of calls."""

import re
from typing import Any

from worker.text.tool_calls.fenced import read_fenced_calls

tool_call_start = "<｜tool▁calls▁begin｜>"
tool_call_end = "<｜tool▁calls▁end｜>"
SIGN = "```json"
"""What tells chat templates of these models from V3.1's."""

_BEGIN = re.compile(r"\s*<｜tool▁call▁begin｜>\s*\w+\s*<｜tool▁sep｜>\s*(?P<name>[^\s<`]+)\s*```(?:json)?")
_END = re.compile(r"\s*```\s*(?:<｜tool▁call▁end｜>\s*|\Z)")


def parse_tool_call(text: str, _tools: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the calls in a block. Raises `ValueError` for anything else."""
    return read_fenced_calls(text, _BEGIN, _END)
