"""When a draft model is asked: for a row that is alone, once the small model has read what it has, while it pays."""

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from worker.batch import caches
from worker.batch.cohort import Cohort
from worker.batch.prefix import PrefixCache
from worker.batch.row import Row
from worker.batch.row_group import RowGroup
from worker.batch.speculation.group import DraftModelState, SpeculativeGroup

CHUNK, NEAR = 256, 64
"""Tokens that the small model reads beside a step, and how far behind it may begin."""
TRIAL = 8
"""Rounds before a row is judged."""
REST = 128
"""Tokens that a row does without a draft where that did not pay."""


class SpeculationPolicy:
    """One draft model, for any row of one batch. `proposed` and `accepted` count tokens since the start."""

    def __init__(
        self,
        *,
        model: Any,
        own_vocab_size: int,
        vocab_size: int,
        count: int,
        prefix: PrefixCache,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`own_vocab_size` is the small model's, `count` how many tokens it proposes at a time."""
        self._model = model
        self._own_vocab_size = own_vocab_size
        self._vocab_size = vocab_size
        self._count = count
        self.prefixes = prefix
        self._clock = clock
        self._draft: tuple[Row, DraftModelState] | None = None
        self._resting: tuple[Row, int] | None = None
        self.break_even = 0.0
        """Tokens that a round must give to be worth its time."""
        self.proposed = 0
        self.accepted = 0

    def clear_caches(self) -> None:
        """Drop what was kept of earlier rows."""
        self.prefixes.clear()

    def measure_rounds(self, model: Any) -> None:
        """Find out how many plain steps of `model` a round takes."""
        cache, own = caches.new(model), caches.new(self._model)
        token, tokens = mx.zeros((1, 1), dtype=mx.int32), mx.zeros((1, self._count + 1), dtype=mx.int32)

        def plain() -> mx.array:
            chosen: mx.array = mx.argmax(model(token, cache=cache)[:, -1], axis=-1)
            return chosen

        def group() -> mx.array:
            guesses = [mx.argmax(self._model(token, cache=own)[:, -1], axis=-1) for _ in range(self._count)]
            chosen: mx.array = mx.argmax(model(tokens, cache=cache), axis=-1)
            return mx.concatenate([*guesses, chosen[0]])

        steps = [(self._timed(plain), self._timed(group)) for _ in range(9)]
        # The quickest: others may want the machine while this loads, and what is found here holds for good.
        self.break_even = min(second for _, second in steps) / min(first for first, _ in steps)

    def arrange_groups(self, model: Callable[[Row], Any], groups: list[RowGroup]) -> list[RowGroup]:
        """Between steps: the same rows, group or not. `model` answers a row's own."""
        if len(groups) != 1:
            return groups
        (one,) = groups
        row = one.rows[0]
        if isinstance(one, SpeculativeGroup):
            if one.rounds >= TRIAL and one.rate < self.break_even:
                self._resting = (row, row.position + REST)
                return [self.release_group(one)]
            return groups if self._fits(one) else [self.release_group(one)]
        if not isinstance(one, Cohort) or one.ended or len(one.rows) > 1 or not self._may(row) or not self._fits(one):
            return groups
        draft = self._caught_up(row)
        if draft is None:
            return groups
        return [
            SpeculativeGroup(
                model=model(row),
                vocab_size=self._vocab_size,
                cohort=one,
                draft=draft,
                count=self._count,
                on_round=self._count_round,
            )
        ]

    def release_group(self, group: SpeculativeGroup) -> Cohort:
        """Return the row as a plain cohort; the small model goes on where it is, should the row be alone again."""
        self._draft = (group.rows[0], group.draft)
        return group.to_cohort()

    def store_caches(self, group: SpeculativeGroup) -> None:
        """Keep what the small model has read of a row that is done: it may serve the next turn."""
        row, draft = group.rows[0], group.draft
        size = min(draft.size, len(row.tokens))
        if caches.trim(draft.cache, size, draft.size):
            self.prefixes.store_prefix(row.tenant, row.key[:size], draft.cache)

    def _may(self, row: Row) -> bool:
        """Return whether the row is one of those that can gain."""
        if row.constraint is not None or row.images is not None or self.break_even > self._count + 1:
            return False
        rested, until = self._resting or (None, 0)
        return rested is not row or row.position >= until

    def _fits(self, one: RowGroup) -> bool:
        """Return whether what is proposed can still be taken back: a window that has come round forgets nothing."""
        return len(one.rows[0].tokens) + 2 * (self._count + 1) < caches.room(one.cache)

    def _caught_up(self, row: Row) -> DraftModelState | None:
        """Return the small model's side of the row; None while it has more to read than one round can take along."""
        known, draft = self._draft or (None, None)
        if known is not row or draft is None:
            cache, size = self.prefixes.find_nearest(row.tenant, row.key)
            draft = DraftModelState(self._model, self._own_vocab_size, cache or caches.new(self._model), size)
            self._draft = (row, draft)
        left = len(row.tokens) - draft.size
        if left > NEAR:
            start = draft.size
            draft.feed_tokens(mx.array(row.tokens[start : start + min(CHUNK, left - 1)], dtype=mx.uint32))
            mx.async_eval(caches.state(draft.cache))
            return None
        if len(row.tokens) + 2 * (self._count + 1) >= caches.room(draft.cache):
            return None
        self._draft = None
        return draft

    def _timed(self, work: Callable[[], mx.array]) -> float:
        began = self._clock()
        mx.eval(work())
        return self._clock() - began

    def _count_round(self, proposed: int, accepted: int) -> None:
        self.proposed += proposed
        self.accepted += accepted
