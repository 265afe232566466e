"""What is run once before the first request, so that it pays for no compilation."""

from collections.abc import Iterable

from worker.batch.batch import Batch
from worker.batch.prompt import Prompt
from worker.batch.row import Row, RowSampling

LENGTHS = (24, 3)
"""Tokens of the prompts: a padded group prefill and a batch of more than one row."""


def warm(batch: Batch, adapters: Iterable[str]) -> None:
    """Run every path that a request could take: group prefill, decode, each kind of draw, each adapter."""
    kinds = [
        RowSampling(key=1, temperature=0.0),
        RowSampling(key=2, temperature=1.0, logprobs=1),
        RowSampling(key=3, temperature=1.0, top_k=20, top_p=0.9, min_p=0.01),
        RowSampling(key=4, temperature=1.0, repetition_penalty=1.1),
    ]
    for sampling, adapter in [*((kind, "") for kind in kinds), *((kinds[0], name) for name in adapters)]:
        for length in LENGTHS:
            prompt = [0] * length
            row = Row(owner=None, tenant="", prompt=prompt, delivered=[], limit=3, sampling=sampling, adapter=adapter)
            batch.add_prompt(Prompt([row]))
        while batch.busy:
            for emission in batch.step():
                if emission.row.position >= emission.row.limit:
                    batch.release_row(emission.row, keep=False)
