"""Which worker a prompt goes to when one of them has its beginning."""

import random
import tracemalloc

import msgspec

from gateway.dispatch.prefix_affinity import REMEMBERED, PrefixAffinity, keys_of
from gateway.dispatch.state import JobState
from protocol.messages import ChatPrompt, EmbedJob, GenerateJob, TextPrompt, TokenPrompt
from tests.support.dispatch_rig import Rig, generate


def talk(*texts: str, tenant: str = "t") -> GenerateJob:
    """A conversation, as a route would make it."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    return generate(prompt=ChatPrompt(msgspec.json.encode(messages)), tenant=tenant)


def uid(flight: JobState) -> str:
    assert flight.worker is not None
    return flight.worker.uid


def test_a_longer_prompt_begins_with_the_keys_of_its_beginning() -> None:
    """A next turn shares all keys of the turn before but those of its very end."""
    first = keys_of(talk("x" * 3000, "y" * 3000), None)
    then = keys_of(talk("x" * 3000, "y" * 3000, "z" * 3000), None)
    assert len(first) > 60
    assert then[: len(first) - 1] == first[:-1]
    assert len(set(then)) == len(then)
    assert keys_of(talk("x" * 3000, tenant="other"), None)[0] not in then


def test_every_kind_of_prompt_has_keys_but_jobs_that_leave_no_cache() -> None:
    """Text with half a surrogate pair, too: it is refused later."""
    assert len(keys_of(generate(prompt=TextPrompt("\ud800" * 100)), None)) == 1
    assert len(keys_of(generate(prompt=TokenPrompt([2**60] * 100)), None)) == 12
    assert keys_of(EmbedJob(0, 0, "r", "t", texts=["x" * 500]), "key") == []


async def test_a_conversation_stays_where_it_is_when_other_workers_are_as_free(rig: Rig) -> None:
    """Twenty conversations of ten turns over three workers: each at one of them, and all three in use."""
    for name in ("w1", "w2", "w3"):
        rig.join(name, slots=32)
    chance = random.Random(1)
    texts: dict[int, list[str]] = {number: [f"conversation {number} " + "x" * 100] for number in range(20)}
    homes: dict[int, set[str]] = {number: set() for number in texts}
    for _ in range(10):
        flights = {}
        for number in chance.sample(sorted(texts), len(texts)):
            flights[number] = rig.submit(talk(*texts[number]))
            homes[number].add(uid(flights[number]))
        for number, flight in flights.items():
            rig.done(flight)
            texts[number] += [f"answer {chance.random()}", f"question {chance.random()}"]
    assert {len(home) for home in homes.values()} == {1}
    assert {name for home in homes.values() for name in home} == {"w1", "w2", "w3"}


async def test_load_goes_before_affinity_when_one_worker_is_crowded(rig: Rig) -> None:
    """A prefix that all share must not send all to one worker."""
    rig.join("w1", slots=32)
    rig.join("w2", slots=32)
    shared = "you are a helpful assistant " * 20
    uids = [uid(rig.submit(talk(shared, f"question {number}"))) for number in range(40)]
    assert 12 <= uids.count("w1") <= 28


async def test_equal_cache_keys_meet_when_prompts_have_nothing_in_common(rig: Rig) -> None:
    """The client knows best."""
    rig.join("w1", slots=32)
    rig.join("w2", slots=32)
    found = {
        uid(rig.dispatcher.submit_job(rig.model, talk(f"{at} alone"), rig.submit(talk("z")).stream, cache_key="mine"))
        for at in range(3)
    }
    assert len(found) == 1


async def test_a_conversation_moves_on_when_its_worker_is_gone(rig: Rig) -> None:
    """Its keys are of no use any more, and in nobody's way."""
    rig.join("w1", slots=4)
    flight = rig.submit(talk("x" * 500))
    rig.done(flight)
    rig.join("w2", slots=4)
    rig.lose(rig.registry.workers[b"w1"])
    assert uid(rig.submit(talk("x" * 500, "a", "b"))) == "w2"


def test_memory_is_bounded_when_prompts_never_repeat() -> None:
    """A million different chunks leave some megabytes behind."""
    affinity = PrefixAffinity()
    tracemalloc.start()
    for at in range(0, 1_000_000, 500):
        affinity.record_prompt([hash((at, step)) for step in range(500)], "w1")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(affinity) == REMEMBERED
    assert held < 8_000_000, held
