"""LoRA adapters beside a bare model: one process, one set of weights, answers as if each were alone."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest

from protocol.errors import JobError
from protocol.messages import GenerateJob, TokenPrompt
from tests.support.engine_runs import job, run
from tests.support.tiny_adapters import LORA, make_adapter
from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.engines.chat.engine import ChatEngine

ANSWER = {"ignore_eos": True}
SEEDED = {"ignore_eos": True, "temperature": 0.9, "top_p": 0.95, "seed": 5}
NAMES = ("", "sql", "poems")


@pytest.fixture(scope="module")
def folders(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    base = model_folder("qwen3")
    return {
        "sql": make_adapter(base, folder / "sql", seed=1),
        "poems": make_adapter(base, folder / "poems", seed=2, rank=8),
        "dora": make_adapter(base, folder / "dora", seed=3, kind="dora"),
    }


def loaded(folder: Path, **config: object) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="base", **config))  # type: ignore[arg-type]
    engine.load()
    return engine


@pytest.fixture(scope="module")
def engine(model_folder: Callable[[str], Path], folders: dict[str, Path]) -> ChatEngine:
    return loaded(model_folder("qwen3"), adapters={name: str(folder) for name, folder in folders.items()})


@pytest.fixture(autouse=True)
def idle(engine: ChatEngine) -> Iterator[None]:
    yield
    assert not engine.busy


def asked(
    number: int, adapter: str, *, start: int = 100, sampling: dict[str, object] = ANSWER, **more: object
) -> GenerateJob:
    prompt = TokenPrompt(list(range(start, start + 40)))
    return job(number, prompt, max_tokens=24, sampling=sampling, adapter=adapter, **more)


def tokens(engine: ChatEngine, one: GenerateJob) -> list[int]:
    return run(engine, [one])[one.job].tokens[0]


@pytest.mark.parametrize("name", ["sql", "poems", "dora"])
def test_adapter_answers_as_the_same_adapter_loaded_with_the_model(
    engine: ChatEngine, folders: dict[str, Path], model_folder: Callable[[str], Path], name: str
) -> None:
    """What `--adapter` serves is, token for token, what `--adapter-path` serves, DoRA included."""
    alone = loaded(model_folder("qwen3"), adapter_path=str(folders[name]))
    for sampling in (ANSWER, SEEDED):
        assert tokens(engine, asked(1, name, sampling=sampling)) == tokens(alone, asked(1, "", sampling=sampling))


def test_mixed_batch_gives_each_row_what_it_gets_alone(engine: ChatEngine) -> None:
    """Bare model and two adapters over the same prompts, at once: three different answers, each its own."""
    jobs = [
        asked(number, name, start=start, sampling=sampling, tenant=f"t{number}")
        for number, (name, start, sampling) in enumerate(
            [(name, start, sampling) for name in NAMES for start in (100, 300) for sampling in (ANSWER, SEEDED)],
            start=1,
        )
    ]
    together = run(engine, jobs)
    answers = {}
    for one in jobs:
        # Another tenant: nothing comes from the prefix cache.
        alone = tokens(engine, msgspec.structs.replace(one, tenant="alone"))
        assert together[one.job].tokens[0] == alone, one.adapter
        answers[one.job] = tuple(alone)
    assert len(set(answers.values())) == len(jobs)


def test_prefix_is_shared_within_an_adapter_only(engine: ChatEngine) -> None:
    """A tenant's same prompt again: known to the adapter that computed it, to no other and not to the bare model."""
    prompt = {"start": 500, "tenant": "prefixes"}
    cached = {}
    for name in ("sql", "poems", "", "sql"):
        found = run(engine, [asked(1, name, **prompt)])[1].usage  # type: ignore[arg-type]
        assert found is not None
        cached.setdefault(name, []).append(found.cached_tokens)
    assert cached["poems"] == [0]
    assert cached[""] == [0]
    assert cached["sql"][0] == 0
    assert cached["sql"][1] > 30


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every buffer is as large as asked for: of those that MLX keeps when they are freed, it hands out larger ones."""
    monkeypatch.setattr("worker.engines.chat.engine.BUFFER_CACHE_BYTES", 0)
    kept_bytes = mx.set_cache_limit(0)
    # What other tests left behind must not go away in between.
    gc.collect()
    yield
    mx.set_cache_limit(kept_bytes)


@pytest.mark.usefixtures("exact")
def test_adapters_share_the_weights_of_the_model(model_folder: Callable[[str], Path], folders: dict[str, Path]) -> None:
    """Two adapters cost what their own tensors take, and the load is told with the model's."""
    bare = loaded(model_folder("qwen3"))
    weights = bare.describe().weights_bytes
    own = sum((folders[name] / "adapters.safetensors").stat().st_size for name in ("sql", "poems"))
    before = mx.get_active_memory()
    both = loaded(model_folder("qwen3"), adapters={name: str(folders[name]) for name in ("sql", "poems")})
    grown = mx.get_active_memory() - before
    assert weights < both.describe().weights_bytes < weights + own
    assert grown == both.describe().weights_bytes


def test_unknown_adapter_is_refused(engine: ChatEngine) -> None:
    """A job for an adapter that this worker does not have is nobody else's answer."""
    with pytest.raises(JobError, match="no such adapter"):
        engine.prepare(asked(1, "nobody"))


def broken(folder: Path, change: str) -> None:
    match change:
        case "gone":
            shutil.rmtree(folder)
        case "no config":
            (folder / "adapter_config.json").unlink()
        case "no weights":
            (folder / "adapters.safetensors").unlink()
        case "no safetensors":
            (folder / "adapters.safetensors").write_bytes(b"no tensors")
        case "no json":
            (folder / "adapter_config.json").write_text("{")
        case "no scale":
            write(folder, {key: value for key, value in LORA.items() if key != "scale"})
        case "other rank":
            write(folder, {**LORA, "rank": 16})
        case "fewer keys":
            write(folder, {**LORA, "keys": ["self_attn.q_proj"]})
        case "more keys":
            write(folder, {**LORA, "keys": [*LORA["keys"], "mlp.up_proj"]})
        case "peft":
            (folder / "adapters.safetensors").rename(folder / "adapter_model.safetensors")


def write(folder: Path, lora: dict[str, object]) -> None:
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("gone", "no adapter_config.json"),
        ("no config", "no adapter_config.json"),
        ("no weights", "no adapters.safetensors and no adapter_model.safetensors"),
        ("no safetensors", "load_safetensors"),
        ("no json", "adapter_config.json is no JSON"),
        ("no scale", "scale"),
        ("other rank", r"shape \(96, 4\) does not match model parameter shape \(96, 16\)"),
        ("fewer keys", "v_proj.lora_a: not an adapter parameter"),
        ("more keys", "lacks 4 of 16 tensors, .*up_proj.lora_a"),
        ("peft", "has the peft_type None"),
    ],
)
def test_bad_adapter_is_a_load_error_that_says_what_is_wrong(
    model_folder: Callable[[str], Path], folders: dict[str, Path], tmp_path: Path, change: str, words: str
) -> None:
    """No adapter is served half: what is missing, or does not fit, is named with the adapter."""
    folder = tmp_path / "sql"
    shutil.copytree(folders["sql"], folder)
    broken(folder, change)
    for config in ({"adapters": {"sql": str(folder)}}, {"adapter_path": str(folder)}):
        with pytest.raises(EngineLoadError, match=words):
            loaded(model_folder("qwen3"), **config)
