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

    `replace_process` gives a grammar whose process was lost another one, or raises `ProcessLostError`. `reject_grammar`
    gets grammars that compiled well, but were too much when they were followed.
    """

    def __init__(
        self,
        replace_process: Callable[[CompiledGrammar], GrammarProcess],
        *,
        reject_grammar: Callable[[CompiledGrammar], None],
        size: int,
        eos: frozenset[int],
    ) -> None:
        self._replace_process = replace_process
        self._reject_grammar = reject_grammar
        self._active: dict[int, GrammarProcess] = {}
        words = (size + 31) // 32
        self._any = np.full(words, 0xFFFFFFFF, dtype=np.uint32)
        self._eos = np.zeros(words, dtype=np.uint32)
        for token in eos:
            self._eos[token >> 5] |= np.uint32(1 << (token & 31))

    def compute_masks(self, constraints: Sequence[Constraint]) -> tuple[list[int], NDArray[np.uint32]]:
        """Return which constraints limit what comes next, and their masks `[limited, words]`, a bit for each token."""
        self._follow(constraints)
        limited = [index for index, constraint in enumerate(constraints) if not constraint.free]
        found = np.empty((len(limited), len(self._any)), dtype=np.uint32)
        for place, index in enumerate(limited):
            self._fill_mask(constraints[index], found[place])
        return limited, found

    # -- following

    def _follow(self, constraints: Sequence[Constraint]) -> None:
        self._free_slots()
        rows = [one for one in constraints if one.constrained and one.failed is None]
        for _ in range(ATTEMPTS):
            if not rows:
                return
            rows = self._step_rows(rows)
        for one in rows:
            one.failed = LOST

    def _free_slots(self) -> None:
        """Free the slots of rows that have left, or have left the constrained part."""
        for number, process in [*self._active.items()]:
            for slot in [slot for slot, one in process.following.items() if one.closed]:
                one = process.following.pop(slot)
                one.slot, one.closed = None, False
                process.free.append(slot)
                process.closed.append(slot)
            if not process.following:
                del self._active[number]

    def _step_rows(self, rows: Sequence[Constraint]) -> list[Constraint]:
        """Take one step of every row, all processes at the same time; return rows that have to be asked again."""
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
                    process = source.process = self._replace_process(source)
                process.begin_step([self._next_step(one, process) for one in group])
                begun.append((process, group))
            except ProcessLostError as lost:
                again += self._handle_loss(source, process, lost, group)
        for process, group in begun:
            try:
                statuses = process.finish_step()
            except ProcessLostError as lost:
                again += self._handle_loss(group[0].source, process, lost, group)
                continue
            for one, status in zip(group, statuses, strict=True):
                self._apply_status(one, status)
        return again

    def _next_step(self, one: Constraint, process: GrammarProcess) -> Follow:
        if one.slot is None:
            one.slot = process.free.pop()
            process.following[one.slot] = one
            self._active[id(process)] = process
            one.sent = len(one.tokens)
            return Follow(one.slot, one.tokens, begins=True, prefix=one.prefix)
        tokens, one.sent = one.tokens[one.sent :], len(one.tokens)
        return Follow(one.slot, tokens)

    def _handle_loss(
        self, source: CompiledGrammar, process: GrammarProcess | None, lost: ProcessLostError, group: list[Constraint]
    ) -> list[Constraint]:
        """Return the rows that go on in another process: none where this one ended in the middle of a mask."""
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
        self._reject_grammar(source)
        for one in group:
            one.failed = LOST
        return []

    def _apply_status(self, one: Constraint, status: Status) -> None:
        match status:
            case Status.OPEN:
                return
            case Status.ENDED if one.spec.trigger is None:
                one.finished = True
            case Status.SLOW:
                one.failed = TOO_SLOW
                self._reject_grammar(one.source)
                one.closed = True
            case Status.ENDED:
                one.return_to_text()
            case Status.REFUSED:
                # Behind a marker that stands in a sentence there need not be a call.
                if one.spec.trigger is not None and len(one.tokens) == 0:
                    one.return_to_text()
                else:
                    one.failed = REFUSED
                    one.closed = True

    # -- masks

    def _fill_mask(self, one: Constraint, mask: NDArray[np.uint32]) -> None:
        output = one.output
        if (forced := one.forced) is not None:
            mask[:] = 0
            mask[forced >> 5] = np.uint32(1 << (forced & 31))
            return
        if one.phase is Phase.THINKING:
            np.bitwise_and(self._any, ~self._eos, out=mask)
            output.thinking_mask.forbid_marker(mask, one.tail)
            _forbid_stops(one, mask)
            return
        if one.slot is None:
            raise RuntimeError("a mask was asked for that was not computed")
        mask[:] = self._eos if one.finished else one.source.process.masks[one.slot]
        if one.finished:
            return
        output.marker_mask.forbid_marker(mask, one.tail)
        if one.phase is Phase.OPENING and output.think_start is not None:
            mask[output.think_start >> 5] |= np.uint32(1 << (output.think_start & 31))
        if one.ignore_eos or one.early:
            self._forbid_end(one, mask)
        if not mask.any():
            one.failed = REFUSED
            mask[:] = self._any

    def _forbid_end(self, one: Constraint, mask: NDArray[np.uint32]) -> None:
        """Let the row go past the end, as long as anything but the end may come."""
        mask &= ~self._eos
        _forbid_stops(one, mask)
        if not mask.any():
            one.finished = True
            mask[:] = self._eos


def _forbid_stops(one: Constraint, mask: NDArray[np.uint32]) -> None:
    """Take the request's own ends out of a mask, as long as the row may not end."""
    if one.early:
        for token in one.stop_ids:
            mask[token >> 5] &= ~np.uint32(1 << (token & 31))
