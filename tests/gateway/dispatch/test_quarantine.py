"""Who is tried, cleared and refused when engines die."""

import hashlib

import pytest

from gateway.dispatch.state import JobState
from protocol.errors import Code
from protocol.messages import EmbedJob, Failed, Image, Sampling, TextPrompt, TokenizeJob
from tests.support.dispatch_rig import Rig, failure_code, generate, supervision

MOST_DEATHS = 40
"""So many engines die at most before many killers, which are all different, are refused or given up."""


class FakeCluster:
    """A model whose engine is started again whenever it dies, and of whose requests some kill."""

    def __init__(self, *, slots: int = 16) -> None:
        self.rig = Rig()
        self.slots = slots
        self.deaths = 0
        self.rig.supervise(supervision("none"))
        self.rig.join("w0", slots=slots)

    def crash(self) -> None:
        """Its engine dies, and the next one is there."""
        (worker,) = self.rig.registry.workers.values()
        self.deaths += 1
        self.rig.lose(worker)
        self.rig.join(f"w{self.deaths}", slots=self.slots)

    def run(self, flights: list[JobState], killers: dict[int, int], *, turns: int = 400, length: int = 20) -> None:
        """Every flight aboard gets a token a turn; one in `killers` kills when it should get that one."""
        for _ in range(turns):
            for flight in flights:
                if flight.worker is None or not flight.open:
                    continue
                if flight.stream.reached >= killers.get(flight.id, 1 << 30):
                    self.crash()
                    break
                if flight.stream.reached >= length:
                    self.rig.done(flight)
                else:
                    self.rig.output(flight, tokens=[flight.stream.reached])
            self.rig.clock.now += 0.02
            self.rig.dispatcher.assign_waiting(self.rig.model)


@pytest.mark.parametrize("at", [0, 1, 5, 17])
async def test_bystanders_all_finish_when_a_request_kills_whatever_runs_it(at: int) -> None:
    """Two deaths, one refusal, eight whole answers."""
    cluster = FakeCluster()
    flights = [cluster.rig.submit() for _ in range(9)]
    cluster.run(flights, {flights[4].id: at})
    assert cluster.deaths == 2
    assert [failure_code(flight) for flight in flights] == [None] * 4 + ["worker_crashed"] + [None] * 4
    assert [flight.outcome for flight in flights].count("done") == 8
    assert cluster.rig.dispatcher.quarantine.refused == 1


@pytest.mark.parametrize(
    ("killers", "each"),
    [
        ({1: 0, 4: 0}, 2.0),
        ({0: 1, 8: 1}, 2.0),
        ({2: 0, 3: 0, 7: 0}, 2.0),
        ({1: 3, 4: 6}, 2.5),
        ({1: 17, 4: 0}, 3.0),
    ],
)
async def test_killers_cost_few_engines_each_when_they_ran_together(killers: dict[int, int], each: float) -> None:
    """Each speaks for the others at first, but not once one of them is refused. Whoever kills nothing finishes.

    One that runs well for a while first, in the shade of another one's crash, costs one more.
    """
    cluster = FakeCluster()
    flights = [cluster.rig.submit(generate(prompt=TextPrompt(str(at)))) for at in range(15)]
    cluster.run(flights, {flights[at].id: reached for at, reached in killers.items()}, turns=2000)
    assert cluster.deaths <= each * len(killers)
    refused = {at for at, flight in enumerate(flights) if failure_code(flight) == "worker_crashed"}
    assert refused == {*killers}
    assert [flight.outcome for flight in flights].count("done") == 15 - len(killers)


@pytest.mark.parametrize(
    "killers",
    [
        {2: 0, 3: 2, 7: 4},
        dict.fromkeys(range(4), 2),
        dict.fromkeys(range(6), 0),
        dict(enumerate((0, 5, 1, 8, 0, 3, 2, 0, 8, 1))),
    ],
)
async def test_everybody_is_answered_when_many_different_requests_kill(killers: dict[int, int]) -> None:
    """Where nobody can be told apart, nobody is judged: killers are given up in the end, and no other is refused."""
    cluster = FakeCluster()
    flights = [cluster.rig.submit(generate(prompt=TextPrompt(str(at)))) for at in range(15)]
    cluster.run(flights, {flights[at].id: reached for at, reached in killers.items()}, turns=2000)
    assert cluster.deaths <= MOST_DEATHS
    assert not any(flight.open for flight in flights)
    assert {failure_code(flights[at]) for at in killers} <= {"worker_crashed", "worker_lost"}
    assert {failure_code(flight) for at, flight in enumerate(flights) if at not in killers} <= {None, "worker_lost"}


async def test_nobody_is_refused_when_engines_are_killed_from_outside() -> None:
    """However often, and even just while somebody is on trial."""
    cluster = FakeCluster()
    flights = [cluster.rig.submit() for _ in range(8)]
    for _ in range(40):
        cluster.run(flights, {}, turns=3, length=50)
        if any(flight.open for flight in flights):
            cluster.crash()
    cluster.run(flights, {}, length=50)
    assert [flight.outcome for flight in flights] == ["done"] * 8


async def test_equal_requests_are_not_refused_when_engines_are_killed_from_outside() -> None:
    """That one of them got further than where another's engine died speaks for all."""
    cluster = FakeCluster()
    same = generate(prompt=TextPrompt("the same"))
    flights = []
    for _ in range(8):
        flights.append(cluster.rig.submit(same))
        cluster.run(flights, {}, turns=6, length=100)
    for _ in range(30):
        cluster.crash()
        cluster.run(flights, {}, turns=8, length=100)
    cluster.run(flights, {}, length=100)
    assert [flight.outcome for flight in flights] == ["done"] * 8


async def test_a_popular_request_is_not_refused_when_each_of_its_trials_is_cut_short_from_outside() -> None:
    """Its equals finished before: that takes as many deaths more, so that chance is not enough."""
    cluster = FakeCluster()
    same = generate(prompt=TextPrompt("the same"))
    flights = [cluster.rig.submit(same) for _ in range(8)]
    cluster.run(flights, {})
    again = [cluster.rig.submit(same) for _ in range(8)]
    for _ in range(5):
        cluster.crash()
        cluster.rig.clock.now += 3
        cluster.rig.dispatcher.assign_waiting(cluster.rig.model)
        assert sum(flight.worker is not None for flight in again) == 1
    cluster.run(again, {})
    assert [flight.outcome for flight in flights + again] == ["done"] * 16


async def test_an_equal_speaks_for_a_suspect_when_it_finishes_elsewhere_meanwhile(rig: Rig) -> None:
    """What runs well at another replica is not refused for two deaths here."""
    rig.supervise(supervision("none"))
    rig.join("w1")
    rig.join("w2")
    same = generate(prompt=TextPrompt("the same"))
    here, there = rig.submit(same), rig.submit(same)
    assert here.worker is not None
    assert here.worker is not there.worker
    rig.lose(here.worker)
    rig.join("w3")
    rig.done(there)
    assert here.worker is not None
    rig.lose(here.worker)
    rig.join("w4")
    rig.clock.now += 3
    rig.dispatcher.assign_waiting(rig.model)
    assert here.open
    rig.done(here)
    assert here.outcome == "done"


async def test_a_request_that_began_to_kill_is_refused_when_its_equals_finished_before() -> None:
    """What was harmless for long is found, too: after six engines."""
    cluster = FakeCluster()
    same = generate(prompt=TextPrompt("the same"))
    cluster.run([cluster.rig.submit(same) for _ in range(8)], {})
    again = [cluster.rig.submit(same) for _ in range(3)]
    others = [cluster.rig.submit() for _ in range(4)]
    cluster.run([*again, *others], {flight.id: 0 for flight in again}, turns=1000)
    assert cluster.deaths == 6
    assert [failure_code(flight) for flight in again] == ["worker_crashed"] * 3
    assert [flight.outcome for flight in others] == ["done"] * 4


async def test_copies_of_a_killer_cost_two_engines_when_they_ran_together() -> None:
    """One of them is tried for all."""
    cluster = FakeCluster()
    flights = [cluster.rig.submit(generate(prompt=TextPrompt("deadly"))) for _ in range(4)]
    others = [cluster.rig.submit() for _ in range(8)]
    cluster.run([*flights, *others], {flight.id: 3 for flight in flights}, turns=1000)
    assert cluster.deaths == 2
    assert [failure_code(flight) for flight in flights] == ["worker_crashed"] * 4
    assert [flight.outcome for flight in others] == ["done"] * 8


async def test_copies_accuse_nobody_when_they_ran_together_while_engines_died_all_the_time() -> None:
    """They are as many as others: that all who were aboard are equal does not make one of them alone."""
    cluster = FakeCluster()
    same = generate(prompt=TextPrompt("the same"))
    flights = [cluster.rig.submit(same) for _ in range(8)]
    for _ in range(6):
        cluster.run(flights, {}, turns=12, length=100)
        cluster.crash()
    for _ in range(3):
        cluster.rig.clock.now += 1
        cluster.crash()
    assert [failure_code(flight) for flight in flights] == [None] * 8
    cluster.run(flights, {}, length=100)
    assert [flight.outcome for flight in flights] == ["done"] * 8


@pytest.mark.parametrize(
    ("job", "again"),
    [
        (
            generate(prompt=TextPrompt("x"), sampling=Sampling(1)),
            generate(prompt=TextPrompt("x"), sampling=Sampling(2)),
        ),
        (EmbedJob(0, 0, "r1", "t", texts=["x"]), EmbedJob(0, 0, "r2", "t", texts=["x"])),
        (TokenizeJob(0, 0, TextPrompt("x")), TokenizeJob(0, 0, TextPrompt("x"))),
    ],
    ids=["generate", "embed", "tokenize"],
)
async def test_the_same_request_is_refused_at_once_when_it_comes_again(job, again) -> None:  # type: ignore[no-untyped-def]
    """Whoever sends it, whatever seed it drew; a different one is not."""
    cluster = FakeCluster()
    flight = cluster.rig.submit(job)
    cluster.run([flight], {flight.id: 0}, turns=300)
    assert (failure_code(flight), cluster.deaths) == ("worker_crashed", 2)
    cluster.rig.sent()
    second = cluster.rig.submit(again)
    assert (failure_code(second), cluster.rig.sent()) == ("worker_crashed", [])
    assert second.stream.failure is not None
    assert not second.stream.failure.retryable
    assert failure_code(cluster.rig.submit()) is None
    cluster.rig.clock.now += 601
    assert failure_code(cluster.rig.submit(again)) is None


async def test_a_request_whose_client_left_is_not_forgotten_when_its_engine_died() -> None:
    """A client that gives up and asks again costs one more engine, not two."""
    cluster = FakeCluster()
    job = generate(prompt=TextPrompt("deadly"))
    first = cluster.rig.submit(job)
    cluster.rig.dispatcher.release_job(first)
    cluster.crash()
    second = cluster.rig.submit(job)
    assert second.suspect
    cluster.run([second], {second.id: 0}, turns=300)
    assert (failure_code(second), cluster.deaths) == ("worker_crashed", 2)


async def test_an_equal_that_got_further_speaks_for_a_suspect_when_both_are_aboard(rig: Rig) -> None:
    """A second death proves nothing against a request if one like it was there and far beyond that place, unharmed."""
    rig.supervise(supervision("none"))
    job = generate(prompt=TextPrompt("popular"))
    rig.join("w1", slots=1)
    far = rig.submit(job)
    doomed = rig.join("w2", slots=1)
    near = rig.submit(job)
    for at in range(30):
        rig.output(far, tokens=[at])
    rig.lose(doomed)
    assert near.suspect
    both = rig.registry.workers[b"w1"]
    assert (near.worker, far.worker) == (both, both)
    rig.lose(both)
    assert near.crash_record is not None
    assert near.crash_record.deaths == 1
    assert rig.dispatcher.quarantine.find_guilty(rig.model, rig.clock.now + 60) is None


async def test_images_tell_requests_apart_when_their_text_is_the_same(rig: Rig) -> None:
    """They are part of what an engine dies of."""
    rig.supervise(supervision("none"))
    worker = rig.join("w1")
    bomb, cat = (
        generate(prompt=TextPrompt("what is this?"), images=[Image(0, hashlib.sha256(data).digest())])
        for data in (b"bomb", b"cat")
    )
    rig.submit(bomb, buffers=[b"bomb"])
    rig.lose(worker)
    assert rig.submit(bomb, buffers=[b"bomb"]).suspect
    assert not rig.submit(cat, buffers=[b"cat"]).suspect


async def test_an_engines_last_words_count_once_when_it_names_every_job(rig: Rig) -> None:
    """`Failed(worker_lost)` for each row is one death, not one per row."""
    rig.join("w1")
    flights = [rig.submit(), rig.submit()]
    rig.join("w2")
    first = flights[0].worker
    assert first is not None
    rig.feed(first.identity, *(Failed(flight.id, 1, Code.WORKER_LOST, "dying") for flight in flights))
    rig.lose(first)
    assert [flight.crash_record.deaths if flight.crash_record else 0 for flight in flights] == [1, 1]
    assert not any(failure_code(flight) for flight in flights)


async def test_suspects_go_to_different_workers_when_there_are_several(rig: Rig) -> None:
    """Each is the only suspect where it is; those who were not aboard go anywhere."""
    worker = rig.join("w0", slots=8)
    flights = [rig.submit() for _ in range(4)]
    rig.lose(worker)
    rig.supervise(supervision("none"))
    assert [failure_code(flight) for flight in flights] == ["model_not_ready"] * 4
    rig.join("w1", slots=8)
    flights = [rig.submit() for _ in range(4)]
    rig.lose(rig.registry.workers[b"w1"])
    rig.join("w2", slots=8)
    rig.join("w3", slots=8)
    assert sum(flight.worker is not None for flight in flights) == 2
    assert rig.submit().worker is not None


async def test_a_long_trial_does_not_keep_the_others_waiting(rig: Rig) -> None:
    """A suspect with a prompt of minutes is left to itself after a few seconds."""
    rig.supervise(supervision("none"))
    worker = rig.join("w1", slots=8)
    flights = [rig.submit() for _ in range(3)]
    rig.lose(worker)
    rig.join("w2", slots=8)
    assert [flight.worker is not None for flight in flights] == [True, False, False]
    rig.clock.now += 5.1
    rig.dispatcher.assign_waiting(rig.model)
    assert [flight.worker is not None for flight in flights] == [True, True, False]


async def test_nobody_is_given_up_when_the_trials_of_many_are_long(rig: Rig) -> None:
    """Twice as many are tried together for every five seconds that an engine has been up: 32 suspects are aboard
    within 25 seconds, however long their prompts."""
    rig.supervise(supervision("none"))
    worker = rig.join("w1", slots=40)
    flights = [rig.submit() for _ in range(32)]
    rig.lose(worker)
    rig.clock.now += 20
    rig.join("w2", slots=40)
    aboard = []
    for _ in range(6):
        aboard.append(sum(flight.worker is not None for flight in flights))
        rig.clock.now += 5
        rig.dispatcher.assign_waiting(rig.model)
    assert aboard == [1, 2, 4, 8, 16, 32]


async def test_nobody_starves_when_engines_are_killed_all_the_time() -> None:
    """Thirty-two suspects, tried one by one, would need longer than an engine lives."""
    cluster = FakeCluster(slots=40)
    flights = [cluster.rig.submit() for _ in range(32)]
    for _ in range(25):
        cluster.run(flights, {}, turns=30, length=100)
        cluster.crash()
    assert [flight.outcome for flight in flights] == ["done"] * 32
