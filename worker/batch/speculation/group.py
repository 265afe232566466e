"""Speculative decoding: a row alone in its batch, whose next tokens a small model proposes and its own model checks.

A round is one pass of the model over what was proposed. Every position is sampled as if it were reached step by step,
with the row's own parameters and draws, and what was proposed counts as far as it is the same. So proposals decide how
fast the answer comes, never what it is.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from worker.batch import caches
from worker.batch.caches import Cache
from worker.batch.cohort import Cohort
from worker.batch.row import Emission, Row
from worker.batch.sampling.sampler import History, Pick, Sampler
from worker.grammar.masks import Masks

SMOOTHING = 0.1


class DraftModelState:
    """The small model's side of one row: its cache, which holds the first `size` of the row's tokens."""

    def __init__(self, model: Any, vocab_size: int, cache: Cache, size: int) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self.cache = cache
        self.size = size

    def feed_tokens(self, tokens: mx.array) -> mx.array:
        """Logits `[1, vocab]` (of its own vocabulary) behind `tokens` `[n]`; nothing is evaluated."""
        # A model may have room for tokens that its small sister lacks; what it proposes behind one is only a guess.
        known = mx.minimum(tokens, self._vocab_size - 1)
        self.size += tokens.shape[0]
        logits: mx.array = self._model(known[None], cache=self.cache)[:, -1, :]
        return logits

    def trim_tokens(self, count: int) -> None:
        """Forget the last tokens."""
        caches.trim(self.cache, self.size - count, self.size)
        self.size -= count


class _Round(msgspec.Struct, frozen=True):
    """On its way: what was proposed behind the last token that is certain, and what the model says at each place."""

    proposed: list[mx.array]
    pick: Pick


class SpeculativeGroup:
    """One row in place of a `Cohort`, with what that can do. Tells a token a step, however many are certain."""

    def __init__(
        self,
        *,
        model: Any,
        vocab_size: int,
        cohort: Cohort,
        draft: DraftModelState,
        count: int,
        on_round: Callable[[int, int], None],
    ) -> None:
        """Take over a cohort of one row. `on_round` hears of every round: tokens proposed, tokens accepted."""
        self.rows = cohort.rows
        self.cache = cohort.cache
        self.draft = draft
        self.rate = float(count + 1)
        """Tokens that a round gives, of late."""
        self.rounds = 0
        self._model = model
        self._vocab_size = vocab_size
        self._count = count
        self._on_round = on_round
        self._row = row = cohort.rows[0]
        self._known: deque[Emission] = deque(cohort.collect_last())
        self._round: _Round | None = None
        # What of its tokens is generated is counted here; nothing is in flight as in a cohort.
        row.fresh = False
        self._history = History.of([row], vocab_size) if row.sampling.penalised else None
        self._count_said([emission.token for emission in self._known])
        self._guesses = Sampler([row], vocab_size, self._history, exact=False)

    @property
    def certain(self) -> int:
        """How many tokens of the row are known, told or not."""
        return len(self._row.tokens) + len(self._known)

    def launch_step(self) -> None:
        """Start a round, unless one is on its way or nothing is left to compute."""
        row = self._row
        position = row.position + len(self._known)
        if self._round is not None or position >= row.limit:
            return
        count = min(self._count, row.limit - position - 1)
        last = mx.array([self._tokens(self.certain - 1)[0]], dtype=mx.uint32)
        proposed = self._propose(count, position)
        fed = mx.concatenate([last, *proposed])
        logits = self._model(fed[None], cache=self.cache)[0]
        checks = Sampler([row] * (count + 1), self._vocab_size, self._histories(proposed))
        pick = checks.sample_rows(logits, fed, positions=np.arange(position, position + count + 1, dtype=np.uint64))
        self._round = _Round(proposed, pick)
        mx.async_eval(*proposed, *pick.arrays())

    def apply_masks(self, _masks: Masks) -> None:
        """Rows under a grammar are not drafted."""

    def collect_tokens(self) -> list[Emission]:
        """Return the next token that is certain; wait for a round only where there is none."""
        if not self._known:
            self._settle()
        if not self._known:
            return []
        emission = self._known.popleft()
        self._row.tokens.append(emission.token)
        self._row.position += 1
        return [emission]

    def count_cached(self, row: Row) -> int:
        """Return how many of the row's told tokens its cache holds."""
        return len(row.tokens) - (0 if self._known or self._round else 1)

    def copy_out(self, row: Row) -> Cache:
        """Return the row's own cache, to be kept, with just what `count_cached` says."""
        held = self.certain - 1 + (1 + len(self._round.proposed) if self._round else 0)
        cache = caches.duplicate(self.cache)
        caches.trim(cache, self.count_cached(row), held)
        return cache

    def remove_rows(self, rows: set[int]) -> bool:
        """Return whether the row stays."""
        return id(self._row) not in rows

    def to_cohort(self) -> Cohort:
        """Return the row as a cohort that others can join.

        What is certain but not told is computed again, all but a token.
        """
        self._settle()
        row = self._row
        following = None
        if self._known:
            following = Pick.of(self._known[0])
            caches.trim(self.cache, len(row.tokens), self.certain - 1)
            row.fresh = True
        if (spare := self.draft.size - len(row.tokens)) > 0:
            self.draft.trim_tokens(spare)
        return Cohort(
            model=self._model, vocab_size=self._vocab_size, cache=self.cache, rows=self.rows, following=following
        )

    def _propose(self, count: int, position: int) -> list[mx.array]:
        """Return the draft's next `count` tokens `[1]` each, sampled as the row samples, with the row's own draws."""
        proposed: list[mx.array] = []
        if not count:
            return proposed
        feed = mx.array(self._tokens(self.draft.size), dtype=mx.uint32)
        history = self._history
        said = history.generated if history else None
        for ahead in range(count):
            logits = fitted(self.draft.feed_tokens(feed), self._vocab_size)
            places = np.array([position + ahead], dtype=np.uint64)
            feed = self._guesses.sample_rows(logits, feed[-1:], positions=places).tokens
            proposed.append(feed)
            if history is not None:
                history.generated = history.generated.at[mx.array([0]), feed].add(1.0)
        if history is not None and said is not None:
            history.generated = said
        return proposed

    def _histories(self, proposed: list[mx.array]) -> History | None:
        """Return what has been said at each place of a round."""
        if self._history is None:
            return None
        said = [self._history.generated]
        for token in proposed:
            said.append(said[-1].at[mx.array([0]), token].add(1.0))
        rows = [self._row] * len(said)
        return History(rows, mx.concatenate(said), mx.repeat(self._history.prompt, len(said), axis=0))

    def _settle(self) -> None:
        """Wait for the round; keep what is certain, forget the rest."""
        if self._round is None:
            return
        (proposed, pick), self._round = (self._round.proposed, self._round.pick), None
        chosen: list[int] = pick.tokens.tolist()
        guesses = [int(token.item()) for token in proposed]
        accepted = next((at for at, guess in enumerate(guesses) if guess != chosen[at]), len(guesses))
        before = self.certain
        logprobs, broken = pick.read_logprobs([self._row] * len(chosen)), pick.find_broken()
        self._known += [Emission(self._row, chosen[at], logprobs.get(at), broken[at]) for at in range(accepted + 1)]
        self._count_said(chosen[: accepted + 1])
        caches.trim(self.cache, before + accepted, before + len(guesses))
        if (spare := self.draft.size - (before + accepted)) > 0:
            self.draft.trim_tokens(spare)
        self.rounds += 1
        self.rate += max(SMOOTHING, 1 / self.rounds) * (accepted + 1 - self.rate)
        self._on_round(len(guesses), accepted)

    def _count_said(self, tokens: list[int]) -> None:
        if self._history is not None and tokens:
            said = np.zeros((1, self._vocab_size), dtype=np.float32)
            np.add.at(said[0], tokens, 1.0)
            self._history.generated = self._history.generated + mx.array(said)

    def _tokens(self, start: int) -> list[int]:
        """All certain tokens from that place on."""
        told = self._row.tokens
        untold = [emission.token for emission in self._known]
        return told[start:] + untold[max(0, start - len(told)) :]


def fitted(logits: mx.array, vocab_size: int) -> mx.array:
    """Logits over another vocabulary's size: some families pad theirs differently from model to model."""
    missing = vocab_size - logits.shape[-1]
    if missing > 0:
        return mx.pad(logits, [(0, 0), (0, missing)], constant_values=-float("inf"))
    return logits[:, :vocab_size]
