"""Continuous batching: what waits, what is being prefilled, what decodes; one `step` moves all of it.

A step launches the next token of every running row, prefills at most one chunk beside it, and returns the tokens
that the previous step launched. Rows join and leave between steps only.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from worker.batch import caches
from worker.batch.batchability import check_batching
from worker.batch.caches import Cache
from worker.batch.chunk_size import ChunkSizer
from worker.batch.cohort import Cohort
from worker.batch.images import Placeholder
from worker.batch.prefix_store import PrefixStore
from worker.batch.prompt import Prompt, cache_of
from worker.batch.row import Emission, Row
from worker.batch.row_group import RowGroup
from worker.batch.speculation.group import SpeculativeGroup
from worker.batch.speculation.policy import SpeculationPolicy
from worker.grammar.masks import Masks

PASS_BYTES = 8_000_000
"""What one more forward pass costs besides reading the weights, as memory traffic that takes as long."""
MOST_PADDING = 1.5
"""How many times what its rows need a cohort's cache may hold. Joins are cheap one by one, and not all together."""
CACHE_STEP = 256
"""Tokens by which a cache grows, and so the least that a row needs."""
PATIENCE = 3
"""Steps for which a chunk of a long prompt waits: for short ones, and for rows that joined to say their first token."""
SHORT = 32
"""A prompt of so many tokens is computed in one chunk, whatever that costs."""
SHORTER = 4
"""A prompt passes another one that has so many times as much before it."""
KEEP_PROMPT = 64
"""Prompts of at least so many tokens go into the prefix cache as soon as they are computed."""


class Batch:
    """All rows of one model, with adapters or without. One thread loads and steps; others may ask for its counts.

    `adapted` are further models that differ by their adapters alone: what was checked or measured of the one holds for
    all. Rows of different ones share steps, but no cohort, and neither a prefill nor a prefix.
    """

    def __init__(
        self,
        *,
        model: Any,
        vocab_size: int,
        weights_bytes: int,
        max_rows: int,
        prefix_store: PrefixStore,
        masks: Masks,
        largest_chunk: int,
        encode_image: Callable[[Placeholder], None] | None,
        adapted: Mapping[str, Any] | None = None,
        speculation: SpeculationPolicy | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self._adapted = adapted or {}
        self._speculation = speculation
        self._vocab_size = vocab_size
        self._weights_bytes = weights_bytes
        self._max_rows = max_rows
        self._prefix_store = prefix_store
        self.masks = masks
        # A token of a long prompt looks back at all before it: what it costs says nothing of a short prompt's.
        self.chunk_sizer = ChunkSizer(largest_chunk)
        self.short_chunk_sizer = ChunkSizer(largest_chunk, smallest=SHORT)
        self._encode_image = encode_image
        self._clock = clock
        self._can = check_batching(model)
        self._token_bytes = 0.0
        self._waiting: deque[Prompt] = deque()
        self._long: Prompt | None = None
        self._silent = 0
        self._waited = 0
        self._encode_turn = False
        self.groups: list[RowGroup] = []
        self._leaving: dict[int, bool] = {}
        self._scored: list[Prompt] = []

    @property
    def running(self) -> int:
        """Rows that decode."""
        return sum(len(group.rows) for group in self.groups)

    @property
    def waiting(self) -> int:
        """Rows whose prompt is not done."""
        # Asked by the link's thread as well: a deque must not change while it is walked through.
        long = self._long
        return sum(len(prompt.rows) for prompt in self._waiting.copy()) + (len(long.rows) if long else 0)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.groups or self._waiting or self._long)

    def measure_cache(self) -> None:
        """Compute a prompt of 256 tokens to learn what one token of cache weighs (and to compile what that needs)."""
        cache = caches.new(self.model)
        self.model(mx.zeros((1, 256), dtype=mx.int32), cache=cache)
        mx.eval(caches.state(cache))
        self._token_bytes = caches.nbytes(cache) / 256
        if self._speculation:
            self._speculation.measure_rounds(self.model)

    @property
    def progress(self) -> "Prompt | None":
        """The long prompt that is being computed, if any."""
        return self._long

    def add_prompt(self, prompt: Prompt) -> None:
        """Queue rows; they join as soon as their prompt is computed."""
        self._waiting.append(prompt)

    def release_row(self, row: Row, *, keep: bool) -> None:
        """Take a row out before the next step; with `keep`, its cache goes to the prefix cache first."""
        if row.constraint is not None:
            row.constraint.close()
        for prompt in [*self._waiting, *([self._long] if self._long else [])]:
            if row in prompt.rows:
                if len(prompt.rows) > 1:
                    prompt.rows.remove(row)
                    return
                prompt.release_images()
                self._prefix_store.forget_prompt(prompt)
                if prompt is self._long:
                    self._long = None
                else:
                    self._waiting.remove(prompt)
                return
        self._leaving[id(row)] = keep
        if not keep:
            # A cancelled row must not decode another token, nor keep an idle batch busy.
            self._depart()

    def step(self) -> list[Emission]:
        """One token for every running row, one chunk for the prompts."""
        self._depart()
        self._begin_waiting()
        began = self._clock()
        running = bool(self.groups)
        image = self._next_image()
        prefilled = 0 if image else self._prefill_whole(running=running)
        chunk_sizer = self.short_chunk_sizer
        self._silent = max(0, self._silent - 1)
        if self._speculation:
            self.groups = self._speculation.arrange_groups(self._model_of, self.groups)
        for group in self.groups:
            group.launch_step()
        for group in self.groups:
            group.apply_masks(self.masks)
        no_chunk = False
        if not prefilled:
            no_chunk = self._encode_next(image) or self._prefix_store.restore_prefixes(self._waiting, running=running)
            chunk_sizer, prefilled = self.chunk_sizer, self._prefill_next(running=running) if not no_chunk else 0
        emissions = [emission for group in self.groups for emission in group.collect_tokens()]
        # A look takes as long as its image is large: that says nothing about chunks.
        if running and not no_chunk:
            took_s = self._clock() - began
            if prefilled:
                chunk_sizer.record_chunk(prefilled, took_s)
            else:
                self.chunk_sizer.record_step(took_s)
                self.short_chunk_sizer.record_step(took_s)
        if not (no_chunk or prefilled or self.groups):
            self._prefix_store.wait_for_disk(self._waiting)
        self._prefix_store.flush_new(idle=not self.busy)
        return emissions

    def take_scored(self) -> list[Prompt]:
        """Prompts whose scores have become complete since the last time. None of their rows has said anything yet."""
        scored, self._scored = self._scored, []
        return scored

    # -- leaving -------------------------------------------------------------

    def _depart(self) -> None:
        if not self._leaving:
            return
        leaving, self._leaving = self._leaving, {}
        left = []
        for group in self.groups:
            for row in group.rows:
                if leaving.get(id(row)):
                    self._store_row(group, row)
            if group.remove_rows(set(leaving)):
                left.append(group)
        self.groups = left

    def _model_of(self, one: Row | Prompt) -> Any:
        return self._adapted[one.adapter] if one.adapter else self.model

    def _store_row(self, group: RowGroup, row: Row) -> None:
        cache = group.copy_out(row)
        mx.async_eval(caches.state(cache))
        self._prefix_store.store_prefix(row.tenant, row.key[: group.count_cached(row)], cache)
        if self._speculation and isinstance(group, SpeculativeGroup):
            self._speculation.store_caches(group)

    # -- looking -------------------------------------------------------------

    def _next_image(self) -> Placeholder | None:
        """Return the next image to be encoded, if there is one. Prompts that can be computed take turns with it."""
        if self._encode_image is None:
            return None
        image = next((seen for prompt in self._waiting if (seen := prompt.unencoded_image)), None)
        self._encode_turn = not self._encode_turn
        computable = self._long is not None or any(prompt.computable for prompt in self._waiting)
        return image if self._encode_turn or not computable else None

    def _encode_next(self, image: Placeholder | None) -> bool:
        """Encode an image, if there is one; return whether there was."""
        if image is None or self._encode_image is None:
            return False
        self._encode_image(image)
        return True

    # -- prefill -------------------------------------------------------------

    def _prefill_whole(self, *, running: bool) -> int:
        """Compute prompts that fit one chunk, before the running rows are launched: so they are launched with them.

        They pass whatever takes longer, but for `PATIENCE` steps only.
        """
        budget = self.short_chunk_sizer.next_size(running=running)
        self._pick_long(budget)
        others = self._long is not None or any(prompt.lookup is not None for prompt in self._waiting)
        self._waited = self._waited + 1 if others and self._waited <= PATIENCE else 0
        prompts = self._short(budget) if self._waited <= PATIENCE else []
        return self._prefill_short(prompts) if prompts else 0

    def _prefill_next(self, *, running: bool) -> int:
        """Compute a chunk of what needs several, beside the running rows; returns how many tokens.

        Not before rows that have just joined say their first one, though for `PATIENCE` steps at most.
        """
        long = self._long
        if long is None or (running and self._silent and self._waited <= PATIENCE):
            return 0
        budget = self.chunk_sizer.next_size(running=running)
        if self._waited == 1 and (shorter := self._shorter(long)):
            return self._prefill_long(shorter, budget)
        self._waited = 0
        return self._prefill_long(long, budget)

    def _shorter(self, long: Prompt) -> Prompt | None:
        """Return a waiting prompt that needs several chunks, but far fewer than the long one."""
        room = self._room()
        fitting = (one for one in self._waiting if one.computable and not one.scores and self._fits(one, room))
        shortest = min(fitting, key=lambda one: one.left, default=None)
        return shortest if shortest and shortest.left * SHORTER <= long.left else None

    def _begin_waiting(self) -> None:
        """Look prefixes up for prompts that may start now."""
        for prompt in self._waiting:
            if prompt.cache is None:
                prompt.cache = caches.new(self.model)
                prompt.started_at = self._clock()
                self._prefix_store.lookup_prompt(prompt)

    def _pick_long(self, budget: int) -> None:
        if self._long is not None:
            return
        room = self._room()
        for prompt in self._waiting:
            if (prompt.left > budget or prompt.scores) and self._fits(prompt, room) and prompt.computable:
                self._waiting.remove(prompt)
                self._prefix_store.refresh_prompt(prompt)
                self._long = prompt
                return

    def _room(self) -> int:
        return self._max_rows - self.running - (len(self._long.rows) if self._long else 0)

    def _fits(self, prompt: Prompt, room: int) -> bool:
        # A request with more choices than the batch has rows may have the whole batch.
        return len(prompt.rows) <= max(room, 0) or (room == self._max_rows)

    def _short(self, budget: int) -> list[Prompt]:
        """Take out waiting prompts that fit into one chunk together, first come first served."""
        chosen: list[Prompt] = []
        longest = 0
        room = self._room()
        for prompt in self._waiting:
            widest = max(longest, prompt.left)
            if prompt.left > budget or prompt.scores or not prompt.computable:
                continue
            if chosen and prompt.adapter != chosen[0].adapter:
                continue
            if not self._fits(prompt, room) or (chosen and widest * (len(chosen) + 1) > budget):
                break
            chosen.append(prompt)
            longest = widest
            room -= len(prompt.rows)
            if not self._can.pads:
                break
        for prompt in chosen:
            self._waiting.remove(prompt)
        return chosen

    def _prefill_short(self, prompts: list[Prompt]) -> int:
        """Whole prompts in one forward pass, padded on the right."""
        width = max(prompt.left for prompt in prompts)
        if len(prompts) == 1:
            return self._prefill_long(prompts[0], width)
        cache = caches.merge([cache_of(prompt) for prompt in prompts])
        caches.prefill(self._model_of(prompts[0]), cache, [prompt.next_part(prompt.left) for prompt in prompts])
        mx.eval(caches.state(cache))
        for index, prompt in enumerate(prompts):
            prompt.covered += prompt.left
            prompt.release_images()
            if len(prompt.rows[0].tokens) > KEEP_PROMPT:
                single = caches.extract(cache, index)
                self._prefix_store.store_prefix(prompt.rows[0].tenant, prompt.rows[0].key[:-1], single)
        repeats = [index for index, prompt in enumerate(prompts) for _ in prompt.rows]
        if len(repeats) > len(prompts):
            caches.filter_rows(cache, repeats)
        self._enter(cache, [row for prompt in prompts for row in prompt.rows])
        return width * len(prompts)

    def _prefill_long(self, prompt: Prompt, budget: int) -> int:
        """One chunk of one prompt, in its own cache, which the prefix cache then shares."""
        cache = cache_of(prompt)
        count = min(budget, prompt.left, prompt.scores.chunk if prompt.scores else budget)
        if count:
            logits = caches.prefill(self._model_of(prompt), cache, [prompt.next_part(count)])
            if prompt.scores and logits is not None:
                following = prompt.rows[0].tokens[prompt.covered + 1 : prompt.covered + count + 1]
                prompt.scores.add_logits(logits[0], following)
            mx.eval(caches.state(cache))
            prompt.covered += count
        if prompt.left == 0:
            if prompt is self._long:
                self._long = None
            elif prompt in self._waiting:
                self._waiting.remove(prompt)
            self._enter_long(prompt, cache)
        return count

    def _enter_long(self, prompt: Prompt, cache: Cache) -> None:
        prompt.release_images()
        row = prompt.rows[0]
        if len(row.tokens) > KEEP_PROMPT:
            self._prefix_store.store_prefix(row.tenant, row.key[:-1], caches.duplicate(cache))
        if prompt.scores:
            self._scored.append(prompt)
        if row.limit == 0:
            return
        if len(prompt.rows) > 1 and self._can.joins:
            self._enter(caches.merge([cache] * len(prompt.rows)), prompt.rows)
            return
        for choice in prompt.rows:
            self._enter(cache if choice is prompt.rows[-1] else caches.duplicate(cache), [choice])

    # -- joining -------------------------------------------------------------

    def _enter(self, cache: Cache, rows: list[Row]) -> None:
        """Put rows where they cost least: into a cohort of about their length, else into one of their own."""
        if self._speculation:
            release = self._speculation.release_group
            self.groups = [release(one) if isinstance(one, SpeculativeGroup) else one for one in self.groups]
        # Until the step is over that tells what came of their last prompt token.
        self._silent = 3
        length = max(len(row.tokens) for row in rows)
        best: Cohort | None = None
        least = float(self._weights_bytes + PASS_BYTES)
        for cohort in self.groups if self._can.joins else ():
            if not isinstance(cohort, Cohort) or cohort.ended or cohort.adapter != rows[0].adapter:
                continue
            difference = cohort.longest - length
            padded = difference * len(rows) if difference > 0 else -difference * len(cohort.rows)
            if padded * self._token_bytes < least and _fit_together(cohort.rows, rows):
                best, least = cohort, padded * self._token_bytes
        if best is None:
            model = self._model_of(rows[0])
            self.groups.append(Cohort(model=model, vocab_size=self._vocab_size, cache=cache, rows=rows))
        else:
            best.join_rows(cache, rows)


def _fit_together(*groups: list[Row]) -> bool:
    """Return whether one cache for all holds at most `MOST_PADDING` times what the rows need of it."""
    needed = [max(len(row.tokens), CACHE_STEP) for rows in groups for row in rows]
    return max(needed) * len(needed) <= MOST_PADDING * sum(needed)
