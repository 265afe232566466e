"""How long a row may think: after so many tokens its thought is closed by force. Pure.

A function of the row's tokens alone, as a constraint is.
"""

from collections.abc import Sequence

from worker.text.markers import REASONING, Markers


class ThoughtLimit:
    """One row's. Follows the states of its text; counts the tokens of all its thoughts."""

    __slots__ = ("_closing", "_edges", "_longest", "_placed", "_raws", "_state", "_tail", "left")

    def __init__(
        self, budget: int, *, markers: Markers, state: str, closing: Sequence[int], raws: Sequence[bytes]
    ) -> None:
        """Begin in `state` of the text. `closing` are the tokens that end a thought, `raws` the bytes of each id."""
        self.left = budget
        """Tokens that it may still think."""
        self._edges = {
            name: [(text.encode(), target) for text, target in edges if text]
            for name, edges in markers.transitions.items()
        }
        self._longest = max((len(text) for edges in self._edges.values() for text, _ in edges), default=1)
        self._closing = closing
        self._raws = raws
        self._state = state
        self._tail = b""
        self._placed = 0

    @property
    def forced(self) -> int | None:
        """The only token that may come next; None: any."""
        if self._state != REASONING or self.left > 0 or self._placed == len(self._closing):
            return None
        return self._closing[self._placed]

    def take_token(self, token: int) -> None:
        """Take the next token of the row."""
        closing, before = self.forced is not None, self._state
        self._tail += self._raws[token] if token < len(self._raws) else b""
        while (found := self._first_edge()) is not None:
            end, self._state = found
            self._tail = self._tail[end:]
            self._placed = 0
        self._tail = self._tail[-self._longest :]
        if before == self._state == REASONING:
            if closing:
                self._placed += 1
            else:
                self.left -= 1

    def _first_edge(self) -> tuple[int, str] | None:
        """Return where the marker ends that completes first, and the state that it leads to."""
        ends = (
            (at + len(text), target)
            for text, target in self._edges.get(self._state, ())
            if (at := self._tail.find(text)) >= 0
        )
        return min(ends, default=None)
