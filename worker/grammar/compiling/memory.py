"""What is remembered of grammars: those that were compiled, and why others were not. Told the time; not locked."""

from collections import OrderedDict

import msgspec

from protocol.errors import JobError
from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.queue import Name

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
        self._compiled: OrderedDict[Name, CompiledGrammar] = OrderedDict()
        self._verdicts: OrderedDict[Name, Verdict] = OrderedDict()

    def find_grammar(self, name: Name, now: float) -> CompiledGrammar | Verdict | None:
        """Return what is known; None where it has to be compiled."""
        found = self._compiled.get(name)
        if found is not None:
            if found.process is not None and found.process.alive:
                self._compiled.move_to_end(name)
                return found
            del self._compiled[name]
        verdict = self._verdicts.get(name)
        return verdict if verdict is not None and verdict.until > now else None

    def keep_grammar(self, grammar: CompiledGrammar) -> None:
        """Remember one that was compiled."""
        self._verdicts.pop(grammar.name, None)
        self._compiled[grammar.name] = grammar
        while len(self._compiled) > KEPT or (
            len(self._compiled) > 1 and sum(one.grown_bytes for one in self._compiled.values()) > KEPT_BYTES
        ):
            del self._compiled[_crowding(self._compiled)]

    def record_refusal(self, name: Name, error: JobError | None) -> None:
        """Remember that it can't be compiled at all, or constrains nothing."""
        self._apply_status(name, Verdict(error))

    def record_doubt(self, name: Name, error: JobError, now: float) -> None:
        """Remember that it took too much, for a while that grows."""
        self._compiled.pop(name, None)
        before = self._verdicts.get(name)
        doubt_s = min(LONGEST_DOUBT_S, 2 * before.doubt_s if before and before.doubt_s else FIRST_DOUBT_S)
        self._apply_status(name, Verdict(error, now + doubt_s, doubt_s))

    def _apply_status(self, name: Name, verdict: Verdict) -> None:
        self._verdicts[name] = verdict
        self._verdicts.move_to_end(name)
        if len(self._verdicts) > REMEMBERED:
            del self._verdicts[_crowding(self._verdicts)]


def _crowding(known: OrderedDict[Name, CompiledGrammar] | OrderedDict[Name, Verdict]) -> Name:
    """Return the oldest of the tenant that holds most."""
    held: dict[str, int] = {}
    for tenant, _ in known:
        held[tenant] = held.get(tenant, 0) + 1
    most = max(held, key=lambda tenant: held[tenant])
    return next(name for name in known if name[0] == most)
