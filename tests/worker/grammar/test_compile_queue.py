"""Whose grammar is compiled next, and what a tenant's grammars cost it. Pure, with a clock of its own."""

import threading
from unittest.mock import Mock

from protocol.errors import Code, JobError
from protocol.messages import GenerateJob, Sampling, TextPrompt
from worker.grammar.compiling.compiled import CompiledGrammar
from worker.grammar.compiling.memory import (
    FIRST_DOUBT_S,
    KEPT,
    KEPT_BYTES,
    LONGEST_DOUBT_S,
    REMEMBERED,
    GrammarMemory,
    Verdict,
)
from worker.grammar.compiling.queue import WAITING_HEAVY, WAITING_LIGHT, CompileQueue, PendingGrammar
from worker.grammar.compiling.standing import FIRST_PAUSE_S, LIGHT_S, LONGEST_PAUSE_S, MOST_S, PAID_PER_S, Standing
from worker.grammar.compiling.standing import REMEMBERED as REMEMBERED_TENANTS
from worker.grammar.compiling.wire import Compile
from worker.grammar.constraint import GrammarSpec

REQUEST = Compile(GenerateJob(0, 0, "", "", TextPrompt(""), Sampling(0)), None, 5.0, 1 << 30)
PATIENCE_S = 10.0


class Rig:
    """A queue whose clock stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.standing = Standing()
        self.queue = CompileQueue(self.standing, clock=lambda: self.now)
        self._jobs = 0

    def put(self, tenant: str, digest: bytes) -> tuple[int, int] | None:
        """A job that waits for it; None if it was refused."""
        self._jobs += 1
        place = (self._jobs, 1)
        return place if self.queue.add_job((tenant, digest), REQUEST, place, lambda _: None) else None

    def take(self, *, anybody: bool) -> PendingGrammar | None:
        """The next one, if there is one."""
        found = self.queue.next_grammar(anybody=anybody)
        return None if found is None else self.queue.take_job(anybody=anybody)


def digests(found: list[PendingGrammar | None]) -> list[tuple[str, bytes] | None]:
    return [None if one is None else one.key for one in found]


def test_tenants_take_turns_and_have_one_compiled_at_a_time() -> None:
    """However many one has, another's comes after a single one of these."""
    rig = Rig()
    for digest in (b"1", b"2", b"3"):
        rig.put("many", digest)
    rig.put("one", b"4")
    first, second = rig.take(anybody=True), rig.take(anybody=True)
    assert digests([first, second]) == [("many", b"1"), ("one", b"4")]
    assert rig.take(anybody=True) is None
    assert first is not None
    rig.queue.job_done(first, 0.01)
    assert digests([rig.take(anybody=False)]) == [("many", b"2")]


def test_costly_tenant_is_left_to_one_compiler_and_waits_behind_others() -> None:
    """Until what was spent on it is forgotten."""
    rig = Rig()
    rig.standing.charge_time("heavy", 5.0, rig.now)
    rig.put("heavy", b"1")
    assert rig.take(anybody=False) is None
    rig.put("light", b"2")
    assert digests([rig.take(anybody=True)]) == [("light", b"2")]
    assert digests([rig.take(anybody=True)]) == [("heavy", b"1")]
    rig.put("heavy", b"3")
    rig.now += (5.0 - LIGHT_S) / PAID_PER_S
    assert rig.standing.is_light("heavy", rig.now)


def test_jobs_that_want_the_same_grammar_wait_for_one() -> None:
    """It is compiled once; the last one to leave takes it out of the queue, or has it given up."""
    rig = Rig()
    first, second = rig.put("t", b"1"), rig.put("t", b"1")
    assert first and second
    found = rig.take(anybody=True)
    assert found is not None and found.wanted
    rig.queue.remove_job(first, ("t", b"1"))
    assert found.wanted
    rig.queue.remove_job(second, ("t", b"1"))
    assert not found.wanted and len(rig.queue) == 0
    # Who asks for it meanwhile begins anew.
    assert rig.put("t", b"1")
    assert rig.queue.job_done(found, 1.0) == []
    again = rig.take(anybody=True)
    assert again is not None and again is not found


def test_queue_is_bounded_by_tenant_and_standing() -> None:
    """One tenant's place is no other's."""
    rig = Rig()
    assert all(rig.put("a", bytes([at])) for at in range(WAITING_LIGHT))
    assert rig.put("a", b"beyond") is None
    assert rig.put("b", b"1")
    rig.standing.charge_time("c", 2 * LIGHT_S, rig.now)
    assert all(rig.put("c", bytes([at])) for at in range(WAITING_HEAVY))
    assert rig.put("c", b"beyond") is None


def test_compiler_that_waits_wakes_when_something_comes() -> None:
    """Also one that takes grammars of tenants in good standing only."""
    rig = Rig()
    found: list[PendingGrammar] = []
    worker = threading.Thread(target=lambda: found.append(rig.queue.take_job(anybody=False)), daemon=True)
    worker.start()
    rig.put("t", b"1")
    worker.join(PATIENCE_S)
    assert [one.key for one in found] == [("t", b"1")]


def test_pause_grows_when_streams_are_held_up_again_and_again() -> None:
    """Several at once count as one; a long quiet time makes it short again."""
    standing, now = Standing(), 0.0
    standing.bar_tenant("t", now)
    standing.bar_tenant("t", now)
    assert standing.wait_s("t", now) == FIRST_PAUSE_S
    now += FIRST_PAUSE_S
    assert standing.wait_s("t", now) == 0.0
    standing.bar_tenant("t", now)
    assert standing.wait_s("t", now) == 2 * FIRST_PAUSE_S
    now += 2 * FIRST_PAUSE_S + LONGEST_PAUSE_S + 1
    standing.bar_tenant("t", now)
    assert standing.wait_s("t", now) == FIRST_PAUSE_S
    assert standing.wait_s("another", now) == 0.0


def test_tenant_waits_when_far_too_much_was_spent_on_it() -> None:
    """For exactly as long as it takes to be forgotten."""
    standing = Standing()
    standing.charge_time("t", MOST_S + 5.0, 0.0)
    wait_s = standing.wait_s("t", 0.0)
    assert wait_s == 5.0 / PAID_PER_S
    assert standing.wait_s("t", wait_s) == 0.0


def test_verdict_that_something_took_too_much_expires() -> None:
    """It is tried again after a minute, then after two; what can't be compiled at all is not."""
    memory, error = GrammarMemory(), JobError(Code.INVALID_REQUEST, "no")
    key = ("t", b"1")
    memory.record_doubt(key, error, 0.0)
    assert isinstance(memory.find_grammar(key, FIRST_DOUBT_S - 1), Verdict)
    assert memory.find_grammar(("another", b"1"), 0.0) is None
    assert memory.find_grammar(key, FIRST_DOUBT_S + 1) is None
    memory.record_doubt(key, error, FIRST_DOUBT_S + 1)
    assert memory.find_grammar(key, 3 * FIRST_DOUBT_S) is not None
    assert memory.find_grammar(key, 3 * FIRST_DOUBT_S + 2) is None
    memory.record_refusal(("t", b"2"), error)
    assert memory.find_grammar(("t", b"2"), 1e9) is not None


def test_one_tenants_verdicts_push_out_its_own() -> None:
    """What another tenant is known for stays known."""
    memory = GrammarMemory()
    memory.record_refusal(("small", b""), None)
    for number in range(2 * REMEMBERED):
        memory.record_refusal(("large", number.to_bytes(4, "big")), None)
    assert memory.find_grammar(("small", b""), 0.0) is not None
    large = [memory.find_grammar(("large", number.to_bytes(4, "big")), 0.0) for number in range(2 * REMEMBERED)]
    assert sum(found is not None for found in large) == REMEMBERED - 1


def test_doubt_of_a_grammar_grows_no_longer_than_an_hour() -> None:
    """However often it took too much."""
    memory, error, now = GrammarMemory(), JobError(Code.INVALID_REQUEST, "no"), 0.0
    for _ in range(20):
        memory.record_doubt(("t", b"1"), error, now)
        now += LONGEST_DOUBT_S + 1
        assert memory.find_grammar(("t", b"1"), now) is None


def test_grammars_are_kept_within_bounds_and_who_holds_most_gives_first() -> None:
    """By number and by size; one alone is kept, however large."""
    memory = GrammarMemory()

    def known(tenant: str) -> list[int]:
        found = range(2 * KEPT + 1)
        return [number for number in found if memory.find_grammar((tenant, number.to_bytes(4, "big")), 0.0) is not None]

    def keep(tenant: str, number: int, grown_bytes: int) -> None:
        key, process = (tenant, number.to_bytes(4, "big")), Mock(alive=True)
        memory.keep_grammar(
            CompiledGrammar(key, Mock(spec=GrammarSpec), REQUEST, process, spent_s=0.0, grown_bytes=grown_bytes)
        )

    keep("small", 0, 1)
    for number in range(2 * KEPT):
        keep("large", number, 1)
    assert known("small") == [0]
    assert len(known("large")) == KEPT - 1 and 0 not in known("large")
    keep("large", 2 * KEPT, KEPT_BYTES + 1)
    assert (known("small"), known("large")) == ([], [2 * KEPT])


def test_debts_are_bounded_when_very_many_tenants_have_some() -> None:
    """The one that is longest ago is forgotten."""
    standing = Standing()
    for number in range(REMEMBERED_TENANTS + 1):
        standing.charge_time(str(number), MOST_S, 0.0)
    assert (standing.owed_s("0", 0.0), standing.owed_s("1", 0.0)) == (0.0, MOST_S)
