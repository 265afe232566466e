"""Prompts that outlive their engine: the same answers, sooner, for the same tenant and the same model only."""

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from protocol.messages import TokenPrompt
from tests.support.engine_runs import Outcome, job, run
from worker.batch import serialization
from worker.batch.serialization import Unpackable
from worker.config import WorkerConfig
from worker.disk_cache.block_names import BLOCK
from worker.engines.chat.disk_cache import identity
from worker.engines.chat.engine import ChatEngine

pytestmark = pytest.mark.mlx

ModelOf = Callable[[str], Path]
ROOT = Path(__file__).resolve().parents[3]
WHOLE = ("gemma3", "mamba", "granitemoehybrid")
"""Windows that rotate, states, and both beside what can be cut."""


def make(folder: Path, disk: Path | None, **settings: Any) -> ChatEngine:
    engine = ChatEngine(
        WorkerConfig(model_path=str(folder), served_name="m", prefix_disk_folder=disk, **settings),
    )
    engine.load()
    return engine


def ask(engine: ChatEngine, prompt: list[int], *, tenant: str = "a", tokens: int = 12) -> Outcome:
    return run(engine, [job(1, TokenPrompt(prompt), max_tokens=tokens, tenant=tenant)])[1]


def cached(outcome: Outcome) -> int:
    assert outcome.usage is not None
    return outcome.usage.cached_tokens


def end(engine: ChatEngine) -> None:
    """As the process does when it ends."""
    engine.close(20)


@pytest.fixture
def prompt() -> list[int]:
    source = random.Random(7)
    return [source.randrange(10, 2000) for _ in range(5 * BLOCK + 40)]


@pytest.mark.parametrize("name", ["qwen3", *WHOLE])
def test_next_engine_goes_on_where_the_last_one_was(
    name: str, model_folder: ModelOf, tmp_path: Path, prompt: list[int]
) -> None:
    """The same greedy answers as without, the right count, in two turns; another tenant gets none of it."""
    plain = make(model_folder(name), None)
    expected = ask(plain, prompt)
    first = make(model_folder(name), tmp_path / "prefixes")
    assert (cached(ask(first, prompt)), ask(first, prompt).tokens) == (0, expected.tokens)
    end(first)
    second = make(model_folder(name), tmp_path / "prefixes")
    again = ask(second, prompt)
    assert again.tokens == expected.tokens
    assert cached(again) == (len(prompt) - 1 if name in WHOLE else 5 * BLOCK)
    gauges = second.gauges()
    assert (gauges.prefix_lookups, gauges.prefix_hits, gauges.prefix_disk_hits) == (1, 0, 1)
    assert gauges.prefix_disk_bytes > 0
    stranger = ask(second, prompt, tenant="b")
    assert (cached(stranger), stranger.tokens) == (0, expected.tokens)
    end(second)
    turn = [*prompt, *expected.tokens[0], *range(30, 40)]
    third = ask(make(model_folder(name), tmp_path / "prefixes"), turn)
    assert third.tokens == ask(plain, turn).tokens
    assert cached(third) == (len(prompt) + 11 if name in WHOLE else 5 * BLOCK)


def test_what_memory_had_to_give_up_is_found_on_disk(model_folder: ModelOf, tmp_path: Path, prompt: list[int]) -> None:
    """Memory for one prompt, disk for all: those pushed out come back, and are in memory then."""
    engine = make(model_folder("qwen3"), tmp_path / "prefixes", prefix_cache_bytes=1 << 20)
    prompts = [[at, *prompt] for at in range(20, 24)]
    answers = [ask(engine, one).tokens for one in prompts]
    end(engine)
    found = [ask(engine, one) for one in prompts]
    assert [outcome.tokens for outcome in found] == answers
    assert all(cached(outcome) >= 5 * BLOCK for outcome in found)
    assert engine.gauges().prefix_disk_hits >= 2
    assert cached(ask(engine, prompts[-1])) == len(prompt)
    assert engine.gauges().prefix_bytes <= 1 << 20


def test_crowd_with_one_beginning_reads_it_once(model_folder: ModelOf, tmp_path: Path, prompt: list[int]) -> None:
    """Beside a row that decodes; what one has brought from disk the others find in memory."""
    folder = model_folder("qwen3")
    first = make(folder, tmp_path / "prefixes")
    ask(first, prompt)
    end(first)
    engine = make(folder, tmp_path / "prefixes")
    jobs = [job(1, TokenPrompt([5, 6, 7]), max_tokens=60)]
    jobs += [job(at, TokenPrompt([*prompt, at]), max_tokens=8, tenant="a") for at in range(2, 8)]
    outcomes = run(engine, jobs)
    expected = run(make(folder, None), jobs)
    assert {at: one.tokens for at, one in outcomes.items()} == {at: one.tokens for at, one in expected.items()}
    assert all(cached(outcomes[at]) >= 5 * BLOCK for at in range(2, 8))
    gauges = engine.gauges()
    assert gauges.prefix_lookups == 7
    assert gauges.prefix_hits + gauges.prefix_disk_hits == 6
    assert gauges.prefix_disk_hits <= 2


def test_cancelled_prompt_is_not_waited_for(model_folder: ModelOf, tmp_path: Path, prompt: list[int]) -> None:
    """Wherever it is on its way from the disk, it goes at once and leaves nothing behind."""
    folder = model_folder("qwen3")
    first = make(folder, tmp_path / "prefixes")
    expected = ask(first, prompt).tokens
    end(first)
    for steps in range(4):
        engine = make(folder, tmp_path / "prefixes")
        engine.admit(engine.prepare(job(1, TokenPrompt(prompt), max_tokens=9, tenant="a")))
        for _ in range(steps):
            engine.step()
        assert engine.cancel(1)
        assert not engine.busy
        assert ask(engine, prompt).tokens == expected


def test_disk_that_stands_still_is_not_waited_for(
    model_folder: ModelOf, tmp_path: Path, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is computed instead, and so are those after it, until the disk gives something again."""
    engine = make(model_folder("qwen3"), tmp_path / "prefixes")
    expected = ask(engine, prompt).tokens
    end(engine)
    prefix_store = engine.prefix_store
    assert prefix_store is not None
    disk = prefix_store.disk
    assert disk is not None
    prefix_store.memory.clear()
    released = threading.Event()
    monkeypatch.setattr("worker.disk_cache.cache.PATIENCE_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(disk._folder, "has_file", lambda *_: released.wait(20))
        for _ in range(2):
            prefix_store.memory.clear()
            outcome = ask(engine, prompt)
            assert (cached(outcome), outcome.tokens) == (0, expected)
        released.set()
        assert disk.flush(20)
    prefix_store.memory.clear()
    assert cached(ask(engine, prompt)) == 5 * BLOCK


def test_forgotten_prompts_are_computed_again(model_folder: ModelOf, tmp_path: Path, prompt: list[int]) -> None:
    """In memory and on disk."""
    engine = make(model_folder("qwen3"), tmp_path / "prefixes")
    ask(engine, prompt)
    assert cached(ask(engine, prompt)) > 0
    end(engine)
    engine.forget()
    end(engine)
    assert engine.gauges().prefix_bytes == engine.gauges().prefix_disk_bytes == 0
    assert list((tmp_path / "prefixes").rglob("*.safetensors")) == []
    assert cached(ask(engine, prompt)) == 0


def test_models_that_differ_at_all_have_nothing_in_common(model_folder: ModelOf, tmp_path: Path) -> None:
    """Other weights in one matrix, other bits, another number in the configuration; and the same is the same."""
    folder = model_folder("qwen3")

    def name_of(folder: Path, **settings: Any) -> str:
        engine = make(folder, None, **settings)
        contents = serialization.check_serialization(engine.loaded.model)
        return identity(engine._config, engine.loaded, contents)

    own = name_of(folder)
    assert name_of(folder) == own
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    name = next(name for name in weights if name.endswith("v_proj.weight"))
    weights[name][3, 5] += 1e-3
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    mx.save_safetensors(str(changed / "model.safetensors"), weights, {"format": "mlx"})
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    text = (config / "config.json").read_text()
    (config / "config.json").write_text(text.replace('"rope_theta": 1000000.0', '"rope_theta": 500000.0'))
    names = [own, name_of(changed), name_of(config)]
    assert len(set(names)) == 3


def test_cache_that_cant_be_kept_turns_the_disk_off(
    model_folder: ModelOf, tmp_path: Path, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not come out as it went in is never written; the model is served all the same."""

    def wrong(tensor: Any) -> mx.array:
        return mx.zeros(tensor.bits.shape)

    with monkeypatch.context() as patch:
        patch.setattr("worker.batch.serialization._array", wrong)
        engine = make(model_folder("qwen3"), tmp_path / "prefixes")
        with pytest.raises(Unpackable, match="does not come out"):
            serialization.check_serialization(engine.loaded.model)
    assert len(ask(engine, prompt).tokens[0]) == 12
    assert not (tmp_path / "prefixes").exists()


@pytest.mark.parametrize(("bits", "least"), [(8, 3.0), (4, 5.0)])
def test_fewer_bits_take_less_room_and_come_back_alike(tmp_path: Path, bits: int, least: float) -> None:
    """Of 32 bits a third, or a fifth; what is found says nearly the same, whether it was in memory or on disk."""
    folder = ROOT / "demo" / "chat"
    source = random.Random(2)
    prompt = [source.randrange(10, 900) for _ in range(4 * BLOCK + 1)]
    asked = job(1, TokenPrompt(prompt), max_tokens=1, tenant="a", logprobs=0)
    plain = make(folder, tmp_path / "plain")
    engine = make(folder, tmp_path / "packed", prefix_kv_bits=bits)
    exact, first = run(plain, [asked])[1], run(engine, [asked])[1]
    assert first.tokens == exact.tokens
    found = run(engine, [asked])[1]
    assert cached(found) == 4 * BLOCK
    end(plain)
    end(engine)
    for name in ("prefix_bytes", "prefix_disk_bytes"):
        assert getattr(plain.gauges(), name) > least * getattr(engine.gauges(), name)
    again = run(make(folder, tmp_path / "packed", prefix_kv_bits=bits), [asked])[1]
    assert cached(again) == 4 * BLOCK
    assert again.tokens == found.tokens
    told = [outcome.deltas[0].logprobs[0].logprob for outcome in (exact, found, again)]
    assert told[1] == pytest.approx(told[2], abs=1e-3)
    assert told[1] == pytest.approx(told[0], abs=0.3)
    assert cached(ask(make(folder, tmp_path / "packed"), prompt)) == 0
