"""A grammar that has been compiled for one tenant, with the process that holds it."""

from worker.grammar.compiling.process import GrammarProcess
from worker.grammar.compiling.wire import Compile
from worker.grammar.constraint import GrammarSpec


class CompiledGrammar:
    """Its process ends once nobody refers to it any more: neither those who remember it, nor a row.

    `process` is None where it was lost; `request` is what makes another one, in about `spent_s` of processor time.
    `key` is what it is known by: the tenant, and a digest of what was asked for.
    """

    __slots__ = ("__weakref__", "grown_bytes", "key", "process", "request", "spec", "spent_s")

    def __init__(
        self,
        key: tuple[str, bytes],
        spec: GrammarSpec,
        request: Compile,
        process: GrammarProcess,
        *,
        spent_s: float,
        grown_bytes: int,
    ) -> None:
        self.key = key
        self.spec = spec
        self.request = request
        self.process: GrammarProcess | None = process
        self.spent_s = spent_s
        self.grown_bytes = grown_bytes
