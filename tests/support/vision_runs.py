"""Vision models driven two ways: jobs with images for our engine, and mlx-vlm's own generation of the same."""

import hashlib
import importlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from protocol.messages import ChatPrompt, GenerateJob
from protocol.messages import Image as Shown
from tests.support.engine_runs import job
from worker.engines.skip_init import enter_package

Part = str | int
"""A piece of a message: text, or the number of a file."""


def noise(seed: int, width: int = 90, height: int = 70) -> bytes:
    """A PNG of coarse noise: every seed another picture."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize((width, height), Image.Resampling.NEAREST).save(data, "PNG")
    return data.getvalue()


def shown(file: bytes, buffer: int, detail: str = "auto") -> Shown:
    return Shown(buffer, hashlib.sha256(file).digest(), detail)


def messages(*turns: Sequence[Part] | str) -> list[dict[str, Any]]:
    """A conversation that begins with the user; a turn is a text, or texts and numbers of files."""
    roles = ("user", "assistant")
    return [
        {"role": roles[index % 2], "content": turn if isinstance(turn, str) else [_part(part) for part in turn]}
        for index, turn in enumerate(turns)
    ]


def _part(part: Part) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}


def look(
    number: int, files: Sequence[bytes], *turns: Sequence[Part] | str, detail: str = "auto", **fields: Any
) -> GenerateJob:
    """A job with the images that its turns name."""
    numbers = [part for turn in turns if not isinstance(turn, str) for part in turn if isinstance(part, int)]
    prompt = ChatPrompt(msgspec.json.encode(messages(*turns)), None, fields.pop("template", {}))
    images = [shown(files[at], at, detail) for at in numbers]
    return job(number, prompt, images=images, **fields)


@lru_cache(maxsize=2)
def _reference(folder: Path) -> tuple[Any, Any, Any]:
    enter_package("mlx_vlm")
    utils = importlib.import_module("mlx_vlm.utils")
    model = utils.load_model(folder)
    return model, utils.load_processor(folder, trust_remote_code=False), utils


def reference(folder: Path, files: Sequence[bytes], *turns: Sequence[Part] | str, max_tokens: int) -> list[int]:
    """What mlx-vlm says by itself: its prompt code, its processor, its `generate_step`, greedy."""
    mx = importlib.import_module("mlx.core")
    model, processor, utils = _reference(folder)
    prompts = importlib.import_module("mlx_vlm.prompt_utils")
    step = importlib.import_module("mlx_vlm.generate.ar").generate_step
    said = messages(*turns)
    numbers = [part for turn in turns if not isinstance(turn, str) for part in turn if isinstance(part, int)]
    formed = prompts.apply_chat_template(processor, model.config, said, return_messages=True)
    text = processor.tokenizer.apply_chat_template(formed, add_generation_prompt=True, tokenize=False)
    pictures = [Image.open(io.BytesIO(files[at])).convert("RGB") for at in numbers]
    inputs = dict(utils.prepare_inputs(processor, images=pictures or None, prompts=text))
    for name in ("_position_ids", "_rope_deltas"):
        # What it remembers of an earlier prompt.
        if hasattr(model.language_model, name):
            setattr(model.language_model, name, None)
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    pixels = inputs.pop("pixel_values", None)
    steps = step(ids, model, pixels, mask, max_tokens=max_tokens, temperature=0.0, **inputs)
    ends = set(model.config.eos_token_id or ())
    found = []
    for token, _ in steps:
        found.append(int(token.item() if isinstance(token, mx.array) else token))
        if found[-1] in ends:
            break
    return found
