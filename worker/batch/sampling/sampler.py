"""The fused sampler: one set of array operations picks the next token of every row, each with its own parameters.

The order is: logit bias, penalties, ends that come too early, grammar, temperature, top-k, top-p (of what top-k left),
min-p. What no row of the batch asks for is not computed. Only tokens are drawn here; nothing is evaluated unless a
nucleus turns out wider than the candidates that were looked at.
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.batch.row import Emission, Logprobs, Row
from worker.batch.sampling.random import uniforms

FEW, MANY = 64, 256
"""How many likeliest tokens are looked at before the whole vocabulary is (steps, so that shapes repeat)."""


class Mask(msgspec.Struct, frozen=True):
    """What some rows may choose from: a bit for each token, `words` `[rows, ceil(vocab / 32)]`."""

    rows: list[int]
    words: NDArray[np.uint32]

    def mask_logits(self, logits: mx.array) -> mx.array:
        """`logits` `[all rows, vocab]` with all but the allowed ones at minus infinity."""
        bits = mx.array(self.words)[:, :, None] >> mx.arange(32, dtype=mx.uint32)
        allowed = (bits & 1).astype(mx.bool_).reshape(len(self.rows), -1)[:, : logits.shape[-1]]
        if len(self.rows) == logits.shape[0]:
            return mx.where(allowed, logits, -mx.inf)
        index = mx.array(self.rows)
        # A slice is an array of its own: what is written to it leaves `logits` as they were, for log-probabilities.
        masked = logits[:]
        masked[index] = mx.where(allowed, logits[index], -mx.inf)
        return masked


class Pick(msgspec.Struct, frozen=True):
    """The outcome of one step, unevaluated. `tokens` is `[rows]`; `own` and `top` cover the rows in `asked` only.

    `logits` `[rows]` are the model's own of the tokens: no numbers where the model can't go on.
    """

    tokens: mx.array
    asked: list[int] = []
    own: mx.array | None = None
    top_ids: mx.array | None = None
    top: mx.array | None = None
    logits: mx.array | None = None

    @classmethod
    def of(cls, emission: Emission) -> "Pick":
        """Return the outcome for one row, once more."""
        tokens, found = mx.array([emission.token], dtype=mx.uint32), emission.logprobs
        if found is None:
            return cls(tokens)
        # Nobody may have asked for alternatives; an array must not be empty.
        return cls(tokens, [0], mx.array([found.own]), mx.array([found.top_ids or [0]]), mx.array([found.top or [0.0]]))

    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        return [array for array in (self.tokens, self.own, self.top_ids, self.top, self.logits) if array is not None]

    def select_rows(self, rows: list[int]) -> "Pick":
        """Return the same for some of the rows, in their order."""
        index = mx.array(rows)
        tokens, logits = self.tokens[index], None if self.logits is None else self.logits[index]
        if self.own is None or self.top_ids is None or self.top is None:
            return Pick(tokens, logits=logits)
        places = {row: place for place, row in enumerate(self.asked)}
        asked = [index for index, row in enumerate(rows) if row in places]
        if not asked:
            return Pick(tokens, logits=logits)
        chosen = mx.array([places[rows[index]] for index in asked])
        return Pick(tokens, asked, self.own[chosen], self.top_ids[chosen], self.top[chosen], logits)

    def followed_by(self, tokens: mx.array) -> "Pick":
        """With the tokens of rows that join behind."""
        logits = self.logits
        if logits is not None:
            logits = mx.concatenate([logits, mx.zeros(tokens.shape, dtype=logits.dtype)])
        return msgspec.structs.replace(self, tokens=mx.concatenate([self.tokens, tokens]), logits=logits)

    def find_broken(self) -> list[bool]:
        """Return for each row whether its logits are no finite numbers; evaluates. Empty: no row's are known."""
        # Minus infinity is what some models give tokens that are none; a grammar may leave nothing else.
        return [] if self.logits is None else [not logit < math.inf for logit in self.logits.tolist()]

    def read_logprobs(self, rows: Sequence[Row]) -> dict[int, Logprobs]:
        """Per row index; evaluates."""
        if self.own is None or self.top_ids is None or self.top is None:
            return {}
        own, ids, top = self.own.tolist(), self.top_ids.tolist(), self.top.tolist()
        found = {}
        for place, index in enumerate(self.asked):
            count = rows[index].sampling.logprobs or 0
            found[index] = Logprobs(own[place], ids[place][:count], top[place][:count])
        return found


class Sampler:
    """The sampling parameters of a fixed list of rows, as vectors. Made anew when the rows change.

    One that is not `exact` takes a nucleus that is too wide for the candidates as wide as they are, without a look.
    """

    def __init__(self, rows: Sequence[Row], vocab_size: int, history: "History | None", *, exact: bool = True) -> None:
        sampling = [row.sampling for row in rows]
        self._rows = rows
        self._vocab_size = vocab_size
        self._exact = exact
        self.history = history
        self._sampled = any(not s.greedy for s in sampling)
        self._unfiltered = any(not s.greedy and not s.filtered for s in sampling)
        self._asked = [i for i, s in enumerate(sampling) if s.logprobs is not None]
        self._asked_top = max((s.logprobs or 0 for s in sampling), default=0)
        self._bias = _bias(rows, vocab_size)
        self._kept_going = [i for i, row in enumerate(rows) if row.position < row.sampling.min_tokens]
        if self._kept_going:
            self._ends = _ends(rows, vocab_size)
        if not self._sampled:
            return
        self._keys = np.array([s.key for s in sampling], dtype=np.uint64)
        self._greedy = mx.array([s.greedy for s in sampling])
        self._filtered = mx.array([s.filtered for s in sampling])
        self._inverse_temperature = _column([1.0 if s.greedy else 1.0 / s.temperature for s in sampling])
        filtered = [s for s in sampling if s.filtered]
        # A row without top-k can need any number of candidates: its nucleus is checked, see `_nucleus`.
        self._open = any(s.top_k == 0 for s in filtered)
        self._width = _width(max((s.top_k for s in filtered), default=0), self._open, vocab_size)
        if filtered:
            self._top_k = _column([s.top_k if s.filtered and s.top_k else vocab_size for s in sampling], mx.int32)
            self._is_open = _column([s.filtered and s.top_k == 0 for s in sampling], mx.bool_)
            self._top_p = _column([s.top_p for s in sampling])
            self._min_p = _column([s.min_p for s in sampling])

    def sample_rows(
        self,
        logits: mx.array,
        fed: mx.array,
        mask: Mask | None = None,
        *,
        positions: NDArray[np.uint64] | None = None,
    ) -> Pick:
        """Choose from `logits` `[rows, vocab]`, after the tokens `fed` `[rows]` were put in. Nothing is evaluated.

        `positions` `[rows]` are the numbers of the tokens to choose; without, each row's next.
        """
        logits = logits.astype(mx.float32)
        adjusted = self._adjust(logits, fed)
        if self._kept_going:
            adjusted = self._forbid_ends(adjusted, positions)
        if mask is not None:
            adjusted = mask.mask_logits(adjusted)
        chosen = self._choose(adjusted, positions)
        # One number a row, read with the tokens: where there is one that is none, all logits of the row are.
        own = mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        if not self._asked:
            return Pick(chosen, logits=own)
        return msgspec.structs.replace(self._with_logprobs(logits, chosen), logits=own)

    def _adjust(self, logits: mx.array, fed: mx.array) -> mx.array:
        if self._bias is not None:
            logits = logits + self._bias
        if self.history is not None:
            fresh = mx.array([row.fresh for row in self._rows])
            logits = self.history.penalise_logits(logits, fed, fresh)
        return logits

    def _forbid_ends(self, logits: mx.array, positions: NDArray[np.uint64] | None) -> mx.array:
        """Take the ends from rows that have to go on, but for those whose mask does that."""
        early = []
        for index in self._kept_going:
            row = self._rows[index]
            position = row.position + row.fresh if positions is None else int(positions[index])
            if position < row.sampling.min_tokens and (row.constraint is None or row.constraint.free):
                early.append(index)
        if not early:
            return logits
        index = mx.array(early)
        masked = logits[:]
        masked[index] = mx.where(self._ends[index], -mx.inf, logits[index])
        return masked

    def _choose(self, logits: mx.array, positions: NDArray[np.uint64] | None) -> mx.array:
        likeliest = mx.argmax(logits, axis=-1)
        if not self._sampled:
            return likeliest
        if positions is None:
            # The row's next token is number `position`, plus the one in flight that the host has not seen yet.
            positions = np.array([row.position + row.fresh for row in self._rows], dtype=np.uint64)
        draws = mx.array(uniforms(self._keys, positions))[:, None]
        scaled = logits * self._inverse_temperature
        drawn = likeliest
        if self._unfiltered:
            drawn = _draw_any(scaled, draws)
        if self._width:
            drawn = mx.where(self._filtered, self._draw_filtered(scaled, draws), drawn)
        return mx.where(self._greedy, likeliest, drawn)

    def _draw_filtered(self, scaled: mx.array, draws: mx.array) -> mx.array:
        tokens, overflow = self._nucleus(scaled, draws, self._width)
        if self._exact and self._open and self._width < self._vocab_size:
            # Flat distributions are rare, and a look costs one synchronisation; guessing would cut a nucleus short.
            mx.eval(tokens, overflow)
            if overflow.item():
                tokens, _ = self._nucleus(scaled, draws, self._vocab_size)
        return tokens

    def _nucleus(self, scaled: mx.array, draws: mx.array, width: int) -> tuple[mx.array, mx.array]:
        """Draw from the `width` likeliest; also whether some row's nucleus may reach beyond them."""
        values, ids = likeliest_of(scaled, width)
        rank = mx.arange(width)[None]
        weight = mx.where(rank < self._top_k, mx.exp(values - values[:, :1]), 0.0)
        mass = weight.sum(axis=-1, keepdims=True)
        if self._open:
            whole = mx.exp(mx.logsumexp(scaled, axis=-1, keepdims=True) - values[:, :1])
            mass = mx.where(self._is_open, whole, mass)
        before = mx.cumsum(weight, axis=-1) - weight
        # `weight` is relative to the likeliest token, which is what min-p is relative to as well.
        keep = ((before < self._top_p * mass) & (weight >= self._min_p) & (weight > 0)) | (rank == 0)
        reach = mx.cumsum(mx.where(keep, weight, 0.0), axis=-1)
        place = (reach <= draws * reach[:, -1:]).sum(axis=-1, keepdims=True)
        place = mx.minimum(place, keep.sum(axis=-1, keepdims=True) - 1)
        tokens = mx.take_along_axis(ids, place, axis=-1)[:, 0].astype(mx.uint32)
        return tokens, mx.any(self._is_open & keep[:, -1:])

    def _with_logprobs(self, logits: mx.array, chosen: mx.array) -> Pick:
        """Log-probabilities are the model's own: before bias, penalties, grammar and temperature."""
        index = mx.array(self._asked)
        asked = logits[index]
        total = mx.logsumexp(asked, axis=-1, keepdims=True)
        own = mx.take_along_axis(asked, chosen[index][:, None].astype(mx.int32), axis=-1) - total
        top, ids = likeliest_of(asked, max(1, self._asked_top))
        return Pick(chosen, self._asked, own[:, 0], ids, top - total)


class History:
    """What each row has already said, as counts over the vocabulary, for rows with penalties.

    `generated` `[rows, vocab]` counts generated tokens (presence and frequency weigh those, as OpenAI and vLLM do);
    `prompt` marks tokens of the prompt, which the repetition penalty adds (as transformers and vLLM do).
    """

    def __init__(self, rows: Sequence[Row], generated: mx.array, prompt: mx.array) -> None:
        self.generated = generated
        self.prompt = prompt
        self._repetition = _column([row.sampling.repetition_penalty for row in rows])
        self._presence = _column([row.sampling.presence_penalty for row in rows])
        self._frequency = _column([row.sampling.frequency_penalty for row in rows])

    def select_rows(self, rows: Sequence[Row], indices: list[int]) -> "History | None":
        """Return what is left when only some rows stay; None where none of them needs it."""
        if not any(row.sampling.penalised for row in rows):
            return None
        index = mx.array(indices)
        return History(rows, self.generated[index], self.prompt[index])

    @classmethod
    def joined(
        cls, history: "History | None", rows: Sequence[Row], joining: Sequence[Row], vocab_size: int
    ) -> "History | None":
        """History of `rows` followed by `joining`; None where no row needs one."""
        everyone = [*rows, *joining]
        if not any(row.sampling.penalised for row in everyone):
            return None
        # Rows without penalties are neutral: what is counted for them does not matter.
        first = history or cls.of(rows, vocab_size)
        more = cls.of(joining, vocab_size)
        return cls(
            everyone,
            mx.concatenate([first.generated, more.generated]),
            mx.concatenate([first.prompt, more.prompt]),
        )

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int) -> "History":
        """Count from what the host knows: the rows must have nothing in flight."""
        generated = np.zeros((len(rows), vocab_size), dtype=np.float32)
        prompt = np.zeros((len(rows), vocab_size), dtype=np.bool_)
        for index, row in enumerate(rows):
            prompt[index, row.tokens[: row.prompt_size]] = True
            np.add.at(generated[index], row.tokens[row.prompt_size :], 1.0)
        return cls(rows, mx.array(generated), mx.array(prompt))

    def penalise_logits(self, logits: mx.array, fed: mx.array, fresh: mx.array) -> mx.array:
        """Count the tokens just fed (where they were generated ones), then weigh `logits` `[rows, vocab]`."""
        rows = mx.arange(fed.shape[0])
        self.generated = self.generated.at[rows, fed].add(fresh.astype(mx.float32))
        said = self.generated > 0
        repeated = mx.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits = mx.where(said | self.prompt, repeated, logits)
        return logits - self._frequency * self.generated - self._presence * said.astype(mx.float32)


def likeliest_of(values: mx.array, width: int) -> tuple[mx.array, mx.array]:
    """Return the `width` largest of each row of `[rows, n]`, best first, with their indices.

    Wide rows are cut into chunks first: the `width` largest lie within the `width` chunks of largest maximum, so that
    the selection runs over a fraction of the row.
    """
    size = values.shape[-1]
    if width >= size:
        order = mx.argsort(-values, axis=-1)
        return mx.take_along_axis(values, order, axis=-1), order
    chunk = _chunk(size, width)
    if size >= 2 * width * chunk:
        return _likeliest_by_chunks(values, width, chunk)
    ids = mx.argpartition(-values, kth=width - 1, axis=-1)[:, :width]
    return _ordered(mx.take_along_axis(values, ids, axis=-1), ids)


def _chunk(size: int, width: int) -> int:
    """Return a power of two near the square root of `size / width`: then both selections are equally long."""
    chunk = 4
    while chunk * chunk * width < size:
        chunk *= 2
    return chunk


def _likeliest_by_chunks(values: mx.array, width: int, chunk: int) -> tuple[mx.array, mx.array]:
    rows, size = values.shape
    spare = -size % chunk
    padded = mx.pad(values, [(0, 0), (0, spare)], constant_values=-float("inf")) if spare else values
    chunks = padded.reshape(rows, -1, chunk)
    best = mx.argpartition(-chunks.max(axis=-1), kth=width - 1, axis=-1)[:, :width]
    inside = mx.take_along_axis(chunks, best[:, :, None], axis=1).reshape(rows, -1)
    ids = (best[:, :, None] * chunk + mx.arange(chunk, dtype=best.dtype)).reshape(rows, -1)
    place = mx.argpartition(-inside, kth=width - 1, axis=-1)[:, :width]
    return _ordered(mx.take_along_axis(inside, place, axis=-1), mx.take_along_axis(ids, place, axis=-1))


def _ordered(values: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
    order = mx.argsort(-values, axis=-1)
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)


def _draw_any(scaled: mx.array, draws: mx.array) -> mx.array:
    """Inverse transform over the whole vocabulary: one number per row instead of one per token."""
    reach = mx.cumsum(mx.softmax(scaled, axis=-1), axis=-1)
    place = (reach <= draws * reach[:, -1:]).sum(axis=-1)
    return mx.minimum(place, scaled.shape[-1] - 1).astype(mx.uint32)


def _width(top_k: int, is_open: bool, vocab_size: int) -> int:
    wanted = MANY if is_open else 0
    wanted = max(wanted, top_k)
    if wanted == 0:
        return 0
    for width in (FEW, MANY):
        if wanted <= width < vocab_size:
            return width
    return vocab_size


def _column(values: Sequence[float | bool], dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(values, dtype=dtype)[:, None]


def _ends(rows: Sequence[Row], vocab_size: int) -> mx.array:
    ends = np.zeros((len(rows), vocab_size), dtype=np.bool_)
    for index, row in enumerate(rows):
        ends[index, [token for token in row.sampling.ends if token < vocab_size]] = True
    return mx.array(ends)


def _bias(rows: Sequence[Row], vocab_size: int) -> mx.array | None:
    if not any(row.sampling.logit_bias for row in rows):
        return None
    bias = np.zeros((len(rows), vocab_size), dtype=np.float32)
    for index, row in enumerate(rows):
        for token, value in row.sampling.logit_bias.items():
            bias[index, token] = value
    return mx.array(bias)
