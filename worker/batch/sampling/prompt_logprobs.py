"""Log-probabilities of a prompt's own tokens, collected while it is prefilled."""

import math

import mlx.core as mx

from worker.batch.row import Logprobs
from worker.batch.sampling.sampler import likeliest_of

CHUNK_BYTES = 64_000_000
"""Of logits at once: of a prompt that is only read, none are computed."""


class PromptLogprobs:
    """Of one prompt: an entry for each of its tokens. The first follows nothing, so its log-probability is NaN."""

    def __init__(self, top: int, vocab_size: int) -> None:
        """`top` is how many alternatives each entry has."""
        self.found = [Logprobs(math.nan, [], [])]
        self.chunk = max(1, CHUNK_BYTES // (4 * vocab_size))
        """The most tokens of one forward pass."""
        self._top = top

    def add_logits(self, logits: mx.array, following: list[int]) -> None:
        """Take `logits` `[tokens, vocab]` and the tokens that came next. Evaluates."""
        logits = logits.astype(mx.float32)
        total = mx.logsumexp(logits, axis=-1, keepdims=True)
        own = (mx.take_along_axis(logits, mx.array(following)[:, None], axis=-1) - total)[:, 0]
        top, ids = likeliest_of(logits, max(1, self._top))
        top = top - total
        mx.eval(own, top, ids)
        for value, near, likely in zip(own.tolist(), ids.tolist(), top.tolist(), strict=True):
            self.found.append(Logprobs(value, near[: self._top], likely[: self._top]))
