"""What is remembered of grammars: those that were compiled, and why others were not. Told the time; not locked."""

from collections import OrderedDict
from collections.abc import Collection

import msgspec

from protocol.errors import JobError
from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.queue import GrammarKey

KEPT, KEPT_BYTES = 48, 1 << 30
"""Compiled grammars that are kept for jobs to come, each of which is a process; and how much these may have grown."""
REMEMBERED = 1024
"""Grammars that came to nothing, or constrain nothing."""
FIRST_DOUBT_S, LONGEST_DOUBT_S = 60.0, 3600.0
"""How long a grammar that took too much is refused without another try; doubled each time."""


class Verdict(msgspec.Struct, frozen=True):
    """Why there is no such grammar (`error` None: nothing is constrained), and for how long (`doubt_s`) until when."""

    error: JobError | None = None
    until: float = float("inf")
    doubt_s: float = 0.0


class GrammarMemory:
    """By tenant and digest. Where room is short, the tenant that holds most gives first, its oldest."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[GrammarKey, CompiledGrammar] = OrderedDict()
        self._verdicts: OrderedDict[GrammarKey, Verdict] = OrderedDict()

    def find_grammar(self, key: GrammarKey, now: float) -> CompiledGrammar | Verdict | None:
        """Return what is known; None where it has to be compiled."""
        found = self._compiled.get(key)
        if found is not None:
            if found.process is not None and found.process.alive:
                self._compiled.move_to_end(key)
                return found
            del self._compiled[key]
        verdict = self._verdicts.get(key)
        return verdict if verdict is not None and verdict.until > now else None

    def keep_grammar(self, grammar: CompiledGrammar) -> None:
        """Remember one that was compiled."""
        self._verdicts.pop(grammar.key, None)
        self._compiled[grammar.key] = grammar
        while len(self._compiled) > KEPT or (
            len(self._compiled) > 1 and sum(one.grown_bytes for one in self._compiled.values()) > KEPT_BYTES
        ):
            del self._compiled[_eviction_candidate(self._compiled)]

    def record_refusal(self, key: GrammarKey, error: JobError | None) -> None:
        """Remember that it can't be compiled at all, or constrains nothing."""
        self._record_verdict(key, Verdict(error))

    def record_doubt(self, key: GrammarKey, error: JobError, now: float) -> None:
        """Remember that it took too much, for a while that grows."""
        self._compiled.pop(key, None)
        before = self._verdicts.get(key)
        doubt_s = min(LONGEST_DOUBT_S, 2 * before.doubt_s if before and before.doubt_s else FIRST_DOUBT_S)
        self._record_verdict(key, Verdict(error, now + doubt_s, doubt_s))

    def _record_verdict(self, key: GrammarKey, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > REMEMBERED:
            del self._verdicts[_eviction_candidate(self._verdicts)]


def _eviction_candidate(known: Collection[GrammarKey]) -> GrammarKey:
    """Return the oldest of the tenant that holds most."""
    held: dict[str, int] = {}
    for tenant, _ in known:
        held[tenant] = held.get(tenant, 0) + 1
    most = max(held, key=lambda tenant: held[tenant])
    return next(key for key in known if key[0] == most)
