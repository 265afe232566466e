"""Masks for the rows of an engine, computed in a grammar process while the device computes.

A process that hangs or dies is replaced, and every row but the one it failed at goes on: what a row has said is known
here. Belongs to the engine's thread.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from worker.grammar.constraint import Constraint, Phase, Plan
from worker.grammar.process import GrammarProcess, ProcessLostError
from worker.grammar.wire import Follow, Status, Step

log = logging.getLogger("worker")

STEP_S = 2.0
"""A step whose masks take longer has met a grammar without end."""
ATTEMPTS = 3
TOO_SLOW = "The grammar takes too long to follow."
REFUSED = "The answer can't go on under this grammar."
LOST = "The grammar could not be followed: it takes too much time or memory."


class Masks:
    """One process serves all rows. `process` answers it, or, called with `True`, one in place of it.

    `condemn` is told of plans that proved well, but were too much when they were followed.
    """

    def __init__(
        self,
        process: Callable[[bool], GrammarProcess],
        *,
        condemn: Callable[[Plan], None],
        slots: int,
        size: int,
        eos: frozenset[int],
    ) -> None:
        self._process = process
        self._condemn = condemn
        self._lost = False
        self._free = list(range(slots))
        self._following: dict[int, Constraint] = {}
        words = (size + 31) // 32
        self._any = np.full(words, 0xFFFFFFFF, dtype=np.uint32)
        self._eos = np.zeros(words, dtype=np.uint32)
        for token in eos:
            self._eos[token >> 5] |= np.uint32(1 << (token & 31))

    def masks(self, constraints: Sequence[Constraint]) -> tuple[list[int], NDArray[np.uint32]]:
        """Which of the constraints limit what comes next, and their masks `[limited, words]`, a bit for each token."""
        self._follow(constraints)
        limited = [index for index, constraint in enumerate(constraints) if not constraint.free]
        found = np.empty((len(limited), len(self._any)), dtype=np.uint32)
        for place, index in enumerate(limited):
            self._fill(constraints[index], found[place])
        return limited, found

    # -- following

    def _follow(self, constraints: Sequence[Constraint]) -> None:
        closed = self._reclaim()
        for _ in range(ATTEMPTS):
            ruled = [one for one in constraints if one.ruled and one.failed is None]
            if not ruled and not closed:
                return
            process = None
            try:
                process, self._lost = self._process(self._lost), False
                step = Step([self._next(one) for one in ruled], closed)
                for one, status in zip(ruled, process.step(step, STEP_S), strict=True):
                    self._note(one, status)
                return
            except (ProcessLostError, OSError):
                self._lost = True
                self._forget(-1 if process is None else process.at_work)
                closed = []
        for one in constraints:
            if one.ruled:
                one.failed = LOST

    def _reclaim(self) -> list[int]:
        """Slots of rows that have left, or have left the part that was ruled."""
        closed = [slot for slot, one in self._following.items() if one.closed]
        for slot in closed:
            one = self._following.pop(slot)
            one.slot, one.closed = None, False
            self._free.append(slot)
        return closed

    def _next(self, one: Constraint) -> Follow:
        if one.slot is None:
            one.slot = self._free.pop()
            self._following[one.slot] = one
            one.sent = len(one.tokens)
            return Follow(one.slot, one.tokens, one.plan.grammar, one.prefix)
        tokens, one.sent = one.tokens[one.sent :], len(one.tokens)
        return Follow(one.slot, tokens)

    def _forget(self, guilty: int) -> None:
        """The process is gone: rows start anew in the next one, but for the one it ended at."""
        log.warning("a grammar process was lost; its rows go on in another")
        if (one := self._following.get(guilty)) is not None:
            one.failed = LOST
            self._condemn(one.plan)
        for slot, other in self._following.items():
            other.slot = None
            self._free.append(slot)
        self._following.clear()

    def _note(self, one: Constraint, status: Status) -> None:
        match status:
            case Status.OPEN:
                return
            case Status.ENDED if one.plan.trigger is None:
                one.finished = True
            case Status.SLOW:
                one.failed = TOO_SLOW
                self._condemn(one.plan)
                one.closed = True
            case Status.ENDED:
                one.lose()
            case Status.REFUSED:
                # Behind a marker that stands in a sentence there need not be a call.
                if one.plan.trigger is not None and len(one.tokens) == 0:
                    one.lose()
                else:
                    one.failed = REFUSED
                    one.closed = True

    # -- masks

    def _fill(self, one: Constraint, mask: NDArray[np.uint32]) -> None:
        form = one.format
        if one.phase is Phase.THINKING:
            np.bitwise_and(self._any, ~self._eos, out=mask)
            form.thinking_guard.forbid(mask, one.tail)
            return
        if one.slot is None:
            raise RuntimeError("a mask was asked for that was not computed")
        mask[:] = self._eos if one.finished else self._process(False).masks[one.slot]
        if one.finished:
            return
        form.guard.forbid(mask, one.tail)
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
