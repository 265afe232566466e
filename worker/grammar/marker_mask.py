"""Markers that a model must not spell out: pieces of text that, put together, the text pipeline would act upon.

Inside an answer that follows a grammar, `<`, `tool_call` and `>` are text to the grammar and the start of a call to
the pipeline. What would complete a marker is therefore taken out of the mask.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Marker:
    """One marker: which tokens complete it, by how many of its bytes are there already."""

    def __init__(self, text: bytes, raws: Sequence[bytes], ignored: Collection[int]) -> None:
        """`raws` are the bytes of each token; `ignored` tokens are never text."""
        self.text = text
        ends = tuple(text[count:] for count in range(1, len(text)))
        found: list[list[int]] = [[] for _ in text]
        for token, raw in enumerate(raws):
            if token in ignored:
                continue
            if text in raw:
                found[0].append(token)
            if raw.startswith(ends):
                for count, end in enumerate(ends, start=1):
                    if raw.startswith(end):
                        found[count].append(token)
        self._completing: list[Ids] = [np.array(ids, dtype=np.int64) for ids in found]

    def completing_tokens(self, tail: bytes) -> Iterable[Ids]:
        """Yield ids of the tokens that would complete the marker behind `tail`."""
        if len(self._completing[0]):
            yield self._completing[0]
        for count in range(1, min(len(tail), len(self.text) - 1) + 1):
            if len(self._completing[count]) and tail.endswith(self.text[:count]):
                yield self._completing[count]


class MarkerMask:
    """Several markers, and the end of the text that each row has written."""

    def __init__(self, texts: Iterable[str], raws: Sequence[bytes], ignored: Collection[int]) -> None:
        self._markers = [Marker(text.encode(), raws, ignored) for text in texts]
        self.longest = max((len(marker.text) for marker in self._markers), default=1)

    def forbid_marker(self, mask: NDArray[np.uint32], tail: bytes) -> None:
        """Take out of `mask` `[words]` what would complete a marker behind `tail`."""
        for marker in self._markers:
            for ids in marker.completing_tokens(tail):
                np.bitwise_and.at(mask, ids >> 5, ~(np.uint32(1) << (ids & 31).astype(np.uint32)))
