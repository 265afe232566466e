"""Which request engines die of: who ran at a crash, who may be tried again, who is refused. Pure.

An engine that dies takes innocent rows along, so to have run there proves little. Requests that ran are *suspects*.
Each is tried again with no other suspect beside it, and is cleared once it has got further. One that ends a second
engine so is refused, and so is every equal request for a while.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec

from gateway.dispatch.crash_record import CrashRecord
from gateway.dispatch.fingerprint import fingerprint
from gateway.dispatch.state import JobState, ModelState, WorkerState

DEATHS = 2
"""So many deaths refuse a request, unless something speaks for it."""
MANY = 7
"""So many deaths lately have another reason than one request: nobody is judged. Credit alone excuses fewer."""
STEADY_S = 0.5
"""A request whose output had flowed for so long at its first death has credit for one more."""
CLEARED_S = 0.05
"""A suspect is cleared by output so long after the first of its trial. What a dying engine had not sent is younger."""
TRIAL_S = 5.0
"""So long a judgement waits for an engine to die without the suspect. For each time that suspects have waited so long,
twice as many are tried together: prompts may take seconds."""
LATELY_S = 30.0
"""How long a death counts as late, and speaks for the requests that did not run there."""
REMEMBER_S, REMEMBERED = 600.0, 1024
"""How long requests are remembered, and how many."""


class _Crash(msgspec.Struct, frozen=True):
    """An engine's death: of which model, when, what ran there, and which record it counted against as one more."""

    model: str
    at: float
    fingerprints: frozenset[bytes]
    blamed: CrashRecord | None


class Quarantine:
    """All crash records, the requests that ran well, and the crashes of late."""

    def __init__(self) -> None:
        self.refused = 0
        """Requests that were refused for what they, or their equals, had done."""
        self._records: OrderedDict[bytes, CrashRecord] = OrderedDict()
        self._credits: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Of what ran well: how often, and when last."""
        self._crashes: deque[_Crash] = deque(maxlen=REMEMBERED)

    def find_record(self, job: JobState, now: float) -> None:
        """Give a newcomer the record of its equals. Costs a hash of the request, but only while there are records."""
        self._forget(now)
        if self._records:
            job.crash_record = self._records.get(fingerprint(job.model.name, job.message))

    def is_blocked(self, job: JobState) -> bool:
        """Return whether a request equals one that was refused."""
        return job.crash_record is not None and job.crash_record.blocked

    def on_crash(self, model: str, jobs: Sequence[JobState], now: float) -> None:
        """Take in that an engine of `model` died while these ran. Newcomers become suspects."""
        self._forget(now)
        storm = len(self._crashes_without(model, None, now)) >= MANY
        suspects = [job for job in jobs if job.suspect]
        newcomers = [job for job in jobs if not job.suspect]
        for job in newcomers:
            job.crash_record = self._open_record(job, now)
        records = [job.crash_record for job in jobs if job.crash_record is not None]
        blamed = None
        if not storm:
            for record in {job.crash_record for job in newcomers if job.crash_record is not None}:
                record.deaths = max(record.deaths, 1)
            blamed = self._accuse(suspects, records, now)
        self._crashes.append(_Crash(model, now, frozenset(record.fingerprint for record in records), blamed))

    def on_output(self, job: JobState, now: float) -> bool:
        """Take in output of a request that has a record; return whether that clears a suspect."""
        if not job.suspect:
            job.crash_record = None
            return False
        if job.trial_began_at is None:
            job.trial_began_at = now
        cleared = now - job.trial_began_at >= CLEARED_S
        if cleared:
            self.clear(job, now)
        return cleared

    def on_finish(self, job: JobState, now: float) -> None:
        """Take in that a request ran to its end, which speaks for its equals."""
        self.clear(job, now)
        if not job.slotless:
            self._add_credit(fingerprint(job.model.name, job.message), now, at_most=MANY - DEATHS - 1)

    def clear(self, job: JobState, now: float) -> None:
        """Take in that a suspect got further than where its engine died."""
        record, job.crash_record = job.crash_record, None
        if record is not None:
            record.deaths, record.blocked = 0, False
            self._records.pop(record.fingerprint, None)
            self._add_credit(record.fingerprint, now, at_most=1)

    def may_start(self, job: JobState, worker: WorkerState, now: float) -> bool:
        """Return whether a suspect may go to a worker: of equal ones one at a time, of others few where it is tried."""
        if not job.suspect or len(self._crashes_without(job.model.name, None, now)) >= MANY:
            return True
        if self._is_guilty(job, now) or any(other.crash_record is job.crash_record for other in job.model.in_flight):
            return False
        waited_s = now - max(job.queued_at, worker.up_at)
        return sum(other.suspect for other in worker.in_flight.values()) < 1 << int(min(waited_s / TRIAL_S, 10))

    def find_guilty(self, model: ModelState, now: float) -> JobState | None:
        """Return a waiting suspect that is to be refused now. Its deaths then speak for nobody else: ask again."""
        guilty = [job for job in model.suspects if self._is_guilty(job, now)]
        undecided = guilty and any(
            job.suspect and not self._is_guilty(job, now) for job in (*model.suspects, *model.in_flight)
        )
        for job in guilty:
            record = job.crash_record
            if record is not None and (record.blocked or record.deaths > DEATHS):
                return job
            # Another one may be why, or an engine may yet die without it.
            if record is not None and not undecided and now - record.since >= TRIAL_S:
                return job
        return None

    def refuse(self, job: JobState) -> None:
        """Block a request and its equals. The crashes where it ran are explained: they count against nobody else."""
        self.refused += 1
        record = job.crash_record
        if record is None:
            return
        record.blocked = True
        for crash in [crash for crash in self._crashes if record.fingerprint in crash.fingerprints]:
            self._crashes.remove(crash)
            if crash.blamed is not None and crash.blamed is not record:
                crash.blamed.deaths = max(0, crash.blamed.deaths - 1)

    # -- inside ------------------------------------------------------------

    def _accuse(self, suspects: Sequence[JobState], records: Sequence[CrashRecord], now: float) -> CrashRecord | None:
        """Count a death against the only suspect that ran; return its record."""
        for job in suspects:
            record = job.crash_record
            if record is None:
                continue
            if job.stream.reached > job.reached + job.choices:
                # Who kills does so at the same place: this one got past where its engine died before.
                record.deaths = 1
            elif len(suspects) == 1 and records.count(record) == 1:
                record.deaths += 1
                record.since = now
                if record.fingerprint in self._records:
                    self._records.move_to_end(record.fingerprint)
                return record
        return None

    def _is_guilty(self, job: JobState, now: float) -> bool:
        """Return whether more engines died of a suspect than its credit, and deaths without it, excuse."""
        record = job.crash_record
        if record is None or record.blocked or record.deaths < DEATHS:
            return record is not None and record.blocked
        without = len(self._crashes_without(job.model.name, record, now))
        return without < MANY and record.deaths >= DEATHS + record.credit + (without + 1) // 2

    def _open_record(self, job: JobState, now: float) -> CrashRecord:
        key = fingerprint(job.model.name, job.message)
        record = self._records.get(key)
        if record is None:
            steady = job.output_at is not None and now - job.output_at >= STEADY_S
            credit, _ = self._credits.get(key, (int(steady), now))
            record = self._records[key] = CrashRecord(key, now, credit=credit)
            while len(self._records) > REMEMBERED:
                self._records.popitem(last=False)
        return record

    def _add_credit(self, key: bytes, now: float, *, at_most: int) -> None:
        credit, _ = self._credits.pop(key, (0, now))
        credit = max(credit, min(credit + 1, at_most))
        self._credits[key] = credit, now
        if (record := self._records.get(key)) is not None:
            record.credit = max(record.credit, credit)
        if len(self._credits) > REMEMBERED:
            self._credits.popitem(last=False)

    def _crashes_without(self, model: str, record: CrashRecord | None, now: float) -> list[_Crash]:
        """Return the late deaths of a model's engines, but for those where such a request ran."""
        return [
            crash
            for crash in self._crashes
            if crash.model == model
            and now - crash.at < LATELY_S
            and (record is None or record.fingerprint not in crash.fingerprints)
        ]

    def _forget(self, now: float) -> None:
        while self._records and now - next(iter(self._records.values())).since > REMEMBER_S:
            self._records.popitem(last=False)
        while self._credits and now - next(iter(self._credits.values()))[1] > REMEMBER_S:
            self._credits.popitem(last=False)
        while self._crashes and now - self._crashes[0].at > LATELY_S:
            self._crashes.popleft()


def trial_order(job: JobState) -> tuple[int, bool, int, int]:
    """Return a key: what killed less goes first, then what is known to run well, what has output, what is older."""
    record = job.crash_record
    return (0, True, 0, job.id) if record is None else (record.deaths, not record.credit, -job.reached, job.id)
