"""The module behind a format of tool calls, by its name: ours where we have one, else mlx-lm's."""

import importlib
import importlib.util
from typing import Any


def parser_module(name: str) -> Any:
    """Return the module: markers and `parse_tool_call`."""
    own = f"worker.text.tool_calls.{name}"
    return importlib.import_module(own if importlib.util.find_spec(own) else f"mlx_lm.tool_parsers.{name}")
