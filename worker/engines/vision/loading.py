"""Reading the folder of a vision model through mlx-vlm: weights, and the processor that cuts images up.

Loads data only, never code.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from protocol.messages import Kind
from worker import hub
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines import adapters, peft, weights
from worker.engines.base import EngineLoadError
from worker.engines.loading import LoadedModel, loaded_from, read_json
from worker.engines.skip_init import enter_package
from worker.model_folder import name_refusal


class LoadedVision(msgspec.Struct, frozen=True, kw_only=True):
    """A vision model in memory: `model` is mlx-vlm's, `processor` its family's own."""

    text: LoadedModel
    processor: Any
    model_type: str


def load_vision(config: WorkerConfig) -> LoadedVision:
    """Load model, processor and tokenizer. Raises `EngineLoadError`."""
    if config.device == "cpu":
        mx.set_default_device(mx.cpu)
    if config.adapters:
        raise EngineLoadError("--adapter: vision models have none beside them; --adapter-path loads one with the model")
    if config.draft_model:
        raise EngineLoadError("--draft-model: is for chat models; what stands for images has no draft")
    enter_package("mlx_vlm")
    path = hub.model_folder(config, Kind.VISION)
    try:
        model_config = read_json(path / "config.json")
        if "model_file" in model_config:
            raise EngineLoadError("the model brings code of its own (model_file in config.json), which is never run")
        utils = importlib.import_module("mlx_vlm.utils")
        model_type = utils.get_model_type(model_config)
        # Lazily, as chat models.
        model = utils.load_model(path, lazy=True)
        if config.adapter_path:
            model = _adapted(model, hub.adapter_folder(config.adapter_path, config), utils.apply_lora_layers)
        # mlx-vlm, too, leaves whole what looks: it is small, and errors there are seen by every token.
        keep = utils.skip_multimodal_module
        quantization = weights.settle(model, model_config, quantize=config.quantize, keep=keep)
        # Said each time: where it is not, mlx-vlm says yes for the model.
        processor = utils.load_processor(path, add_detokenizer=False, trust_remote_code=False)
        text = loaded_from(config, path, model, utils.load_config(path), quantization)
    except EngineLoadError:
        raise
    except Exception as error:
        if is_device_error(error):
            raise
        raise EngineLoadError(name_refusal(error, config.model_path, "vision")) from error
    return LoadedVision(text=text, processor=processor, model_type=model_type)


def _adapted(model: Any, folder: Path, apply: Callable[[Any, str], Any]) -> Any:
    """Return the model with an adapter of PEFT's, else with one of mlx-vlm's own, which `apply` reads."""
    if (folder / peft.WEIGHTS).is_file():
        adapters.apply(model, folder)
    else:
        model = apply(model, str(folder))
        model.eval()
    return model
