"""The states of a model's output, compiled for search: which markers and stops end each, and what may begin one.

Knows strings only; what a match means is for `channels`.
"""

import re
from collections.abc import Callable, Sequence

from worker.text.markers import NORMAL, REASONING, TOOL, Markers

VISIBLE = (NORMAL, REASONING)


class Edge:
    """A text that ends a state. `target` None: a stop string."""

    __slots__ = ("first", "target", "text")

    def __init__(self, text: str, target: str | None) -> None:
        self.text = text
        self.first = text[0]
        self.target = target


class TextState:
    """One state and the texts that end it."""

    __slots__ = ("edges", "may_begin", "name")

    may_begin: Callable[[str], object | None]
    """Not None where a text contains the first character of an edge; the only check that most tokens pay."""

    def __init__(self, name: str, edges: Sequence[Edge]) -> None:
        self.name = name
        self.edges = tuple(edges)
        firsts = "".join(sorted({re.escape(edge.first) for edge in edges}))
        self.may_begin = re.compile(f"[{firsts}]").search if firsts else _never

    def first_match(self, text: str) -> tuple[int, Edge] | None:
        """Return where the edge that *completes* first begins, and the edge; of several the longest.

        That is the order in which an automaton fed one character at a time (mlx-lm's) finds them, so it
        does not depend on how the text was cut into tokens.
        """
        best: Edge | None = None
        best_start, best_end = 0, len(text)
        for edge in self.edges:
            start = text.find(edge.text, 0, best_end)
            if start < 0:
                continue
            end = start + len(edge.text)
            if best is None or end < best_end or start < best_start:
                best, best_start, best_end = edge, start, end
        return None if best is None else (best_start, best)

    def certain_length(self, text: str) -> int:
        """Return how much of a text without a match can no longer be part of one; the rest has to wait."""
        size = keep = len(text)
        for edge in self.edges:
            pattern, first = edge.text, edge.first
            at = text.find(first, max(0, size - len(pattern) + 1), keep)
            while at >= 0:
                if pattern.startswith(text[at:]):
                    keep = at
                    break
                at = text.find(first, at + 1, keep)
        return keep


def _never(_: str) -> None:
    return None


def compile_states(markers: Markers, *, stop: Sequence[str], tools: bool, initial: str) -> dict[str, TextState]:
    """Return every state that can be reached, by name.

    Stops end content only: a stop such as a newline would cut every tool call in half, and most thoughts before
    anything is answered. A stop equal to a marker wins over it. Without `tools`, tool markers are
    plain text.
    """
    names = {NORMAL, initial, *markers.transitions}
    names.update(target for edges in markers.transitions.values() for _, target in edges)
    states = {}
    for name in names:
        visible = name in VISIBLE
        texts: dict[str, str | None] = {
            # Text behind a tool marker in a header would be swallowed: without tools it is content.
            text: NORMAL if target == TOOL and not tools else target
            for text, target in markers.transitions.get(name, ())
            if tools or target != TOOL or not visible
        }
        if name == NORMAL:
            texts.update(dict.fromkeys(stop))
        states[name] = TextState(name, [Edge(text, target) for text, target in texts.items() if text])
    return states
