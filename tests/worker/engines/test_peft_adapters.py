"""Adapters as PEFT writes them: served as if they were merged into the weights, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protocol.messages import TokenPrompt
from tests.support.engine_runs import job, run
from tests.support.peft_adapters import PREFIX, merged, write_peft
from worker.config import WorkerConfig
from worker.engines.adapters import adapt
from worker.engines.base import EngineLoadError
from worker.engines.chat.engine import ChatEngine

GOLDEN = Path(__file__).parent / "peft"
"""Saved by PEFT 0.21.2 from the tiny Qwen3; loaded by PEFT and by us they gave the same logits within 4e-5 of 15."""
PROMPT = list(range(100, 140))
ATTENTION = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qkvo"]
MLP = [f"model.layers.{layer}.mlp.{name}_proj" for layer in range(3) for name in ("gate", "up", "down")]


def loaded(folder: Path, **config: Any) -> ChatEngine:
    engine = ChatEngine(WorkerConfig(model_path=str(folder), served_name="base", **config))
    engine.load()
    return engine


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (ATTENTION + MLP, {}),
    "one layer": (MLP[3:6], {"layers_to_transform": [1]}),
    "patterns": (
        ATTENTION,
        {"use_rslora": True, "rank_pattern": {"v_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "dora": (ATTENTION + MLP, {"use_dora": True}),
    "embedding and head": (["model.embed_tokens", "lm_head"], {"bias": "all", "init_lora_weights": "gaussian"}),
}


@pytest.fixture(scope="module")
def bare(model_folder: Callable[[str], Path]) -> Any:
    return loaded(model_folder("qwen3")).loaded.model


@pytest.fixture(scope="module")
def folders(bare: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("peft")
    ours = {name: write_peft(made / name, bare, layers, seed=7, **config) for name, (layers, config) in CASES.items()}
    return {**ours, **{f"peft's {kind}": GOLDEN / kind for kind in ("lora", "dora")}}


@pytest.fixture(scope="module")
def engine(model_folder: Callable[[str], Path], folders: dict[str, Path]) -> ChatEngine:
    return loaded(model_folder("qwen3"), adapters={name: str(folder) for name, folder in folders.items()})


def logits(model: Any) -> np.ndarray[Any, Any]:
    return np.array(model(mx.array([PROMPT])))


def assert_served_as_merged(engine: ChatEngine, bare: Any, name: str, folder: Path) -> None:
    """Logits within what float32 rounds, and the very same greedy tokens."""
    whole = merged(bare, folder)
    assert abs(logits(engine.loaded.adapted[name].model) - logits(whole)).max() < 1e-3
    assert abs(logits(bare) - logits(whole)).max() > 1.0
    tokens = [*PROMPT]
    for _ in range(16):
        tokens.append(int(mx.argmax(whole(mx.array([tokens]))[0, -1]).item()))
    one = job(1, TokenPrompt(PROMPT), max_tokens=16, sampling={"ignore_eos": True}, adapter=name)
    assert run(engine, [one])[1].tokens[0] == tokens[len(PROMPT) :]


@pytest.mark.parametrize("name", [*CASES, "peft's lora", "peft's dora"])
def test_peft_adapter_answers_as_the_model_that_it_is_merged_into(
    engine: ChatEngine, bare: Any, folders: dict[str, Path], name: str
) -> None:
    """W + scale * B @ A for every kind of layer and of scale, DoRA by its formula, beside each other; `peft's` have
    names of settings and tensors that are PEFT's own."""
    assert_served_as_merged(engine, bare, name, folders[name])


@pytest.mark.parametrize("dora", [False, True])
def test_peft_adapter_of_a_quantised_model_answers_as_merged(
    model_folder: Callable[[str], Path], tmp_path: Path, dora: bool
) -> None:
    """Four bits beneath: the product is added to what these say."""
    engine = loaded(model_folder("qwen3"), quantize="q4")
    bare = engine.loaded.model
    assert "scales" in bare.model.layers[0].mlp.down_proj
    folder = write_peft(tmp_path / "it", bare, [MLP[2], ATTENTION[4]], seed=7, use_dora=dora)
    engine = loaded(model_folder("qwen3"), quantize="q4", adapters={"it": str(folder)})
    assert_served_as_merged(engine, bare, "it", folder)


def test_peft_adapter_loads_with_the_model(model_folder: Callable[[str], Path], bare: Any) -> None:
    """`--adapter-path` takes the same folders."""
    alone = loaded(model_folder("qwen3"), adapter_path=str(GOLDEN / "lora")).loaded.model
    assert abs(logits(alone) - logits(merged(bare, GOLDEN / "lora"))).max() < 1e-3


def test_peft_embedding_leaves_a_tied_head_as_it_is(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """In PEFT the head of such a model has the model's own weights, the input alone is adapted."""
    base, tied = model_folder("qwen3"), tmp_path / "tied"
    tied.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (tied / file.name).write_bytes(file.read_bytes())
    weights = {key: array for file in base.glob("*.safetensors") for key, array in load_file(file).items()}
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    bare = loaded(tied).loaded.model
    folder = write_peft(tmp_path / "it", bare, ["model.embed_tokens"], seed=7)
    adapted = adapt(bare, "it", folder).model
    wanted = bare.model.embed_tokens.as_linear(merged(bare, folder).model(mx.array([PROMPT])))
    assert abs(logits(adapted) - np.array(wanted)).max() < 1e-3


def test_layers_are_found_below_the_wrappings_of_models_that_see(bare: Any, tmp_path: Path) -> None:
    """Adapters that were trained on the text model within a larger one name its layers by their place there."""
    folder = write_peft(tmp_path / "it", bare, ATTENTION, seed=7)
    wanted = logits(merged(bare, folder))
    file = folder / "adapter_model.safetensors"
    inner = f"{PREFIX}model.language_model."
    save_file({key.replace(f"{PREFIX}model.", inner): array for key, array in load_file(file).items()}, file)
    assert abs(logits(adapt(bare, "it", folder).model) - wanted).max() < 1e-3


Q = f"{PREFIX}{ATTENTION[0]}"
ODD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, r"adapter_config.json has the peft_type 'IA3': only LORA"),
    ({"modules_to_save": ["lm_head"]}, "adapter_config.json sets modules_to_save"),
    ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
    ({"use_qalora": True}, "sets use_qalora"),
    ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
    ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa'"),
    ({"r": 0}, r"can't be read: .*r`"),
    ({"rank_pattern": {"(": 2}}, "can't be read"),
    ({"r": 8}, rf"{ATTENTION[0]}.lora_A of shape \(4, 96\) where \(8, 96\) is needed"),
    ({"use_dora": True}, f"lacks {ATTENTION[0]}.lora_magnitude_vector"),
    ({"target_modules": ["q_proj", "up_proj"]}, "lacks every tensor of up_proj"),
]


@pytest.mark.parametrize(("change", "words"), ODD_CONFIGS)
def test_setting_that_cannot_be_honoured_is_refused_by_name(
    bare: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """The load fails and says which adapter, which file, which setting."""
    folder = write_peft(tmp_path / "it", bare, ATTENTION[:1], seed=7)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    refused(bare, folder, words)


def odd(tensors: dict[str, Any], change: str) -> dict[str, Any]:
    match change:
        case "half":
            del tensors[f"{Q}.lora_B.weight"]
        case "shape":
            tensors[f"{Q}.lora_B.weight"] = tensors[f"{Q}.lora_B.weight"][:-1]
        case "magnitude":
            tensors[f"{Q}.lora_magnitude_vector"] = np.ones(96, np.float32)
        case "layer":
            return {key.replace("layers.0", "layers.7"): array for key, array in tensors.items()}
        case "tower":
            return {key.replace(PREFIX, f"{PREFIX}vision_tower."): array for key, array in tensors.items()}
        case "norm":
            return {key.replace("self_attn.q_proj", "input_layernorm"): array for key, array in tensors.items()}
        case "bias":
            tensors[f"{Q}.base_layer.bias"] = np.ones(96, np.float32)
        case "unknown":
            tensors[f"{Q}.lora_C.weight"] = np.ones(96, np.float32)
        case "whole":
            tensors[f"{PREFIX}lm_head.base_layer.weight"] = np.ones((2048, 96), np.float32)
        case "none":
            return {}
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("half", f"adapter it: adapter_model.safetensors lacks {ATTENTION[0]}.lora_B"),
        ("shape", rf"has {ATTENTION[0]}.lora_B of shape \(95, 4\) where \(96, 4\) is needed"),
        ("magnitude", f"holds {ATTENTION[0]}.lora_magnitude_vector, which has no use"),
        ("layer", "adapts model.layers.7.self_attn.q_proj, which the model does not have"),
        ("tower", "adapts vision_tower.model.layers.0.self_attn.q_proj, which the model does not have"),
        ("norm", "adapts model.layers.0.input_layernorm, which is a RMSNorm here"),
        ("bias", f"holds a trained bias, {Q}.base_layer.bias"),
        ("unknown", f"holds {Q}.lora_C.weight, which is neither LoRA nor a weight of the model"),
        ("whole", "holds weights of its own for lm_head, which are not the model's"),
        ("none", "holds no LoRA tensors"),
    ],
)
def test_tensor_that_does_not_fit_is_refused_by_name(bare: Any, tmp_path: Path, change: str, words: str) -> None:
    """No tensor of an adapter is left out in silence."""
    folder = write_peft(tmp_path / "it", bare, ATTENTION[:1], seed=7)
    file = folder / "adapter_model.safetensors"
    save_file(odd(load_file(file), change), file)
    refused(bare, folder, words)


def test_embedding_that_peft_repeats_is_no_tensor_of_its_own(bare: Any, tmp_path: Path) -> None:
    """PEFT saves embeddings and heads whole beside their adapters: as the model has them, they say nothing new."""
    folder = write_peft(tmp_path / "it", bare, ["model.embed_tokens", "lm_head"], seed=7)
    file = folder / "adapter_model.safetensors"
    own = {
        f"{PREFIX}model.embed_tokens.base_layer.weight": np.array(bare.model.embed_tokens.weight),
        f"{PREFIX}lm_head.base_layer.weight": np.array(bare.lm_head.weight),
    }
    save_file({**load_file(file), **own}, file)
    assert abs(logits(adapt(bare, "it", folder).model) - logits(merged(bare, folder))).max() < 1e-3


def test_pickled_adapter_is_never_read(bare: Any, tmp_path: Path) -> None:
    """What may be code is refused unread."""
    folder = write_peft(tmp_path / "it", bare, ATTENTION[:1], seed=7)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(bare, folder, "adapter_model.bin, a pickle, which is never read")


def refused(bare: Any, folder: Path, words: str) -> None:
    with pytest.raises(EngineLoadError, match=words):
        adapt(bare, "it", folder)
