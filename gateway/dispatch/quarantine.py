"""Which request may be what engines die of: who was aboard when, who is cleared, who is refused. Pure.

An engine that dies takes innocent rows along, so being aboard proves little. Requests that were aboard are
*suspects*: each is tried again with no other suspect beside it, and is cleared once it has got further. One that
ends a second engine so is *guilty*: it is refused, and so is every equal request for a while. What equals
a request that ran well has *credit*: it takes more deaths.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.dispatch.flight import JobState
from protocol.messages import EmbedJob, GenerateJob

if TYPE_CHECKING:
    from gateway.dispatch.model import WorkerState

PROOF_OUTPUT = 4
"""Deltas that a suspect has to bring before it is cleared: more than an engine computes ahead of what it sends."""
PROOF_S = 0.05
"""And so long after the first of them: frames that a dying engine had not sent yet are milliseconds old."""
DOUBLED_S = 5.0
"""Each time that suspects have waited so long for an engine that is up, twice as many may be tried together: where
prompts take seconds to compute, one by one would keep some waiting until they are given up."""
REMEMBERED = 1024
REMEMBER_S = 600.0
"""How many marked requests are remembered, and how long."""
UNRELIABLE_S = 30.0
"""An engine that died without a request, so short a time ago, speaks for that request."""
MANY = 6
"""So many deaths within that time have another reason than one request: suspects need not go one by one any more, which
would starve some of them where engines live for seconds only."""
BEHIND_S = 15.0
"""So long those that were aboard a second death wait then for the others, and for each other."""
GUILTY, HOPELESS = 2, 3
"""Deaths that make a request guilty; and those that do so even where something speaks for it, unless as many engines
died without it lately."""
STEADY_S = 0.5
"""A request whose output had flowed for so long when it first lost its engine is not the likeliest reason."""
FURTHER_OUTPUT, FURTHER_S = 2, 0.01
"""A suspect that brought more deltas than this (a choice) and for longer got further than where its engine died:
what it would have died of is behind it."""
VERDICT_S = 4.0
"""So long the judgement of a guilty request waits for an engine to die without it, which would speak for it."""
MAX_CREDIT = 4
"""Equal requests that finished count so often, at most: one that engines die of now and then is found, too."""
AMBIGUOUS = 3
"""So many deaths that prove little count as one that proves something."""
AT_ONCE_S = 0.25
"""While engines die all the time, one that lived longer than this with a request proves nothing: that may not
even have had its turn."""
LAGGING = 16
"""If an equal request once got so many tokens further, it was not the request that ended this one."""


class CrashRecord:
    """What is held against all equal requests: engines that died `count` times, and `doubts` times with others aboard.

    `refused`: so were they, and so will they be.

    `reached` is how many tokens any of them ever got. `credit` is how many more deaths it takes: one if an equal was
    cleared before, or had run well for a while; one for each that finished.
    """

    __slots__ = ("count", "credit", "doubts", "fingerprint", "reached", "refused", "since")

    def __init__(self, fingerprint: bytes, now: float, *, credit: int) -> None:
        self.fingerprint = fingerprint
        self.count = 0
        self.doubts = 0
        self.reached = 0
        self.refused = False
        self.since = now
        self.credit = credit


class Crash(msgspec.Struct, frozen=True):
    """An engine's death: of which model, when, with which requests aboard; `blamed` was the only suspect there."""

    model: str
    at: float
    aboard: frozenset[bytes]
    blamed: CrashRecord | None

    @property
    def explained(self) -> bool:
        """Whether somebody seems to be why who has not got further since."""
        return self.blamed is not None and self.blamed.count >= GUILTY


class Quarantine:
    """All marks, and the crashes of late."""

    def __init__(self) -> None:
        self.refused = 0
        """Requests that were refused for what they, or their equals, had done."""
        self._marks: OrderedDict[bytes, CrashRecord] = OrderedDict()
        self._credits: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """What ran well of late: how often, and when last."""
        self._crashes: deque[Crash] = deque(maxlen=REMEMBERED)

    def recognise(self, flight: JobState, now: float) -> None:
        """Mark a newcomer that equals a suspect. Costs a hash of the request, but only while there are marks."""
        self._forget(now)
        if self._marks:
            flight.crash_record = self._marks.get(fingerprint(flight))

    def crashed(self, model: str, aboard: Sequence[JobState], now: float) -> None:
        """An engine of `model` died with these aboard."""
        self._forget(now)
        suspects = [flight for flight in aboard if flight.suspect]
        blamed = suspects[0].crash_record if len(suspects) == 1 else None
        for flight in aboard:
            if not flight.suspect:
                flight.crash_record = self._mark(flight, now)
            # Before anybody is accused: an equal beside it may have got further without harm.
            if flight.crash_record is not None:
                flight.crash_record.reached = max(flight.crash_record.reached, flight.stream.reached)
        for flight in {id(flight.crash_record): flight for flight in suspects}.values():
            self._accuse(flight, alone=len(suspects) == 1, now=now)
        names = frozenset(flight.crash_record.fingerprint for flight in aboard if flight.crash_record)
        self._crashes.append(Crash(model, now, names, blamed))

    def clear(self, flight: JobState, now: float) -> None:
        """A suspect got further than where its engine died."""
        if flight.crash_record is not None:
            flight.crash_record.count = 0
            self._marks.pop(flight.crash_record.fingerprint, None)
            self._credit(flight.crash_record.fingerprint, now, at_most=1)
            flight.crash_record = None

    def finished(self, flight: JobState, now: float) -> None:
        """A request ran to its end, which speaks for its equals should they be aboard when an engine dies."""
        self.clear(flight, now)
        if not flight.slotless:
            self._credit(fingerprint(flight), now, at_most=MAX_CREDIT)

    def proven(self, flight: JobState, now: float) -> bool:
        """Count one more delta of a suspect; whether it is cleared by it."""
        if flight.trial_began_at is None:
            flight.trial_began_at = now
        flight.trial_output += 1
        return flight.trial_output >= PROOF_OUTPUT and now - flight.trial_began_at >= PROOF_S

    def doomed(self, flight: JobState) -> bool:
        """Whether a request that just came equals one that was refused."""
        return flight.crash_record is not None and flight.crash_record.refused

    def hopeless(self, flight: JobState, now: float) -> bool:
        """Whether nothing can speak for a suspect any more, or its equal has been refused."""
        mark = flight.crash_record
        return mark is not None and (
            mark.refused
            or mark.count >= max(HOPELESS, GUILTY + mark.credit, len(self._without(flight.model.name, now, mark)) + 1)
        )

    def guilty(self, flight: JobState, now: float, *, last: bool) -> bool:
        """Whether a suspect is to be refused.

        It gets the benefit of the doubt if something vouches for it, and where engines die without it, too; but
        where only such as it are left, not for deaths that another of them seems to be the reason of.
        """
        mark = flight.crash_record
        if mark is None or mark.count < GUILTY:
            return False
        others = self._without(flight.model.name, now, mark)
        unexplained = sum(not crash.explained for crash in others)
        proven = last and mark.count >= max(HOPELESS, GUILTY + mark.credit, unexplained + 1)
        return proven or self.hopeless(flight, now) or not (mark.credit or others)

    def storm(self, model: str, now: float) -> bool:
        """Whether engines of a model die so often that no one request can be why."""
        return len(self._without(model, now, None)) >= MANY

    def admits(self, worker: "WorkerState", newcomer: JobState, now: float, *, storm: bool) -> bool:
        """Whether a suspect may go to a worker now: as many are on trial there together as its long wait excuses.

        Those that are known to run well do not wait for each other, and in a storm nobody does who was aboard one death
        only; others go together behind them.
        """
        if storm and not newcomer.accused:
            return True
        rivals = sum(
            flight.suspect and not (flight.creditable and newcomer.creditable) and not (storm and flight.accused)
            for flight in worker.in_flight.values()
        )
        waited_s = now - max(newcomer.queued_at, worker.up_at)
        return rivals < 1 << int(min(waited_s / DOUBLED_S, 10))

    def ripe(self, flight: JobState, now: float) -> bool:
        """Whether a guilty request has waited long enough for something that speaks for it."""
        return flight.crash_record is None or now - flight.crash_record.since >= VERDICT_S

    def refuse(self, flight: JobState) -> None:
        """Its deaths are explained: they speak for nobody else any more."""
        self.refused += 1
        mark = flight.crash_record
        if mark is not None:
            mark.refused = True
            mark.count = max(mark.count, GUILTY)
            explained = [crash for crash in self._crashes if mark.fingerprint in crash.aboard]
            for crash in explained:
                self._crashes.remove(crash)

    # -- inside ------------------------------------------------------------

    def _accuse(self, flight: JobState, *, alone: bool, now: float) -> None:
        """An engine died with this suspect aboard, the only one or among others."""
        mark = flight.crash_record
        if mark is None:
            return
        if _further(flight, now):
            # Who kills does so at the same place: whatever died before, it was not of this. Its end will clear it.
            mark.count, mark.doubts = min(mark.count, 1), 0
            return
        if not alone and self.storm(flight.model.name, now) and now - flight.boarded_at > AT_ONCE_S:
            return
        if not alone or flight.stream.reached + LAGGING < mark.reached:
            mark.doubts += 1
            if mark.doubts % AMBIGUOUS:
                return
        mark.count += 1
        mark.since = now
        if mark.fingerprint in self._marks:
            self._marks.move_to_end(mark.fingerprint)

    def _mark(self, flight: JobState, now: float) -> CrashRecord:
        """Return the mark of a request that was aboard for the first time (or again, after it had been cleared)."""
        key = fingerprint(flight)
        mark = self._marks.get(key)
        if mark is None:
            steady = flight.output_at is not None and now - flight.output_at >= STEADY_S
            credit, _ = self._credits.get(key, (0, now))
            mark = self._marks[key] = CrashRecord(key, now, credit=max(credit, int(steady)))
            while len(self._marks) > REMEMBERED:
                self._marks.popitem(last=False)
        mark.count = max(mark.count, 1)
        return mark

    def _credit(self, key: bytes, now: float, *, at_most: int) -> None:
        credit, _ = self._credits.pop(key, (0, now))
        credit = max(credit, min(credit + 1, at_most))
        self._credits[key] = credit, now
        if (mark := self._marks.get(key)) is not None:
            mark.credit = max(mark.credit, credit)
        if len(self._credits) > REMEMBERED:
            self._credits.popitem(last=False)

    def _without(self, model: str, now: float, mark: CrashRecord | None) -> list[Crash]:
        """The late deaths that can't be this one's."""
        return [
            crash
            for crash in self._crashes
            if crash.model == model
            and now - crash.at < UNRELIABLE_S
            and (mark is None or mark.fingerprint not in crash.aboard)
        ]

    def _forget(self, now: float) -> None:
        while self._marks and now - next(iter(self._marks.values())).since > REMEMBER_S:
            self._marks.popitem(last=False)
        while self._credits and now - next(iter(self._credits.values()))[1] > REMEMBER_S:
            self._credits.popitem(last=False)
        while self._crashes and now - self._crashes[0].at > UNRELIABLE_S:
            self._crashes.popleft()


def _further(flight: JobState, now: float) -> bool:
    began_at = flight.trial_began_at
    return (
        began_at is not None and flight.trial_output > FURTHER_OUTPUT * flight.choices and now - began_at >= FURTHER_S
    )


def innocence(flight: JobState) -> tuple[int, bool, int, int]:
    """Who is tried first: what killed less, what is known to run well, what has output to prove it, what is older."""
    return (
        0 if flight.crash_record is None else flight.crash_record.count,
        not flight.creditable,
        -flight.reached,
        flight.id,
    )


def fingerprint(flight: JobState) -> bytes:
    """A hash of all that makes two requests equal for an engine, whoever sent them; seeds are drawn anew each time.

    Images are told apart by the digests in the job: hashing all that was aboard a crash would hold up the event loop.
    """
    job = msgspec.structs.replace(flight.job, job=0, attempt=0, tenant="")
    if isinstance(job, GenerateJob):
        sampling = msgspec.structs.replace(job.sampling, seed=0)
        job = msgspec.structs.replace(job, request_id="", sampling=sampling)
    elif isinstance(job, EmbedJob):
        job = msgspec.structs.replace(job, request_id="")
    digest = hashlib.blake2b(flight.model.name.encode(), digest_size=16)
    try:
        digest.update(msgspec.msgpack.encode(job))
    except (ValueError, OverflowError, TypeError):
        # What can't be encoded is never sent, and so kills nobody.
        return b""
    return digest.digest()
