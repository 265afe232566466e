"""Calls of DeepSeek V3.1: `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`, one or more in a block."""

import re
from typing import Any

from worker.text.tool_calls.fenced import read_fenced_calls

tool_call_start = "<｜tool▁calls▁begin｜>"
tool_call_end = "<｜tool▁calls▁end｜>"
SIGN = "<｜tool▁sep｜>"
"""What chat templates of these models and of V3 hold."""

_BEGIN = re.compile(r"\s*<｜tool▁call▁begin｜>\s*(?P<name>[^\s<]+)\s*<｜tool▁sep｜>")
_END = re.compile(r"\s*(?:<｜tool▁call▁end｜>\s*|\Z)")


def parse_tool_call(text: str, _tools: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the calls in a block. Raises `ValueError` for anything else."""
    return read_fenced_calls(text, _BEGIN, _END)
