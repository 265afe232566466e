"""Masks for the rows of an engine, computed in grammar processes while the device computes.

A process that dies of a mask takes the rows of its grammar along, and no others. One that is lost otherwise is
replaced, and its rows go on: what a row has said is known here. Belongs to the engine's thread.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.process import GrammarProcess, ProcessLostError
from worker.grammar.compiling.wire import Follow, Status
from worker.grammar.constraint import Constraint, Phase

log = logging.getLogger("worker")

ATTEMPTS = 3
TOO_SLOW = "The grammar takes too long to follow."
REFUSED = "The answer can't go on under this grammar."
LOST = "The grammar could not be followed: it takes too much time or memory."


class Masks:
    """Each grammar has a process of its own, which serves all rows that follow it.

    `revive` gives a grammar whose process was lost another one, or raises `ProcessLostError`; `condemn` is told of
    grammars that proved well, but were too much when they were followed.
    """

    def __init__(
        self,
        revive: Callable[[CompiledGrammar], GrammarProcess],
        *,
        condemn: Callable[[CompiledGrammar], None],
        size: int,
        eos: frozenset[int],
    ) -> None:
        self._revive = revive
        self._condemn = condemn
        self._active: dict[int, GrammarProcess] = {}
        words = (size + 31) // 32
        self._any = np.full(words, 0xFFFFFFFF, dtype=np.uint32)
        self._eos = np.zeros(words, dtype=np.uint32)
        for token in eos:
            self._eos[token >> 5] |= np.uint32(1 << (token & 31))

    def compute_masks(self, constraints: Sequence[Constraint]) -> tuple[list[int], NDArray[np.uint32]]:
        """Which of the constraints limit what comes next, and their masks `[limited, words]`, a bit for each token."""
        self._follow(constraints)
        limited = [index for index, constraint in enumerate(constraints) if not constraint.free]
        found = np.empty((len(limited), len(self._any)), dtype=np.uint32)
        for place, index in enumerate(limited):
            self._fill(constraints[index], found[place])
        return limited, found

    # -- following

    def _follow(self, constraints: Sequence[Constraint]) -> None:
        self._reclaim()
        rows = [one for one in constraints if one.ruled and one.failed is None]
        for _ in range(ATTEMPTS):
            if not rows:
                return
            rows = self._ask(rows)
        for one in rows:
            one.failed = LOST

    def _reclaim(self) -> None:
        """Free the slots of rows that have left, or have left the part that was ruled."""
        for number, process in [*self._active.items()]:
            for slot in [slot for slot, one in process.following.items() if one.closed]:
                one = process.following.pop(slot)
                one.slot, one.closed = None, False
                process.free.append(slot)
                process.closed.append(slot)
            if not process.following:
                del self._active[number]

    def _ask(self, rows: Sequence[Constraint]) -> list[Constraint]:
        """Take one step of every row, all processes at the same time; returns rows that have to be asked again."""
        groups: dict[int, list[Constraint]] = {}
        for one in rows:
            groups.setdefault(id(one.source), []).append(one)
        again: list[Constraint] = []
        begun: list[tuple[GrammarProcess, list[Constraint]]] = []
        for group in groups.values():
            source: CompiledGrammar = group[0].source
            process = source.process
            try:
                if process is None:
                    process = source.process = self._revive(source)
                process.begin([self._next(one, process) for one in group])
                begun.append((process, group))
            except ProcessLostError as lost:
                again += self._lose(source, process, lost, group)
        for process, group in begun:
            try:
                statuses = process.finish()
            except ProcessLostError as lost:
                again += self._lose(group[0].source, process, lost, group)
                continue
            for one, status in zip(group, statuses, strict=True):
                self._note(one, status)
        return again

    def _next(self, one: Constraint, process: GrammarProcess) -> Follow:
        if one.slot is None:
            one.slot = process.free.pop()
            process.following[one.slot] = one
            self._active[id(process)] = process
            one.sent = len(one.tokens)
            return Follow(one.slot, one.tokens, begins=True, prefix=one.prefix)
        tokens, one.sent = one.tokens[one.sent :], len(one.tokens)
        return Follow(one.slot, tokens)

    def _lose(
        self, source: CompiledGrammar, process: GrammarProcess | None, lost: ProcessLostError, group: list[Constraint]
    ) -> list[Constraint]:
        """A process is gone. Where it ended in the middle of a mask, the grammar is to blame; else rows go on anew."""
        source.process = None
        if process is None:
            for one in group:
                one.failed = LOST
            return []
        for other in process.following.values():
            other.slot = None
        process.following.clear()
        self._active.pop(id(process), None)
        if process.at_work < 0 or lost.stood_still:
            log.warning("a grammar process was lost (%s); its rows go on in another", lost)
            return group
        log.warning("a grammar takes too much time or memory to follow; its rows end")
        self._condemn(source)
        for one in group:
            one.failed = LOST
        return []

    def _note(self, one: Constraint, status: Status) -> None:
        match status:
            case Status.OPEN:
                return
            case Status.ENDED if one.plan.trigger is None:
                one.finished = True
            case Status.SLOW:
                one.failed = TOO_SLOW
                self._condemn(one.source)
                one.closed = True
            case Status.ENDED:
                one.lose_matcher()
            case Status.REFUSED:
                # Behind a marker that stands in a sentence there need not be a call.
                if one.plan.trigger is not None and len(one.tokens) == 0:
                    one.lose_matcher()
                else:
                    one.failed = REFUSED
                    one.closed = True

    # -- masks

    def _fill(self, one: Constraint, mask: NDArray[np.uint32]) -> None:
        form = one.format
        if one.phase is Phase.THINKING:
            np.bitwise_and(self._any, ~self._eos, out=mask)
            form.thinking_guard.forbid_marker(mask, one.tail)
            return
        if one.slot is None:
            raise RuntimeError("a mask was asked for that was not computed")
        mask[:] = self._eos if one.finished else one.source.process.masks[one.slot]
        if one.finished:
            return
        form.guard.forbid_marker(mask, one.tail)
        if one.phase is Phase.OPENING and form.think_start is not None:
            mask[form.think_start >> 5] |= np.uint32(1 << (form.think_start & 31))
        if one.ignore_eos:
            self._go_on(one, mask)
        if not mask.any():
            one.failed = REFUSED
            mask[:] = self._any

    def _go_on(self, one: Constraint, mask: NDArray[np.uint32]) -> None:
        """Past the end, as long as anything but the end may come."""
        mask &= ~self._eos
        if not mask.any():
            one.finished = True
            mask[:] = self._eos
