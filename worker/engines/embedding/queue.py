"""Which inputs are computed next: those of all jobs, in turn, up to a budget of tokens. Pure; knows no model.

Every job that waits has a text in the next batch, as far as the budget reaches, and who was left out comes first in the
one after: a job of thousands of texts holds nobody up.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray


class QueuedImage(msgspec.Struct, frozen=True):
    """An image as a model takes it: RGB, shape (height, width, 3), and how many patches it is cut into."""

    pixels: NDArray[np.uint8]
    patches: int


class QueuedText(msgspec.Struct, frozen=True):
    """One input of one job: token ids, an image, or both.

    `skip` leading tokens are computed but not pooled; `least` is the length that a shorter text is computed at.
    """

    job: int
    index: int
    tokens: list[int]
    skip: int = 0
    image: QueuedImage | None = None
    least: int = 0

    @property
    def size(self) -> int:
        """What it costs, in tokens: a patch of an image is computed as a token is."""
        read = max(len(self.tokens), self.least) if self.tokens else 0
        return read + (self.image.patches if self.image else 0)


class _JobTexts:
    """The texts of a job that are still to be computed: longest first, taken from the front."""

    __slots__ = ("at", "limit", "served", "texts")

    def __init__(self, texts: Sequence[QueuedText], limit: int | None) -> None:
        # Longest first: what does not fit memory shows at once, and neighbours in line have similar lengths.
        self.texts = sorted(texts, key=lambda text: -text.size)
        self.at = 0
        self.limit = limit
        self.served = -1


class TextQueue:
    """Texts of all jobs in flight."""

    def __init__(self) -> None:
        self._lines: dict[int, _JobTexts] = {}
        self._batch = 0

    def __len__(self) -> int:
        return sum(len(line.texts) - line.at for line in self._lines.values())

    def add_job(self, job: int, texts: Sequence[QueuedText], *, limit: int | None) -> None:
        """Queue a job's texts; at most `limit` of them are computed together."""
        self._lines[job] = _JobTexts(texts, limit)

    def remove_job(self, job: int) -> bool:
        """Forget a job. False if nothing of it waits."""
        return self._lines.pop(job, None) is not None

    def take_batch(self, budget: int) -> list[QueuedText]:
        """Return the next batch: at most `budget` tokens, but at least one text where any waits."""
        self._batch += 1
        turns = [line for _, line in sorted(self._lines.items(), key=lambda item: (item[1].served, item[0]))]
        taken: list[QueuedText] = []
        left = budget
        while turns:
            again = []
            for line in turns:
                text = line.texts[line.at]
                if text.size > left and taken:
                    continue
                taken.append(text)
                left -= text.size
                line.at += 1
                line.served = self._batch
                if line.at < len(line.texts):
                    again.append(line)
            turns = again
        self._lines = {job: line for job, line in self._lines.items() if line.at < len(line.texts)}
        return taken


def groups(texts: Sequence[QueuedText], *, limits: dict[int, int], spare: float, budget: int) -> list[list[QueuedText]]:
    """Cut a batch into forward passes of similar lengths.

    `spare` is what a pass costs besides its tokens, in tokens: so much padding, and no more, is cheaper than another
    pass. 0: sizes must be equal. `limits` says for some jobs how many texts may be together; no pass has more than
    `budget` tokens, padding included.
    """
    found: list[list[QueuedText]] = []
    longest = most = padding = 0
    for text in sorted(texts, key=lambda text: -text.size):
        limit = limits.get(text.job, len(texts))
        group = found[-1] if found else []
        more = longest - text.size
        fits = len(group) < min(most, limit) and padding + more <= spare
        if group and fits and (len(group) + 1) * longest <= budget:
            group.append(text)
            most = min(most, limit)
            padding += more
        else:
            found.append([text])
            longest, most, padding = text.size, limit, 0
    return found
