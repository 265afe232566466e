"""One row of a batch: the tokens it knows, what it may still do, how it samples. Plain data."""

from typing import Any

import msgspec

from worker.batch.images import PromptImages, PromptPart
from worker.grammar.constraint import Constraint


class RowSampling(msgspec.Struct, frozen=True, kw_only=True):
    """A row's sampling with every default resolved. `top_k` 0 and `min_p` 0 are off; `key` is from `random.row_key`.

    None of its `ends` comes within its first `min_tokens` tokens.
    """

    key: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < 1e-5 or self.top_k == 1

    @property
    def filtered(self) -> bool:
        """Whether only some of the vocabulary may be drawn from."""
        return not self.greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens weigh on the next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


class Row:
    """A row from its prompt to its last token.

    `tokens` starts as the prompt (with tokens that an earlier attempt delivered) and grows; `position` counts the
    generated ones, delivered ones included; `limit` is the position at which the row ends by length. `images` is what
    the prompt shows, if it shows anything.
    """

    __slots__ = (
        "_keyed",
        "adapter",
        "constraint",
        "fresh",
        "images",
        "limit",
        "owner",
        "position",
        "prompt_size",
        "sampling",
        "tenant",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        *,
        owner: Any,
        tenant: str,
        prompt: list[int],
        delivered: list[int],
        limit: int,
        sampling: RowSampling,
        images: PromptImages | None = None,
        constraint: Constraint | None = None,
        adapter: str = "",
    ) -> None:
        self.owner = owner
        self.tenant = tenant
        self.tokens = prompt + delivered
        self.prompt_size = len(prompt)
        self.position = len(delivered)
        self.limit = limit
        self.sampling = sampling
        self.images = images
        self._keyed = images.keyed_tokens(prompt) if images else None
        self.constraint = constraint
        """What it may say; brought behind `delivered`."""
        self.adapter = adapter
        """Which of the batch's models computes it; empty: the bare one."""
        self.fresh = False
        """Whether the token that the row feeds next was generated here, and so still has to be told."""

    @property
    def key(self) -> list[int]:
        """The tokens as the prefix cache knows them: those of an image by what it shows."""
        return self.tokens if self._keyed is None else self._keyed + self.tokens[self.prompt_size :]

    def part(self, start: int, end: int) -> PromptPart:
        """Return some of its tokens, to be computed."""
        return PromptPart(self.tokens[start:end], start, self.images)


class Logprobs(msgspec.Struct, frozen=True, gc=False):
    """Log-probabilities (nats) of one generated token: its own, and the likeliest alternatives, best first."""

    own: float
    top_ids: list[int]
    top: list[float]


class Emission(msgspec.Struct, frozen=True, gc=False):
    """One token that a step made certain; `broken`: what it was chosen from were no numbers."""

    row: Row
    token: int
    logprobs: Logprobs | None
    broken: bool = False
