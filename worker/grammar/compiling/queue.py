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
GrammarKey = tuple[str, bytes]
"""A tenant, and a digest of what was asked for."""
WAITING_LIGHT, WAITING_HEAVY = 64, 4
"""Grammars of one tenant that may wait, by its standing."""


class PendingGrammar:
    """One grammar, and everybody who waits for it, by job and attempt."""

    __slots__ = ("began_at", "key", "request", "waiting")

    def __init__(self, key: GrammarKey, request: Compile) -> None:
        self.key = key
        self.request = request
        self.waiting: dict[tuple[int, int], Ended] = {}
        self.began_at: float | None = None

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.key[0]

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
        self._all: dict[GrammarKey, PendingGrammar] = {}
        self._queues: OrderedDict[str, OrderedDict[GrammarKey, PendingGrammar]] = OrderedDict()
        self._busy: set[str] = set()

    def __len__(self) -> int:
        return len(self._all)

    def add_job(self, key: GrammarKey, request: Compile, job: tuple[int, int], ended: Ended) -> bool:
        """Have `job` wait for a grammar; return False where its tenant has too many that wait."""
        with self._changed:
            pending = self._all.get(key)
            if pending is None:
                queue = self._queues.get(key[0])
                most = WAITING_LIGHT if self._standing.is_light(key[0], self._clock()) else WAITING_HEAVY
                if queue is not None and len(queue) >= most:
                    return False
                pending = self._all[key] = PendingGrammar(key, request)
                self._queues.setdefault(key[0], OrderedDict())[key] = pending
                self._changed.notify_all()
            pending.waiting[job] = ended
            return True

    def remove_job(self, job: tuple[int, int], key: GrammarKey) -> None:
        """Take a job out: what nobody waits for is not compiled."""
        with self._changed:
            pending = self._all.get(key)
            if pending is None or pending.waiting.pop(job, None) is None or pending.wanted:
                return
            # One that is being compiled is given up by its compiler; who asks for it again begins anew.
            del self._all[key]
            self._dequeue(pending)

    def take_job(self, *, anybody: bool) -> PendingGrammar:
        """Wait for the next grammar to compile; without `anybody`, of a tenant in good standing."""
        with self._changed:
            while (found := self.next_grammar(anybody=anybody)) is None:
                # Time alone makes a tenant's standing better.
                self._changed.wait(1.0 if self._queues else None)
            self._dequeue(found)
            if found.tenant in self._queues:
                self._queues.move_to_end(found.tenant)
            self._busy.add(found.tenant)
            found.began_at = self._clock()
            return found

    def job_done(self, pending: PendingGrammar, spent_s: float) -> list[tuple[tuple[int, int], Ended]]:
        """Take out a grammar that was compiled, or failed, or was given up; return those who waited to the end."""
        with self._changed:
            self._busy.discard(pending.tenant)
            self._standing.charge_time(pending.tenant, spent_s, self._clock())
            if self._all.get(pending.key) is pending:
                del self._all[pending.key]
            waited = [*pending.waiting.items()]
            pending.waiting.clear()
            self._changed.notify_all()
            return waited

    def next_grammar(self, *, anybody: bool) -> PendingGrammar | None:
        """Return what `take_job` would take now; None: it would wait."""
        now = self._clock()
        tenants = [tenant for tenant in self._queues if tenant not in self._busy]
        owed = {tenant: self._standing.owed_s(tenant, now) for tenant in tenants}
        light = [tenant for tenant in tenants if self._standing.is_light(tenant, now)]
        # Light ones take turns: a tenant's queue goes to the end with each grammar that is taken from it.
        tenant = light[0] if light else min(tenants, key=lambda one: owed[one], default=None) if anybody else None
        return next(iter(self._queues[tenant].values())) if tenant is not None else None

    def _dequeue(self, pending: PendingGrammar) -> None:
        queue = self._queues.get(pending.tenant)
        if queue is None or queue.pop(pending.key, None) is None:
            return
        if not queue:
            del self._queues[pending.tenant]
