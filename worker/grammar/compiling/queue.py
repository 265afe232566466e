"""Grammars that wait to be compiled: at most one of a tenant at a time, those who have cost little first.

There are several compilers, and all but one take grammars of tenants in good standing only: whoever keeps one busy for
long keeps none from the others. Safe to use from several threads.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from protocol.errors import JobError
from worker.grammar.compiling.standing import Standing
from worker.grammar.compiling.wire import Compile

Ended = Callable[[JobError | None], None]
"""Hears what came of it: nothing, or why not."""
Name = tuple[str, bytes]
"""A tenant, and a digest of what was asked for."""
WAITING_LIGHT, WAITING_HEAVY = 64, 4
"""Grammars of one tenant that may wait, by its standing."""


class PendingGrammar:
    """One grammar, and everybody who waits for it, by job and attempt."""

    __slots__ = ("began_at", "name", "request", "waiting")

    def __init__(self, name: Name, request: Compile) -> None:
        self.name = name
        self.request = request
        self.waiting: dict[tuple[int, int], Ended] = {}
        self.began_at: float | None = None

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.name[0]

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return bool(self.waiting)


class CompileQueue:
    """Grammars to be compiled, and those that are being compiled."""

    def __init__(self, standing: Standing, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._standing = standing
        self._clock = clock
        self._changed = threading.Condition()
        self._all: dict[Name, PendingGrammar] = {}
        self._lines: OrderedDict[str, OrderedDict[Name, PendingGrammar]] = OrderedDict()
        self._busy: set[str] = set()

    def __len__(self) -> int:
        return len(self._all)

    def add_job(self, name: Name, request: Compile, job: tuple[int, int], ended: Ended) -> bool:
        """Have `job` wait for a grammar; return False where its tenant has too many that wait."""
        with self._changed:
            pending = self._all.get(name)
            if pending is None:
                line = self._lines.get(name[0])
                most = WAITING_LIGHT if self._standing.is_light(name[0], self._clock()) else WAITING_HEAVY
                if line is not None and len(line) >= most:
                    return False
                pending = self._all[name] = PendingGrammar(name, request)
                self._lines.setdefault(name[0], OrderedDict())[name] = pending
                self._changed.notify_all()
            pending.waiting[job] = ended
            return True

    def remove_job(self, job: tuple[int, int], name: Name) -> None:
        """Take a job out: what nobody waits for is not compiled."""
        with self._changed:
            pending = self._all.get(name)
            if pending is None or pending.waiting.pop(job, None) is None or pending.wanted:
                return
            # One that is being compiled is given up by its compiler; who asks for it again begins anew.
            del self._all[name]
            self._unlist(pending)

    def take_job(self, *, anybody: bool) -> PendingGrammar:
        """Wait for the next grammar to compile; without `anybody`, of a tenant in good standing."""
        with self._changed:
            while (found := self._next(anybody=anybody)) is None:
                # Time alone makes a tenant's standing better.
                self._changed.wait(1.0 if self._lines else None)
            self._unlist(found)
            if found.tenant in self._lines:
                self._lines.move_to_end(found.tenant)
            self._busy.add(found.tenant)
            found.began_at = self._clock()
            return found

    def job_done(self, pending: PendingGrammar, spent_s: float) -> list[tuple[tuple[int, int], Ended]]:
        """Take out a grammar that was compiled, or failed, or was given up; return those who waited to the end."""
        with self._changed:
            self._busy.discard(pending.tenant)
            self._standing.charge_time(pending.tenant, spent_s, self._clock())
            if self._all.get(pending.name) is pending:
                del self._all[pending.name]
            waited = [*pending.waiting.items()]
            pending.waiting.clear()
            self._changed.notify_all()
            return waited

    def _next(self, *, anybody: bool) -> PendingGrammar | None:
        now = self._clock()
        tenants = [tenant for tenant in self._lines if tenant not in self._busy]
        owed = {tenant: self._standing.owed_s(tenant, now) for tenant in tenants}
        light = [tenant for tenant in tenants if self._standing.is_light(tenant, now)]
        # Light ones take turns: a line goes to the end with each grammar that is taken from it.
        tenant = light[0] if light else min(tenants, key=lambda one: owed[one], default=None) if anybody else None
        return next(iter(self._lines[tenant].values())) if tenant is not None else None

    def _unlist(self, pending: PendingGrammar) -> None:
        line = self._lines.get(pending.tenant)
        if line is None or line.pop(pending.name, None) is None:
            return
        if not line:
            del self._lines[pending.tenant]
