"""The same models through transformers on PyTorch: the passes of an embedder, computed there instead of in MLX.

What comes before a pass (tokens, pixels) and behind it (pooling, layers, normalisation) stays what it is. PyTorch is
an extra of the installation: nothing of it is imported before a request asks for it. Reads data only, never code.
"""

import copy
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from protocol.errors import Code, JobError
from worker.engines.embedding.encoder import Encoder
from worker.engines.embedding.qwen2_vl import ImageInputs, Qwen2VLEncoder
from worker.engines.embedding.siglip import SiglipEncoder

INSTALL = "'scripts/install torch' in the pool's folder"
BACKEND, DEVICE = "backend_preference", "device_preference"
"""Parameters of a request."""

Model = Encoder | SiglipEncoder | Qwen2VLEncoder


def refuse_missing() -> None:
    """Raise a `JobError` that says what to install, where PyTorch is not."""
    if importlib.util.find_spec("torch") is None:
        message = f"The PyTorch backend is not installed on this server; {INSTALL} adds it."
        raise JobError(Code.INVALID_REQUEST, message, BACKEND)


def pick_device(asked: str | None) -> str:
    """`gpu` or `cpu`: the one asked for, or the better one there is. Raises `JobError`."""
    found = _accelerator()
    if asked == "gpu" and found is None:
        raise JobError(Code.INVALID_REQUEST, "PyTorch finds no GPU on this server.", DEVICE)
    return asked or ("gpu" if found else "cpu")


def twin(model: Model, folder: Path, device: str) -> Model:
    """Return a copy of `model` whose passes PyTorch computes. Takes seconds, and the weights' memory once more.

    Raises `JobError` for weights that transformers can't read.
    """
    try:
        passes = _Passes(folder, (_accelerator() if device == "gpu" else None) or "cpu")
    except Exception as error:
        message = f"PyTorch can't load this model ({type(error).__name__}); MLX serves it."
        raise JobError(Code.INVALID_REQUEST, message, BACKEND) from error
    found = copy.copy(model)
    match found:
        case Encoder():
            found.hidden = passes.text
        case SiglipEncoder():
            found.read, found.see = passes.siglip_text, passes.siglip_images
        case Qwen2VLEncoder():
            found.hidden = passes.qwen
    return found


def _accelerator() -> str | None:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


class _Passes:
    """A model of transformers, called with NumPy's arrays and answering MLX's."""

    def __init__(self, folder: Path, place: str) -> None:
        self._torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        dtype = self._torch.float32 if place == "cpu" else "auto"
        loaded = transformers.AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
        self._model = loaded.eval().to(place)
        self._place = place

    def text(self, tokens: Any, mask: Any) -> mx.array:
        return self._run(self._model, "last_hidden_state", input_ids=tokens, attention_mask=mask)

    def siglip_text(self, tokens: Any) -> mx.array:
        return self._run(self._model.get_text_features, "pooler_output", input_ids=tokens)

    def siglip_images(self, pixels: mx.array) -> mx.array:
        channels_first = np.array(pixels.transpose(0, 3, 1, 2))
        return self._run(self._model.get_image_features, "pooler_output", pixel_values=channels_first)

    def qwen(self, inputs: ImageInputs) -> mx.array:
        mask = np.arange(inputs.tokens.shape[1]) < inputs.lengths[:, None]
        more: dict[str, Any] = {}
        if inputs.patches is not None:
            more = {"pixel_values": np.array(inputs.patches), "image_grid_thw": np.array(inputs.grids)}
        return self._run(
            self._model,
            "last_hidden_state",
            input_ids=inputs.tokens,
            attention_mask=mask,
            mm_token_type_ids=inputs.shown.astype(np.int32),
            **more,
        )

    def _run(self, function: Any, wanted: str, **arrays: Any) -> mx.array:
        torch = self._torch
        given = {}
        for name, array in arrays.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self._place)
            given[name] = tensor.to(self._model.dtype) if tensor.is_floating_point() else tensor.long()
        with torch.inference_mode():
            found = getattr(function(**given), wanted)
        return mx.array(found.float().cpu().numpy())
