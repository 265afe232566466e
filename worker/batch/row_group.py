"""What a batch needs of rows that it moves together, however they get their tokens."""

from typing import Protocol

from worker.batch.caches import Cache
from worker.batch.row import Emission, Row
from worker.grammar.masks import Masks


class RowGroup(Protocol):
    """Rows that share a cache: a `Cohort`, or one row whose tokens a draft model proposes (`SpeculativeGroup`)."""

    rows: list[Row]
    cache: Cache

    def launch_step(self) -> None:
        """Start computing the rows' next tokens; return before they are known."""

    def apply_masks(self, masks: Masks, /) -> None:
        """Choose for what `launch_step` began, where a grammar rules."""

    def collect_tokens(self) -> list[Emission]:
        """Return the tokens that are certain now; wait for no more than those."""

    def count_cached(self, row: Row, /) -> int:
        """Return how many of the row's tokens its cache holds, between steps."""

    def copy_out(self, row: Row, /) -> Cache:
        """Return the row's own cache, to be kept. Only between steps."""

    def remove_rows(self, rows: set[int], /) -> bool:
        """Take out the rows whose `id` is in `rows`; return whether any are left."""
