"""Which model a request means."""

import pytest

from gateway.dispatch.state import ModelState
from gateway.job_failure import JobFailed
from protocol.messages import GenerateJob, Kind, State, Watch
from tests.support.dispatch_rig import Rig, announcement, readiness, supervision


@pytest.fixture
async def served() -> Rig:
    """A chat, a vision and an embedding model, the chat one with an alias."""
    rig = Rig(aliases={"gpt-4": "chatty", "unused": "nobody"})
    rig.feed(b"c", announcement("c", "chatty", source="org/Qwen3-8B-4bit", created=10), readiness(family="qwen3"))
    rig.feed(
        b"v",
        announcement("v", "eyes", source="org/gemma-3-4b-it", kind=Kind.VISION, created=5),
        readiness(family="gemma3"),
    )
    rig.feed(b"e", announcement("e", "vectors", kind=Kind.EMBEDDING, created=1), readiness(family="bert"))
    return rig


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("chatty", Kind.CHAT, "chatty"),
        ("gpt-4", Kind.CHAT, "chatty"),
        ("org/Qwen3-8B-4bit", Kind.CHAT, "chatty"),
        ("Qwen3-8B-4bit", Kind.CHAT, "chatty"),
        ("qwen3", Kind.CHAT, "chatty"),
        ("QWEN", Kind.CHAT, "chatty"),
        ("gemma", Kind.CHAT, "eyes"),
        ("gemma", Kind.VISION, "eyes"),
        ("vectors", Kind.EMBEDDING, "vectors"),
        (None, Kind.CHAT, "chatty"),
        (None, Kind.VISION, "eyes"),
        (None, Kind.EMBEDDING, "vectors"),
        ("vectors", None, "vectors"),
        ("gemma", None, "eyes"),
        ("bert", None, "vectors"),
        ("text-embedding-ada-002", None, "vectors"),
        (None, None, "chatty"),
    ],
)
async def test_resolve_finds_the_model_when_named_in_any_known_way(
    served: Rig, name: str | None, kind: Kind | None, found: str
) -> None:
    """Served name, alias, hub id or its tail, family; and the default of each kind."""
    assert served.registry.find_model(name, kind, in_startup_grace=False).name == found


@pytest.mark.parametrize(
    "name", ["nobody", "unused", "", "../../x", "../chatty", "other/chatty", "Chatty", "org", "4bit"]
)
async def test_resolve_refuses_when_the_name_is_unknown(served: Rig, name: str) -> None:
    """A name is a key: nothing near it will do."""
    with pytest.raises(JobFailed) as failed:
        served.registry.find_model(name, Kind.CHAT, in_startup_grace=False)
    assert (failed.value.code, failed.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("name", "kind"), [("vectors", Kind.CHAT), ("chatty", Kind.VISION), ("chatty", Kind.EMBEDDING)]
)
async def test_resolve_refuses_when_the_model_is_of_another_kind(served: Rig, name: str, kind: Kind) -> None:
    """What a model can't do is the request's fault, not a missing model."""
    with pytest.raises(JobFailed) as failed:
        served.registry.find_model(name, kind, in_startup_grace=False)
    assert (failed.value.code, failed.value.param) == ("invalid_request", "model")


async def test_adapter_is_found_by_its_name_and_shares_its_models_workers() -> None:
    """By name or alias, with its model as base; the family and the default stay the bare model."""
    rig = Rig(aliases={"tables": "sql"})
    rig.join(adapters={"sql": "sql-lora", "poems": "p"})
    for name in ("sql", "tables"):
        found = rig.registry.find_model(name, Kind.CHAT, in_startup_grace=False)
        assert (found.name, found.base, found.state, found.replicas) == ("sql", rig.model, "ready", 1)
        assert found.aliases == ("tables",)
    for name in (None, "qwen3", "org/m", "m"):
        assert rig.registry.find_model(name, Kind.CHAT, in_startup_grace=False) is rig.model
    with pytest.raises(JobFailed, match="does not exist"):
        # The folder of an adapter is no name for it.
        rig.registry.find_model("sql-lora", Kind.CHAT, in_startup_grace=False)
    assert [variant.name for variant in rig.model.variants] == ["m", "poems", "sql"]


async def test_adapters_are_those_of_the_workers_that_are_here() -> None:
    """A worker that comes back without one takes the name away; a lost one does not."""
    rig = Rig()
    worker = rig.join(adapters={"sql": "a"})
    rig.registry.remove_peer(worker)
    assert rig.registry.find_model("sql", Kind.CHAT, in_startup_grace=False).base is rig.model
    rig.join("w2", adapters={"poems": "b"})
    assert [*rig.model.adapters] == ["poems"]


async def test_job_for_an_adapter_goes_to_its_models_line_and_counts_under_its_name() -> None:
    """The worker is told which adapter; one queue has both; counts tell them apart."""
    rig = Rig()
    rig.join(adapters={"sql": "a"})
    flights = [
        rig.submit(model=rig.registry.find_model(name, Kind.CHAT, in_startup_grace=False))
        for name in ("sql", "m", "sql", "sql")
    ]
    assert [message.adapter for _, message in rig.sent(GenerateJob)] == ["sql", "", "sql"]
    assert all(flight.model is rig.model for flight in flights)
    assert len(rig.model.queue) == 1
    for flight in flights:
        rig.dispatcher.release_job(flight)
    assert {name: count for (name, _, _), count in rig.stats.requests.items()} == {"sql": 3, "m": 1}


async def test_family_is_refused_when_two_models_have_it(served: Rig) -> None:
    """A family is a name only while it is unambiguous."""
    served.feed(b"c2", announcement("c2", "chatty2"), readiness(family="qwen2"))
    with pytest.raises(JobFailed, match="does not exist"):
        served.registry.find_model("qwen", Kind.CHAT, in_startup_grace=False)
    assert served.registry.find_model("qwen2", Kind.CHAT, in_startup_grace=False).name == "chatty2"


async def test_default_falls_to_vision_when_no_chat_model_is_there() -> None:
    """A vision-only pool answers text."""
    rig = Rig()
    rig.feed(b"v", announcement("v", "eyes", kind=Kind.VISION), readiness())
    assert rig.registry.find_model(None, Kind.CHAT, in_startup_grace=False).name == "eyes"


async def test_images_are_refused_when_only_chat_is_served(rig: Rig) -> None:
    """A chat-only pool says that it is one."""
    rig.join()
    with pytest.raises(JobFailed) as failed:
        rig.registry.find_model(None, Kind.VISION, in_startup_grace=False)
    assert failed.value.code == "invalid_request"


async def test_default_avoids_a_model_when_it_is_out_of_order(rig: Rig) -> None:
    """Whoever names no model does not ask for the broken one."""
    rig.join("w1", "old", created=1)
    rig.join("w2", "new", created=2)
    assert rig.registry.find_model(None, Kind.CHAT, in_startup_grace=False).name == "old"
    rig.lose(rig.registry.workers[b"w1"])
    assert rig.registry.find_model(None, Kind.CHAT, in_startup_grace=False).name == "new"


@pytest.mark.parametrize("name", [None, "anything"])
async def test_resolve_asks_for_patience_when_nobody_has_registered(rig: Rig, name: str | None) -> None:
    """A gateway that has just restarted does not call models unknown that are about to say hello."""
    with pytest.raises(JobFailed) as failed:
        rig.registry.find_model(name, Kind.CHAT, in_startup_grace=False)
    assert (failed.value.code, failed.value.retryable) == ("model_not_ready", True)
    rig.join()
    with pytest.raises(JobFailed) as failed:
        rig.registry.find_model("another", Kind.CHAT, in_startup_grace=True)
    assert (failed.value.code, failed.value.retry_after_s) == ("model_not_ready", 1.0)


@pytest.mark.parametrize(
    ("state", "watch", "shown"),
    [
        (State.LOADING, Watch.RUNNING, "loading"),
        (State.WARMING, Watch.RUNNING, "warming"),
        (State.READY, Watch.RUNNING, "ready"),
        (State.DRAINING, Watch.RUNNING, "draining"),
        (None, Watch.RUNNING, "starting"),
        (None, Watch.BACKOFF, "backoff"),
        (None, Watch.CRASH_LOOP, "crash_loop"),
        (None, None, "lost"),
    ],
)
async def test_state_is_the_best_known_when_workers_come_and_go(
    rig: Rig, state: State | None, watch: Watch | None, shown: str
) -> None:
    """What the model list and health show."""
    worker = rig.join(state=state or State.LOADING, ready=state is State.READY)
    if watch is not None:
        rig.supervise(supervision(engine="another", watch=watch))
    if state is None:
        rig.lose(worker)
    assert rig.model.state == shown


async def test_a_model_stays_known_when_its_last_worker_is_gone(rig: Rig) -> None:
    """Its name, its window and its family survive a crash."""
    rig.lose(rig.join())
    model = rig.registry.find_model("m", Kind.CHAT, in_startup_grace=False)
    assert (model.state, model.replicas, model.ready) == ("lost", 0, readiness())


async def test_capable_model_is_preferred_when_none_is_named(served: Rig) -> None:
    """Of several models of a kind, the one that can do what is asked for, older or not."""
    served.feed(
        b"s",
        announcement("s", "seeing", kind=Kind.EMBEDDING, created=9),
        readiness(capabilities=["embeddings", "embed_image"]),
    )
    resolve = served.registry.find_model
    assert resolve(None, Kind.EMBEDDING, in_startup_grace=False).name == "vectors"
    assert resolve(None, Kind.EMBEDDING, "embed_image", in_startup_grace=False).name == "seeing"
    assert resolve("text-embedding-3-small", Kind.EMBEDDING, "embed_image", in_startup_grace=False).name == "seeing"
    assert resolve("vectors", Kind.EMBEDDING, "embed_image", in_startup_grace=False).name == "vectors"
    assert resolve(None, Kind.EMBEDDING, "embed_sound", in_startup_grace=False).name == "vectors"


async def test_adapter_is_not_served_under_a_configured_alias(caplog: pytest.LogCaptureFixture) -> None:
    """An alias was there first, whether or not its model is up."""
    rig = Rig(aliases={"gpt-4": "elsewhere", "tables": "sql"})
    rig.join(adapters={"gpt-4": "a", "tables": "b", "sql": "c"})
    assert rig.model.unserved == {"gpt-4": "it is an alias of elsewhere", "tables": "it is an alias of sql"}
    assert [variant.name for variant in rig.model.variants] == ["m", "sql"]
    assert rig.registry.find_model("tables", Kind.CHAT, in_startup_grace=False).name == "sql"
    assert len(caplog.records) >= 2


async def test_alias_means_the_model_that_is_called_so(caplog: pytest.LogCaptureFixture) -> None:
    """A key that names it opens that model and not the alias's target, which has lost it."""
    rig = Rig(aliases={"fast": "m"})
    rig.join("w1")
    assert rig.model.aliases == ("fast",)
    rig.join("w2", "fast")
    assert rig.model.aliases == ()
    assert rig.registry.find_model("fast", Kind.CHAT, in_startup_grace=False).name == "fast"
    assert "alias fast of m dropped: a model has that name" in caplog.text


async def test_names_lead_only_to_what_is_usable() -> None:
    """Whatever others are called does not count: no shadow, no ambiguity, no default tells of them."""
    rig = Rig(aliases={"gpt-4": "hidden"})
    rig.join("w1", "hidden", source="org/m", adapters={"sql": "a"})
    rig.join("w2", "own", source="org/m", adapters={"poems": "p"})

    def usable(model: ModelState) -> bool:
        return model.name in ("own", "sql")

    def find(name: str | None) -> str:
        return rig.registry.find_model(name, Kind.CHAT, in_startup_grace=False, usable=usable).name

    with pytest.raises(JobFailed, match="does not exist"):
        rig.registry.find_model("qwen3", Kind.CHAT, in_startup_grace=False)
    assert [find(name) for name in (None, "own", "sql", "qwen3", "org/m", "m")] == ["own", "own", "sql", *["own"] * 3]
    for name in ("hidden", "gpt-4", "poems"):
        with pytest.raises(JobFailed, match="does not exist"):
            find(name)


async def test_older_model_has_the_name_of_an_adapter_after_a_restart_of_the_gateway() -> None:
    """Peers come back in any order then; who was first still is. Later on, whoever has the name keeps it."""
    for in_startup_grace, holder in ((True, "old"), (False, "new")):
        rig = Rig()
        rig.registry.in_startup_grace = in_startup_grace
        rig.join("w1", "new", created=20, adapters={"sql": "a"})
        rig.join("w2", "old", created=10, adapters={"sql": "a"})
        rig.registry.end_startup_grace()
        rig.join("w3", "oldest", created=5, adapters={"sql": "a"})
        base = rig.registry.find_model("sql", Kind.CHAT, in_startup_grace=False).base
        assert base is not None
        assert base.name == holder


async def test_name_of_an_adapter_outlives_an_engine_but_not_its_model() -> None:
    """While a supervisor may start another engine the name is not given away; with nobody left, another may have it."""
    rig = Rig()
    first = rig.join("w1", "first", adapters={"sql": "a"})
    rig.supervise(supervision("w1", "first"))
    rig.join("w2", "second", adapters={"sql": "a"})
    rig.registry.remove_peer(first)
    assert rig.registry.models["second"].unserved == {"sql": "an adapter of first is called so"}
    rig.registry.remove_peer(rig.registry.supervisors[b"sup"])
    assert [*rig.registry.models["second"].adapters] == ["sql"]
    assert rig.registry.models["first"].unserved == {"sql": "an adapter of second is called so"}


async def test_name_is_free_once_its_holder_comes_without_the_adapter() -> None:
    """Moving an adapter from one model to another needs no restart of the gateway."""
    rig = Rig()
    rig.join("w1", "first", adapters={"sql": "a"})
    rig.join("w2", "second", adapters={"sql": "a"})
    rig.feed(b"w1", announcement("w1", "first"))
    assert [variant.name for model in rig.registry for variant in model.variants] == ["first", "second", "sql"]
