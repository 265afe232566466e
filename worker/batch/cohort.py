"""A cohort: rows of similar length that share one cache and one forward pass a step.

Its decode step runs one token ahead of the host: the next tokens are being computed while those before them are
turned into text. What rows that follow a grammar may say next depends on the token before: their masks are computed
while the device computes the logits, and the choice is launched behind that. A model whose caches do not merge has
cohorts of one row.
"""

from typing import Any

import mlx.core as mx

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.row import Emission, Row
from worker.batch.sampling.sampler import History, Mask, Pick, Sampler
from worker.grammar.masks import Masks


class Cohort:
    """Rows in cache order. The cache is a plain one for one row, a batched one for more.

    A plain one needs no mask and no array of offsets: fewer operations for a single stream. All rows have the
    adapter of the first.
    """

    def __init__(
        self, *, model: Any, vocab_size: int, cache: Cache, rows: list[Row], following: Pick | None = None
    ) -> None:
        """`cache` holds all tokens of the rows but the last, or all where the `following` ones are known."""
        self.adapter = rows[0].adapter
        self._model = model
        self._vocab_size = vocab_size
        self.cache = cache
        self.rows = rows
        self._next: Pick | None = following or Pick(_last_tokens(rows))
        self._fed: tuple[Pick, list[Row]] | None = None
        self._logits: mx.array | None = None
        self._history = History.joined(None, [], rows, vocab_size) if rows else None
        self._renew()

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def ended(self) -> bool:
        """Whether its last tokens have been launched: it computes nothing more, and nobody may join."""
        return self._next is None

    def launch_step(self) -> None:
        """Start computing each row's next token; returns before it is known."""
        fed = self._next
        if fed is None:
            raise RuntimeError("a cohort with nothing to feed was launched")
        # Rows may join between launch and collect: what was fed goes with who was here.
        self._fed = (fed, self.rows)
        if all(row.fresh and row.position + 1 >= row.limit for row in self.rows):
            # Every row ends with the token that is known already: there is nothing to compute.
            self._next = None
            return
        logits = self._model(fed.tokens[:, None], cache=self.cache)[:, -1, :]
        if self._constrained:
            mx.async_eval(logits)
            self._logits = logits
            return
        self._next = self._sampler.sample_rows(logits, fed.tokens)
        mx.async_eval(self._next.arrays())

    def apply_masks(self, masks: Masks) -> None:
        """Choose for what `launch` began, where a grammar rules. Waits for the tokens that were fed, not for logits."""
        if not self._constrained or self._fed is None:
            return
        fed, rows = self._fed
        constraints = []
        for index, token in enumerate(fed.tokens.tolist()):
            row = rows[index]
            if row.constraint is not None:
                if row.fresh:
                    row.constraint.advance_tokens(token)
                constraints.append(row.constraint)
        limited, words = masks.compute_masks(constraints)
        if self._logits is None:
            return
        logits, self._logits = self._logits, None
        mask = Mask([self._constrained[place] for place in limited], words) if limited else None
        self._next = self._sampler.sample_rows(logits, fed.tokens, mask)
        mx.async_eval(self._next.arrays())

    def collect_tokens(self) -> list[Emission]:
        """Return the tokens that the last `launch_step` fed, of rows that generated them; wait for them only."""
        if self._fed is None:
            return []
        (fed, rows), self._fed = self._fed, None
        tokens = fed.tokens.tolist()
        logprobs = fed.read_logprobs(rows)
        broken = fed.find_broken() or [False] * len(rows)
        emissions = []
        for index, row in enumerate(rows):
            if row.fresh:
                token = tokens[index]
                row.tokens.append(token)
                row.position += 1
                emissions.append(Emission(row, token, logprobs.get(index), broken[index]))
            row.fresh = True
        return emissions

    def collect_last(self) -> list[Emission]:
        """Of one row: the token that is chosen, but was not collected; waits for it. None where nothing was fed."""
        (row,) = self.rows
        if self._next is None or not row.fresh:
            return []
        broken = any(self._next.find_broken())
        return [Emission(row, int(self._next.tokens[0].item()), self._next.read_logprobs(self.rows).get(0), broken)]

    def count_cached(self, row: Row) -> int:
        """Return how many of the row's tokens its cache holds, between steps."""
        return len(row.tokens) - (1 if self._next is None else 0)

    def copy_out(self, row: Row) -> Cache:
        """Return the row's own cache, to be kept. Only between steps."""
        if len(self.rows) == 1:
            return caches.duplicate(self.cache)
        return caches.extract(self.cache, self.rows.index(row))

    def remove_rows(self, rows: set[int]) -> bool:
        """Take out the rows whose `id` is in `rows`; whether any are left."""
        keep = [index for index, row in enumerate(self.rows) if id(row) not in rows]
        if len(keep) == len(self.rows):
            return True
        self.rows = [self.rows[index] for index in keep]
        if not keep or self._next is None:
            return False
        if len(keep) == 1:
            self.cache = caches.extract(self.cache, keep[0])
        else:
            caches.filter_rows(self.cache, keep)
        self._next = self._next.select_rows(keep)
        if self._history is not None:
            self._history = self._history.select_rows(self.rows, keep)
        self._renew()
        return True

    def join_rows(self, cache: Cache, rows: list[Row]) -> None:
        """Let rows in that have just been prefilled: all of their tokens but the last are in `cache` (as above)."""
        if self._next is None:
            raise RuntimeError("rows joined a cohort that has ended")
        self.cache = _batched(self.cache, self.rows)
        caches.extend(self.cache, _batched(cache, rows))
        self._next = self._next.followed_by(_last_tokens(rows))
        self._history = History.joined(self._history, self.rows, rows, self._vocab_size)
        self.rows = self.rows + rows
        self._renew()

    def _renew(self) -> None:
        self._sampler = Sampler(self.rows, self._vocab_size, self._history)
        self._constrained = [index for index, row in enumerate(self.rows) if row.constraint is not None]


def _batched(cache: Cache, rows: list[Row]) -> Cache:
    return caches.merge([cache]) if len(rows) == 1 else cache


def _last_tokens(rows: list[Row]) -> mx.array:
    return mx.array([row.tokens[-1] for row in rows], dtype=mx.uint32)
