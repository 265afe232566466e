"""Jobs that wait for a grammar: what room they take at a worker, and from whom."""

from gateway.dispatch.state import JobState
from protocol.messages import ChatPrompt, GenerateJob, Grammar, TextPrompt
from tests.support.dispatch_rig import Rig, generate


def ruled(tenant: str, number: int, **fields: object) -> GenerateJob:
    """A job that needs a grammar of its own."""
    return generate(tenant=tenant, prompt=TextPrompt(f"{tenant} {number}"), grammar=Grammar("regex", "x"), **fields)


def plain(tenant: str, number: int = 0) -> GenerateJob:
    return generate(tenant=tenant, prompt=TextPrompt(f"plain {tenant} {number}"))


def aboard(*flights: JobState) -> list[bool]:
    return [flight.worker is not None for flight in flights]


def test_job_is_ruled_when_anything_has_to_be_compiled_for_it() -> None:
    """Grammars, demands, named tools, strict tools; nothing else."""
    strict = ChatPrompt(b"[]", b'[{"function":{"name":"f","strict":true}}]')
    loose = ChatPrompt(b"[]", b'[{"function":{"name":"f","strict":false}}]')
    yes = (ruled("t", 1), generate(tool_choice="required"), generate(tool_names=["f"]), generate(prompt=strict))
    assert all(job.constrained for job in yes)
    assert not any(job.constrained for job in (generate(), generate(prompt=loose), generate(tool_choice="none")))


async def test_others_have_all_slots_when_one_tenants_jobs_wait_for_grammars(rig: Rig) -> None:
    """Sixteen of one key that compile keep none of another's chat waiting; a seventeenth of its own does wait."""
    worker = rig.join(slots=4)
    compiling = [rig.submit(ruled("many", number)) for number in range(16)]
    assert aboard(*compiling) == [True] * 5 + [False] * 11
    others = [rig.submit(plain("other", number)) for number in range(6)]
    assert aboard(*others) == [True] * 5 + [False]
    assert aboard(rig.submit(plain("many"))) == [False]
    assert worker.rows == 10


async def test_room_is_taken_from_all_when_a_grammar_has_been_compiled(rig: Rig) -> None:
    """As soon as the model takes a job it is one like any other, and gives its room back as one."""
    worker = rig.join(slots=2)
    first, second = (rig.submit(ruled("a", number)) for number in range(2))
    for flight in (first, second):
        rig.accept(flight)
    assert not worker.compiling
    others = [rig.submit(plain("b", number)) for number in range(2)]
    assert aboard(*others) == [True, False]
    rig.done(first)
    assert aboard(*others) == [True, True]
    rig.done(second)
    for flight in others:
        rig.done(flight)
    assert worker.rows == 0


async def test_callers_take_turns_when_another_waits_for_its_own_grammars(rig: Rig) -> None:
    """Passing one that can't go takes nothing from the order of the others."""
    rig.join(slots=1)
    stuck = [rig.submit(ruled("stuck", number)) for number in range(4)]
    assert aboard(*stuck) == [True, True, False, False]
    running = [rig.submit(plain("c", number)) for number in range(2)]
    b = [rig.submit(plain("b", number)) for number in range(3)]
    c = [rig.submit(plain("c", number)) for number in range(2, 5)]
    for flight in running:
        rig.done(flight)
    assert aboard(*b, *c) == [True, False, False, True, False, False]
    rig.done(stuck[0])
    assert aboard(*stuck[2:]) == [False, False]
    rig.done(b[0])
    rig.done(c[0])
    assert (sum(aboard(*b[1:])), sum(aboard(*c[1:]))) == (1, 1)


async def test_room_comes_back_when_who_waits_for_a_grammar_leaves_or_is_lost(rig: Rig) -> None:
    """However it ends, nothing is left of it in any count."""
    worker = rig.join(slots=4)
    leaves, stays = rig.submit(ruled("a", 1)), rig.submit(ruled("b", 2, n=3))
    assert dict(worker.compiling) == {"a": 1, "b": 3}
    rig.dispatcher.release_job(leaves)
    rig.done(leaves)
    assert dict(worker.compiling) == {"b": 3}
    again = rig.join("w2", slots=4)
    rig.lose(worker)
    assert stays.worker is again and dict(again.compiling) == {"b": 3}
    rig.accept(stays)
    rig.done(stays)
    assert (again.rows, dict(again.compiling)) == (0, {})
