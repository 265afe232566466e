"""The seam between the embedding engine and the model it serves, and who serves which architecture.

A model is in memory once. What it does with inputs is its own business; whose inputs come next is the engine's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import msgspec
from tokenizers import Tokenizer

from protocol.messages import Kind
from worker import hub
from worker.config import WorkerConfig
from worker.engines.base import EngineLoadError
from worker.engines.embedding import model_files as sentence_files
from worker.engines.embedding.encoder import Encoder, Vectors
from worker.engines.embedding.inputs import QWEN2_VL_FORM, EmbeddingInputs, InputForm, unpunctuated
from worker.engines.embedding.model_files import EmbeddingFiles
from worker.engines.embedding.queue import QueuedText
from worker.engines.embedding.qwen2_vl import Qwen2VLEncoder
from worker.engines.embedding.siglip import SiglipEncoder
from worker.model_folder import name_refusal

SIGLIP_PAD = 1
"""The token that texts are filled up with, where the tokenizer's files don't say."""


class Embedder(Protocol):
    """A loaded model. All but the attributes is for the engine's thread."""

    dimensions: int
    vocab_size: int
    weights_bytes: int
    quantization: str

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What `Ready` says that it can do."""

    def padding_is_harmless(self) -> bool:
        """Return whether inputs of different sizes may share a pass."""

    def encode(self, texts: Sequence[QueuedText], *, normalize: bool) -> Vectors:
        """One vector per input, shape (texts, dimensions), float32; what is no number comes out as it is."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A model with what prepares its inputs. `revision` changes with anything that changes vectors."""

    model: Encoder | SiglipEncoder | Qwen2VLEncoder
    folder: Path
    inputs: EmbeddingInputs
    files: EmbeddingFiles
    revision: str


def open_model(config: WorkerConfig) -> Opened:
    """Load the model that `config` names. Raises `EngineLoadError`."""
    folder = hub.model_folder(config, Kind.EMBEDDING)
    try:
        files = sentence_files.read(folder)
        tokenizer_folder = folder
        if config.tokenizer_path:
            tokenizer_folder = hub.local_folder(config.tokenizer_path, config, hub.EMBEDDER_FILES)
        tokenizer = _tokenizer(tokenizer_folder)
        model, form = _model(folder, files, tokenizer, tokenizer_folder, config.quantize)
        read_image = None if isinstance(model, Encoder) else model.images.decode_image
        inputs = EmbeddingInputs(
            tokenizer,
            files,
            asked=config.context_length,
            truncates=config.truncate_embeddings,
            form=form,
            read_image=read_image,
        )
    except EngineLoadError:
        raise
    except Exception as error:
        raise EngineLoadError(name_refusal(error, config.model_path, "embedding")) from error
    revision = sentence_files.revision(folder, settings=(inputs.limit, config.tokenizer_path or "", model.quantization))
    return Opened(model=model, folder=folder, inputs=inputs, files=files, revision=revision)


def _model(
    folder: Path, files: EmbeddingFiles, tokenizer: Tokenizer, tokenizer_folder: Path, quantize: str
) -> tuple[Encoder | SiglipEncoder | Qwen2VLEncoder, InputForm]:
    match files.config["model_type"]:
        case "siglip":
            said = _json(tokenizer_folder / "tokenizer_config.json")
            pad = tokenizer.token_to_id(str(said.get("pad_token", "")))
            canonical = unpunctuated if said.get("tokenizer_class") == "SiglipTokenizer" else None
            model = SiglipEncoder(folder, files, pad=SIGLIP_PAD if pad is None else pad, quantize=quantize)
            return model, InputForm(least=model.length, canonical=canonical)
        case "qwen2_vl":
            seeing = Qwen2VLEncoder(folder, files, quantize=quantize)
            marks = tokenizer.encode(QWEN2_VL_FORM.image, add_special_tokens=False).ids
            if len(marks) != 3 or marks[1] != seeing.image_token:
                raise EngineLoadError("the tokenizer does not know this model's tokens for images")
            return seeing, msgspec.structs.replace(
                QWEN2_VL_FORM, image_token=seeing.image_token, control=frozenset(marks)
            )
        case _:
            return Encoder(folder, files, quantize=quantize), InputForm()


def device_name() -> str:
    """Where MLX computes: `cpu` or `gpu`."""
    return "cpu" if mx.default_device() == mx.Device(mx.cpu) else "gpu"


def _tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Seconds to import, so only for folders that come without the one file.
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content
