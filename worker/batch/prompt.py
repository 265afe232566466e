"""A prompt on its way into a cohort: whose rows it is for, how far it is, what it has to wait for."""

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.images import Placeholder, PromptPart
from worker.batch.prompt_logprobs import PromptLogprobs
from worker.batch.row import Row
from worker.disk_cache.entry import Lookup


class Prompt:
    """Rows that share one prompt (the choices of one request), on their way into a cohort.

    With `scores`, all of it is computed, whatever is cached, and what it would have been is noted there.
    """

    __slots__ = ("cache", "cached", "covered", "fetch", "rows", "scores", "started_at")

    def __init__(self, rows: list[Row], scores: PromptLogprobs | None = None) -> None:
        self.rows = rows
        self.scores = scores
        self.cache: Cache | None = None
        self.covered = 0
        self.cached = 0
        self.fetch: Lookup | None = None
        """Being looked for on disk; nothing is computed before that is settled."""
        self.started_at: float | None = None
        if (scene := rows[0].scene) is not None:
            scene.add_reader()

    @property
    def adapter(self) -> str:
        """See `Row.adapter`."""
        return self.rows[0].adapter

    @property
    def unseen(self) -> Placeholder | None:
        """The picture that has to be looked at before more can be computed."""
        scene = self.rows[0].scene
        return scene.next_unencoded(self.covered) if scene and self.fetch is None else None

    @property
    def computable(self) -> bool:
        """Whether the next token can be computed now."""
        return self.fetch is None and self.unseen is None

    def next_part(self, count: int) -> PromptPart:
        """The next `count` tokens to compute."""
        return self.rows[0].part(self.covered, self.covered + count)

    def resume_from(self, cache: Cache, covered: int) -> None:
        """Go on behind what was found."""
        scene = self.rows[0].scene
        self.cache, self.covered, self.cached = cache, covered, covered
        # The row that left it there may have stood elsewhere, where pictures came behind what is shared.
        caches.place(cache, [covered + (scene.shift if scene else 0)])

    def release_images(self) -> None:
        """It is computed, or given up: what it showed is not needed any more."""
        if self.fetch is not None:
            self.fetch.drop()
        if (scene := self.rows[0].scene) is not None:
            scene.remove_reader()

    @property
    def left(self) -> int:
        """Tokens to prefill: all but the last, which the first decode step feeds."""
        return len(self.rows[0].tokens) - 1 - self.covered


def cache_of(prompt: Prompt) -> Cache:
    """Its cache, which it has once it was begun."""
    if prompt.cache is None:
        raise RuntimeError("a prompt was prefilled before it was begun")
    return prompt.cache
