"""How many tokens a model takes, from wherever its family keeps that."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from protocol.errors import Code, JobError
from protocol.messages import TokenPrompt
from tests.support.engine_runs import job, prepared, run
from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.engines.chat.engine import ChatEngine
from worker.engines.context import KEYS, NESTED, UNKNOWN_CONTEXT, ContextLimits, promised_tokens
from worker.engines.loading import load

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PROMISES: dict[str, tuple[dict[str, Any], Any, int | None]] = {
    "nothing said": ({}, None, None),
    "a tokenizer without a limit": ({}, 1e30, None),
    "a tokenizer's limit": ({}, 16384, 16384),
    "the config before the tokenizer": ({"max_position_embeddings": 4096}, 1024, 4096),
    "nested": ({"text_config": {"max_position_embeddings": 131072}, "max_position_embeddings": 512}, None, 131072),
    "nested twice": ({"thinker_config": {"text_config": {"max_position_embeddings": 32768}}}, None, 32768),
    "nested without it": ({"text_config": {"hidden_size": 8}, "max_position_embeddings": 2048}, None, 2048),
    "Command R": ({"max_position_embeddings": 8192, "model_max_length": 131072}, None, 131072),
    "Qwen 1": ({"max_position_embeddings": 32768, "seq_length": 8192}, None, 8192),
    "a sliding window": ({"max_position_embeddings": 32768, "sliding_window": 4096}, None, 32768),
    "lille": ({"block_size": 512}, None, 512),
    "a block size of another kind": ({"block_size": 32, "max_position_embeddings": 4096}, None, 4096),
    "no number": ({"max_position_embeddings": None, "n_ctx": "long", "n_positions": True}, None, None),
    "a float": ({"max_position_embeddings": 4096.0}, None, 4096),
    "Qwen2.5 with YaRN": ({"max_position_embeddings": 32768, "rope_scaling": YARN}, None, 131072),
    "Qwen3 with YaRN": ({"max_position_embeddings": 40960, "rope_scaling": {**YARN}}, None, 131072),
    "YaRN by its old name": (
        {
            "max_position_embeddings": 8192,
            "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192},
        },
        None,
        16384,
    ),
    "YaRN of transformers 5": ({"max_position_embeddings": 32768, "rope_parameters": YARN}, None, 131072),
    "gpt-oss": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        },
        None,
        131072,
    ),
    "DeepSeek": (
        {
            "max_position_embeddings": 163840,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
        },
        None,
        163840,
    ),
    "Llama 3.1": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        },
        None,
        131072,
    ),
    "Phi 3": (
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        },
        None,
        131072,
    ),
    "linear": ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, None, 16384),
    "linear, in the tokenizer": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
        16384,
        16384,
    ),
    "linear, counted already": (
        {"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}},
        16384,
        16384,
    ),
    "dynamic": ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, None, 4096),
    "Gemma 3": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        },
        None,
        131072,
    ),
    "ropes by layers": (
        {
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default"},
                "full_attention": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192},
            },
        },
        None,
        16384,
    ),
    "a rope for three axes": (
        {"max_position_embeddings": 32768, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        None,
        32768,
    ),
    "a scaled rope that is none": ({"max_position_embeddings": 4096, "rope_scaling": "yes"}, None, 4096),
}


@pytest.mark.parametrize("name", PROMISES)
def test_promise_is_found_when_a_family_keeps_it_elsewhere(name: str) -> None:
    """Keys of all families, nested or not; scaled ropes reach as far as they were made to."""
    config, tokenizer_limit, expected = PROMISES[name]
    assert promised_tokens(config, tokenizer_limit) == expected


@pytest.mark.parametrize("key", [*KEYS, "model_max_length"])
@pytest.mark.parametrize("place", ["", *NESTED])
def test_promise_is_found_under_every_name(key: str, place: str) -> None:
    """At the top and in the part for text."""
    config = {key: 6000} if not place else {place: {key: 6000}}
    assert promised_tokens(config) == 6000


def test_asked_context_is_served_when_the_files_do_not_forbid_it(caplog: pytest.LogCaptureFixture) -> None:
    """Less and more than promised; more is said with both numbers, where something was promised."""
    promised = ContextLimits(promised=8192)
    with caplog.at_level(logging.WARNING, "worker"):
        assert [promised.settle(asked) for asked in (None, 512, 8192)] == [8192, 512, 8192]
        assert ContextLimits(promised=None).settle(None) == UNKNOWN_CONTEXT
        assert ContextLimits(promised=None).settle(100_000) == 100_000
        assert not caplog.messages
        assert promised.settle(40_000) == 40_000
    assert "--context-length 40000" in caplog.messages[0]
    assert "8192 tokens" in caplog.messages[0]


def test_asked_context_is_refused_when_weights_have_no_place_for_it() -> None:
    """Learned positions end where their table does, whatever the files say."""
    assert ContextLimits(promised=2048, placed=1024).settle(None) == 1024
    assert ContextLimits(promised=None, placed=8192).settle(None) == 8192
    assert ContextLimits(promised=512, placed=1024).settle(1024) == 1024
    with pytest.raises(EngineLoadError, match=r"--context-length 1025: .* positions for 1024 tokens"):
        ContextLimits(promised=1024, placed=1024).settle(1025)


def configured(folder: Path, copy: Path, **changes: Any) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy


def test_flag_raises_the_context_when_a_loaded_folder_says_little(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A scaled rope by itself, and no key at all: the flag counts, up and down."""

    def served(folder: Path, asked: int | None = None) -> int:
        return load(WorkerConfig(model_path=str(folder), served_name="m", context_length=asked)).context_length

    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    scaled = configured(model_folder("qwen3"), tmp_path / "scaled", rope_scaling=rope)
    assert [served(scaled, asked) for asked in (None, 30_000, 100)] == [32768, 30_000, 100]
    silent = configured(model_folder("llama"), tmp_path / "silent", max_position_embeddings=None)
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    (silent / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 10**30}))
    assert [served(silent, asked) for asked in (None, 50_000)] == [UNKNOWN_CONTEXT, 50_000]


GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 2048,
    "n_ctx": 64,
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def gpt2(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2: absolute positions, learned, for 64 tokens."""
    folder = shutil.copytree(model_folder("qwen3"), tmp_path_factory.mktemp("gpt2") / "m")
    (folder / "config.json").write_text(json.dumps(GPT2))
    model_class, arguments_class = _get_classes(config=GPT2)
    model = model_class(arguments_class.from_dict(GPT2))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder


def test_prompt_is_refused_when_it_is_beyond_the_learned_positions(gpt2: Path) -> None:
    """At the cap it works; one over is the client's error, and the flag can't raise it."""
    with pytest.raises(EngineLoadError, match="64 tokens"):
        load(WorkerConfig(model_path=str(gpt2), served_name="m", context_length=65))
    engine = ChatEngine(WorkerConfig(model_path=str(gpt2), served_name="m"))
    engine.load()
    assert engine.describe().context_length == 64
    full = run(engine, [job(1, TokenPrompt([5] * 62), max_tokens=2)])[1]
    assert (full.failed, full.finish, full.usage.completion_tokens if full.usage else 0) == (None, {0: "length"}, 2)
    with pytest.raises(JobError) as refused:
        prepared(engine, job(2, TokenPrompt([5] * 65), max_tokens=1))
    assert refused.value.code is Code.CONTEXT_LENGTH
