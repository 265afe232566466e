"""What each tiny model is made of: the config that mlx-lm reads, the size of the vocabulary, the seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

CONTEXT_LENGTH = 8192


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model. `config` lacks what all share; `generation` is what `generation_config.json` says on sampling.

    `tokens` are control tokens that the model has besides the common ones, by the name that the config has for their
    ids; `files` further files of the folder, as JSON. `tied`: the head is the embedding, for families where mlx-vlm
    insists on it.
    """

    config: Mapping[str, Any]
    seed: int
    vocab_size: int = 2048
    corpus_paragraphs: int = 4000
    norm_centre: float = 1.0
    tied: bool = False
    generation: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    tokens: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    files: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def _transformer(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "hidden_act": "silu",
        **more,
    }


_QWEN3 = _transformer("qwen3", "Qwen3ForCausalLM", rope_theta=1_000_000.0)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "qwen3": Recipe(
            config=_QWEN3,
            seed=1,
            generation={"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        ),
        "bench-qwen3": Recipe(
            config={
                **_QWEN3,
                "hidden_size": 32,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "head_dim": 16,
            },
            seed=2,
            vocab_size=8192,
            corpus_paragraphs=16_000,
        ),
        "llama": Recipe(config=_transformer("llama", "LlamaForCausalLM", rms_norm_eps=1e-5), seed=3),
        "gemma3": Recipe(
            config=_transformer(
                "gemma3_text",
                "Gemma3ForCausalLM",
                num_hidden_layers=6,
                intermediate_size=192,
                num_attention_heads=4,
                num_key_value_heads=1,
                query_pre_attn_scalar=4,
                sliding_window=64,
                sliding_window_pattern=3,
                rope_theta=1_000_000.0,
                rope_local_base_freq=10_000.0,
                hidden_activation="gelu_pytorch_tanh",
            ),
            seed=4,
            norm_centre=0.0,  # Gemma's norms multiply by 1 + weight
        ),
        "granitemoehybrid": Recipe(
            config={
                **_transformer("granitemoehybrid", "GraniteMoeHybridForCausalLM", num_hidden_layers=4),
                "layer_types": ["mamba", "mamba", "attention", "mamba"],
                "embedding_multiplier": 1.0,
                "attention_multiplier": 0.25,
                "logits_scaling": 1.0,
                "residual_multiplier": 1.0,
                "position_embedding_type": "nope",
                "mamba_n_heads": 12,
                "mamba_d_head": 16,
                "mamba_d_state": 16,
                "mamba_d_conv": 4,
                "mamba_n_groups": 1,
                "mamba_conv_bias": True,
                "mamba_proj_bias": False,
            },
            seed=5,
        ),
        "mamba2": Recipe(
            config={
                "model_type": "mamba2",
                "architectures": ["Mamba2ForCausalLM"],
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 4,
                "num_heads": 12,
                "head_dim": 16,
                "state_size": 16,
                "n_groups": 1,
                "conv_kernel": 4,
                "expand": 2,
                "use_bias": False,
                "use_conv_bias": True,
                "layer_norm_epsilon": 1e-5,
                "time_step_rank": 6,
                "time_step_limit": [0.001, 100.0],
                "hidden_act": "silu",
            },
            seed=16,
        ),
        "mamba": Recipe(
            config={
                "model_type": "mamba",
                "architectures": ["MambaForCausalLM"],
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 4,
                "state_size": 16,
                "conv_kernel": 4,
                "use_bias": False,
                "use_conv_bias": True,
                "time_step_rank": 6,
                "hidden_act": "silu",
            },
            seed=7,
        ),
    }
)
