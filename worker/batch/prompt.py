"""A prompt on its way into a cohort: whose rows it is for, how far it is, what it has to wait for."""

from typing import Any

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.images import Placeholder, PromptPart
from worker.batch.row import Row
from worker.batch.sampling.prompt_logprobs import PromptLogprobs
from worker.disk_cache.entry import Lookup


class Prompt:
    """Rows that share one prompt (the choices of one request), on their way into a cohort.

    With `scores`, all of it is computed, whatever is cached, and what it would have been is noted there.
    """

    __slots__ = ("cache", "cached", "covered", "lookup", "owner", "rows", "scores", "started_at")

    def __init__(self, rows: list[Row], scores: PromptLogprobs | None = None, owner: Any = None) -> None:
        self.rows = rows
        self.scores = scores
        self.owner = owner
        """Whoever asked for it; nothing here looks into that."""
        self.cache: Cache | None = None
        self.covered = 0
        self.cached = 0
        self.lookup: Lookup | None = None
        """Being looked for on disk; nothing is computed before that is settled."""
        self.started_at: float | None = None
        if (images := rows[0].images) is not None:
            images.add_reader()

    @property
    def adapter(self) -> str:
        """See `Row.adapter`."""
        return self.rows[0].adapter

    @property
    def unencoded_image(self) -> Placeholder | None:
        """The image that has to be encoded before more can be computed."""
        images = self.rows[0].images
        return images.next_unencoded(self.covered) if images and self.lookup is None else None

    @property
    def computable(self) -> bool:
        """Whether the next token can be computed now."""
        return self.lookup is None and self.unencoded_image is None

    def next_part(self, count: int) -> PromptPart:
        """Return the next `count` tokens to compute."""
        return self.rows[0].part(self.covered, self.covered + count)

    def resume_from(self, cache: Cache, covered: int) -> None:
        """Go on behind what was found."""
        images = self.rows[0].images
        self.cache, self.covered, self.cached = cache, covered, covered
        # The row that left it there may have stood elsewhere, where images came behind what is shared.
        caches.set_positions(cache, [covered + (images.shift if images else 0)])

    def release_images(self) -> None:
        """Let go of the images: the prompt is computed, or given up."""
        if self.lookup is not None:
            self.lookup.drop()
        if (images := self.rows[0].images) is not None:
            images.remove_reader()

    @property
    def left(self) -> int:
        """Tokens to prefill: all but the last, which the first decode step feeds."""
        return len(self.rows[0].tokens) - 1 - self.covered


def cache_of(prompt: Prompt) -> Cache:
    """Its cache, which it has once it was begun."""
    if prompt.cache is None:
        raise RuntimeError("a prompt was prefilled before it was begun")
    return prompt.cache
