"""The vision model asked in this process, through mlx-vlm's own model and processor, one question after the other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from training.answering import parse_answer
from training.evaluation import Case, ModelAnswer
from training.pictures import in_its_size
from training.vision_network import build, module

_MAX_TOKENS = 200


class LocalVisionModel:
    """The model of a folder, in single precision, greedy."""

    def __init__(self, folder: Path) -> None:
        mx.set_default_device(mx.cpu)
        self._model: Any = build(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        self._model.load_weights(str(folder / "model.safetensors"))
        self._model.set_dtype(mx.float32)
        self.processor = module("qwen2_vl.processing_qwen2_vl").Qwen2VLProcessor.from_pretrained(folder)
        self._cache: Any = module("cache")
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self._ends = generation["eos_token_id"]

    def answer_cases(self, cases: Sequence[Case]) -> list[ModelAnswer]:
        """Return an answer for each case, in their order."""
        return [self._answer(case) for case in cases]

    def _answer(self, case: Case) -> ModelAnswer:
        prompt = self.processor.tokenizer.apply_chat_template(
            case.messages, tools=list(case.sample.tools) or None, tokenize=False, add_generation_prompt=True
        )
        images = [in_its_size(picture) for picture in case.sample.pictures]
        inputs = self.processor(text=[prompt], images=images or None)
        return parse_answer(self.processor.tokenizer.decode(self._said(inputs)))

    def _said(self, inputs: Any) -> list[int]:
        model = self._model
        tokens = mx.array(inputs["input_ids"])
        pictures = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
        model.language_model._position_ids = model.language_model._rope_deltas = None
        seen = model.get_input_embeddings(tokens, **pictures)
        cache = [self._cache.KVCache() for _ in model.layers]
        output = model.language_model(
            tokens, seen.inputs_embeds, cache=cache, position_ids=seen.position_ids, rope_deltas=seen.rope_deltas
        )
        said: list[int] = []
        while len(said) < _MAX_TOKENS:
            token = int(mx.argmax(output.logits[0, -1]).item())
            if token in self._ends:
                break
            said.append(token)
            output = model.language_model(mx.array([[token]]), cache=cache, rope_deltas=seen.rope_deltas)
        return said
