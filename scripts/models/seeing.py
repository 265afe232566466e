"""Tiny embedding models that take images, made as those of `models/encoders.py`: SigLIP and Qwen2-VL."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from models.encoders import (
    HEAD,
    HEADS,
    INNER,
    KEYS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    Shapes,
    weights,
    write_json,
    write_tokenizer,
)

PATCH = 14
SQUARE = 56
TEXT_LENGTH = 24
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
_IDS = {token: VOCABULARY - len(CONTROL) + at for at, token in enumerate(CONTROL)}
_SIZES = ((100, 60), (30, 90), (56, 56), (220, 150))
_TOWER = {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "siglip": {
            "model_type": "siglip", "architectures": ["SiglipModel"], "torch_dtype": "float32",
            "text_config": {
                **_TOWER, "model_type": "siglip_text_model", "vocab_size": VOCABULARY, "projection_size": WIDTH,
                "max_position_embeddings": TEXT_LENGTH, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 1,
            },
            "vision_config": {
                **_TOWER, "model_type": "siglip_vision_model", "image_size": SQUARE, "patch_size": PATCH,
            },
        },
        "qwen2_vl": {
            "model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"], "torch_dtype": "float32",
            "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "vocab_size": VOCABULARY,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
            "bos_token_id": _IDS["<|endoftext|>"], "eos_token_id": _IDS["<|im_end|>"],
            "image_token_id": _IDS["<|image_pad|>"], "video_token_id": _IDS["<|video_pad|>"],
            "vision_start_token_id": _IDS["<|vision_start|>"], "vision_end_token_id": _IDS["<|vision_end|>"],
            "vision_config": {
                "model_type": "qwen2_vl", "depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS,
                "mlp_ratio": 2, "patch_size": PATCH, "in_channels": 3, "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        },
    }
)  # fmt: skip
PROCESSORS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "siglip": {
            "image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
            "size": {"height": SQUARE, "width": SQUARE}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        },
        "qwen2_vl": {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "temporal_patch_size": 2,
            "merge_size": 2, "min_pixels": 56 * 56, "max_pixels": 112 * 140,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
)  # fmt: skip
TEXTS = ("w4 w9 w40", "w77", " ".join(f"w{at}" for at in range(20, 33)), "w5 w6")


def write(name: str, folder: Path) -> Path:
    """Write the model `name` of `CONFIGS` into a new folder, and answer it."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIGS[name])
    write_json(folder / "preprocessor_config.json", PROCESSORS[name])
    save_file(weights(_siglip() if name == "siglip" else _qwen2_vl()), str(folder / "model.safetensors"))
    write_tokenizer(folder, *(CONTROL if name == "qwen2_vl" else ()))
    return folder


def pictures() -> list[bytes]:
    """Return PNG files, high and wide, smaller and larger than what models take: one for each of `TEXTS`."""
    random = np.random.default_rng(3)
    files = []
    for width, height in _SIZES:
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _siglip() -> Shapes:
    shapes: Shapes = {
        "logit_scale": (1,), "logit_bias": (1,),
        "text_model.embeddings.token_embedding.weight": (VOCABULARY, WIDTH),
        "text_model.embeddings.position_embedding.weight": (TEXT_LENGTH, WIDTH),
        "text_model.head.weight": (WIDTH, WIDTH), "text_model.head.bias": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (WIDTH,),
        "vision_model.embeddings.position_embedding.weight": ((SQUARE // PATCH) ** 2, WIDTH),
        "vision_model.head.probe": (1, 1, WIDTH),
        "vision_model.head.attention.in_proj_weight": (3 * WIDTH, WIDTH),
        "vision_model.head.attention.in_proj_bias": (3 * WIDTH,),
        **_layer("vision_model.head.attention.out_proj", WIDTH, WIDTH),
        **_layer("vision_model.head.mlp.fc1", INNER, WIDTH),
        **_layer("vision_model.head.mlp.fc2", WIDTH, INNER),
    }  # fmt: skip
    norms = ["text_model.final_layer_norm", "vision_model.post_layernorm", "vision_model.head.layernorm"]
    for tower in ("text_model", "vision_model"):
        for layer in range(LAYERS):
            at = f"{tower}.encoder.layers.{layer}"
            norms += [f"{at}.layer_norm1", f"{at}.layer_norm2"]
            for part in ("q", "k", "v", "out"):
                shapes |= _layer(f"{at}.self_attn.{part}_proj", WIDTH, WIDTH)
            shapes |= _layer(f"{at}.mlp.fc1", INNER, WIDTH) | _layer(f"{at}.mlp.fc2", WIDTH, INNER)
    return shapes | {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}


def _qwen2_vl() -> Shapes:
    merged = 4 * WIDTH
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH), "visual.patch_embed.proj.weight": (WIDTH, 3, 2, PATCH, PATCH),
        **_layer("visual.merger.mlp.0", merged, merged), **_layer("visual.merger.mlp.2", WIDTH, merged),
    }  # fmt: skip
    norms = ["visual.merger.ln_q"]
    for block in range(2):
        at = f"visual.blocks.{block}"
        norms += [f"{at}.norm1", f"{at}.norm2"]
        shapes |= _layer(f"{at}.attn.qkv", 3 * WIDTH, WIDTH) | _layer(f"{at}.attn.proj", WIDTH, WIDTH)
        shapes |= _layer(f"{at}.mlp.fc1", 2 * WIDTH, WIDTH) | _layer(f"{at}.mlp.fc2", WIDTH, 2 * WIDTH)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, out in (("q", HEADS), ("k", KEYS), ("v", KEYS)):
            shapes |= _layer(f"{at}.self_attn.{part}_proj", out * HEAD, WIDTH)
        shapes[f"{at}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{at}.mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (WIDTH, INNER)
    return shapes | {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}


def _layer(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}
