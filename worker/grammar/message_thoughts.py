"""How long a row may think whose answer is messages (Harmony): see `ThoughtLimit`. Pure."""

from collections.abc import Mapping, Sequence

from worker.text.harmony import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START, read_header
from worker.text.markers import REASONING


class MessageThoughts:
    """One row's. Follows the headers of its messages; counts the tokens of all its thoughts."""

    __slots__ = ("_closing", "_controls", "_header", "_placed", "_raws", "_thinking", "left")

    def __init__(
        self,
        budget: int,
        *,
        controls: Mapping[int, str],
        opened: Sequence[int],
        closing: Sequence[int],
        raws: Sequence[bytes],
    ) -> None:
        """Begin behind `opened`, the message that the prompt leaves open. `closing` ends a thought."""
        self._controls = controls
        self._closing = closing
        self._raws = raws
        self._placed = 0
        self._thinking = False
        self._header: str | None = ""
        """What has come of a header; None: a message's text is being written."""
        self.left = budget
        """Tokens that it may still think."""
        for token in opened:
            self.take_token(token)
        self.left = budget

    @property
    def forced(self) -> int | None:
        """The only token that may come next; None: any."""
        if self._placed or (self._thinking and self.left <= 0):
            return self._closing[self._placed]
        return None

    def take_token(self, token: int) -> None:
        """Take the next token of the row."""
        if self.forced is not None:
            self._placed = (self._placed + 1) % len(self._closing)
        elif self._thinking:
            self.left -= 1
        name = self._controls.get(token)
        if name is None:
            if self._header is not None:
                self._header += self._raws[token].decode("utf-8", "replace") if token < len(self._raws) else ""
        elif self._header is None:
            if name in (*ENDS, START, CHANNEL):
                self._begin_header(name if name == CHANNEL else "")
        elif name == MESSAGE:
            header = read_header(self._header)
            self._thinking = header.state == REASONING and not header.is_call
            self._header = None
        elif name in (CHANNEL, CONSTRAIN):
            self._header += name
        else:
            self._begin_header("")

    def _begin_header(self, text: str) -> None:
        self._thinking = False
        self._header = text
