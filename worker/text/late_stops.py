"""Text whose stop strings count only behind its first tokens: `min_tokens` of the request."""

from collections.abc import Sequence
from typing import Any

from worker.text.channels import ChannelText
from worker.text.harmony import HarmonyText


class LateStops:
    """One choice that no stop string ends within its first `min_tokens` tokens.

    A stop string of which a part was said before is text. Goes before the class of the text.
    """

    start_stops: Any

    def __init__(self, *, stop: Sequence[str], min_tokens: int, **fields: Any) -> None:
        """`fields` are those of the text."""
        # What is fed meanwhile is the prompt's.
        self._early = 0
        super().__init__(stop=(), **fields)  # type: ignore[call-arg]
        self._later = stop
        self._early = min_tokens

    def feed_token(self, token: int) -> None:
        """Add one generated token; see `ChannelText`."""
        super().feed_token(token)  # type: ignore[misc]
        if self._early:
            self._early -= 1
            if not self._early:
                self.start_stops(self._later)


class LateStopText(LateStops, ChannelText):
    """See `ChannelText`."""


class LateHarmonyText(LateStops, HarmonyText):
    """See `HarmonyText`."""
