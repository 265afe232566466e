"""What each tiny vision model is made of: configs as mlx-vlm and the hub have them, and how images are cut up.

Images become few tokens, so that prompts stay short: 4 for each of Gemma's, at most 64 for the others'.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models.recipes import Recipe

_QWEN_TOKENS = MappingProxyType(
    {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
)
_GEMMA_TOKENS = MappingProxyType(
    {
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
        "image_token_index": "<image_soft_token>",
    }
)
_TEXT = MappingProxyType(
    {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "hidden_act": "silu",
    }
)


def _qwen_images(patch: int, processor: str) -> dict[str, Any]:
    factor = 2 * patch
    return {
        "preprocessor_config.json": {
            "image_processor_type": processor,
            "min_pixels": 4 * factor * factor,
            "max_pixels": 64 * factor * factor,
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
    }


_GEMMA_IMAGES: Mapping[str, Any] = MappingProxyType(
    {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 56, "width": 56},
            "image_seq_length": 4,
        },
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
)

VISION_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "qwen2-vl": Recipe(
            config={
                "model_type": "qwen2_vl",
                "architectures": ["Qwen2VLForConditionalGeneration"],
                **_TEXT,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
                "vision_config": {
                    "model_type": "qwen2_vl",
                    "depth": 2,
                    "embed_dim": 64,
                    "hidden_size": 96,
                    "num_heads": 4,
                    "patch_size": 14,
                    "spatial_patch_size": 14,
                    "in_channels": 3,
                },
            },
            tokens=_QWEN_TOKENS,
            files=_qwen_images(14, "Qwen2VLImageProcessor"),
            seed=21,
        ),
        "qwen2_5-vl": Recipe(
            config={
                "model_type": "qwen2_5_vl",
                "architectures": ["Qwen2_5_VLForConditionalGeneration"],
                **_TEXT,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
                "vision_config": {
                    "model_type": "qwen2_5_vl",
                    "depth": 2,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "out_hidden_size": 96,
                    "num_heads": 4,
                    "patch_size": 14,
                    "spatial_patch_size": 14,
                    "window_size": 56,
                    "fullatt_block_indexes": [1],
                },
            },
            tokens=_QWEN_TOKENS,
            files=_qwen_images(14, "Qwen2VLImageProcessor"),
            seed=22,
        ),
        "qwen3-vl": Recipe(
            config={
                "model_type": "qwen3_vl",
                "architectures": ["Qwen3VLForConditionalGeneration"],
                "text_config": {
                    "model_type": "qwen3_vl_text",
                    **_TEXT,
                    "head_dim": 16,
                    "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
                },
                "vision_config": {
                    "model_type": "qwen3_vl",
                    "depth": 3,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "out_hidden_size": 96,
                    "num_heads": 4,
                    "patch_size": 16,
                    "num_position_embeddings": 256,
                    "deepstack_visual_indexes": [0, 1],
                },
            },
            tokens=_QWEN_TOKENS,
            files=_qwen_images(16, "Qwen2VLImageProcessorFast"),
            seed=23,
        ),
        "gemma3-vl": Recipe(
            config={
                "model_type": "gemma3",
                "architectures": ["Gemma3ForConditionalGeneration"],
                "hidden_size": 96,
                "mm_tokens_per_image": 4,
                "text_config": {
                    **_TEXT,
                    "model_type": "gemma3_text",
                    "num_hidden_layers": 6,
                    "head_dim": 16,
                    "query_pre_attn_scalar": 4,
                    "sliding_window": 64,
                    "sliding_window_pattern": 3,
                    "mm_tokens_per_image": 4,
                },
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "num_hidden_layers": 2,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_attention_heads": 4,
                    "patch_size": 14,
                    "image_size": 56,
                },
            },
            tokens=_GEMMA_TOKENS,
            files=_GEMMA_IMAGES,
            seed=24,
            norm_centre=0.0,
            tied=True,
        ),
    }
)
