"""`POST /v1/embeddings`: the request, what may come by header or query, and the shape of the answer."""

from types import MappingProxyType
from typing import Annotated, Literal, get_type_hints

from msgspec import Meta

from gateway.errors import ApiError, invalid, unsupported
from gateway.schema.base import Answer, Request
from gateway.schema.bounds import (
    MAX_EMBEDDING_INPUTS,
    BatchSize,
    Bookkeeping,
    Dimensions,
    EmbeddingText,
    EmbeddingTokens,
    MaxTokensPerText,
    ModelName,
    PromptName,
    TokenId,
)
from gateway.schema.sampling import check_tokens
from protocol.messages import EmbedJob, Ready

OPTIONS = MappingProxyType(
    {
        "batch_size": "X-MLX-Batch-Size",
        "normalize": "X-MLX-Normalize",
        "backend_preference": "X-MLX-Backend",
        "device_preference": "X-MLX-Device",
        "max_tokens_per_text": "X-MLX-Max-Tokens-Per-Text",
        "return_timing": "X-MLX-Return-Timing",
        "input_type": "X-MLX-Input-Type",
        "prompt_name": "X-MLX-Prompt-Name",
    }
)
"""Fields that may come by header or query as well."""
BACKENDS = MappingProxyType({"mlx": "MLXBackend", "torch": "TorchBackend"})
DEVICES = MappingProxyType({"gpu": "mps", "cpu": "cpu"})

Key = str | tuple[int, ...]
"""One input: a text, or token ids."""


class EmbeddingRequest(Request, frozen=True, kw_only=True):
    """Texts to embed: a string, token ids, or a list of up to 2,048 of either. Token ids are the model's own.

    The fields from `batch_size` on may also be given by header (`X-MLX-Batch-Size` and so on) or by query; the body
    wins.
    """

    input: EmbeddingText | Annotated[list[EmbeddingText | TokenId | EmbeddingTokens], Meta(min_length=1)]
    model: ModelName | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    user: Bookkeeping | None = None
    batch_size: BatchSize | None = None
    normalize: bool | None = None
    backend_preference: Literal["mlx", "torch", "auto"] | None = None
    device_preference: Literal["mps", "cpu", "auto"] | None = None
    max_tokens_per_text: MaxTokensPerText | None = None
    return_timing: bool | None = None
    input_type: Literal["query", "document"] | None = None
    prompt_name: PromptName | None = None

    def check(self) -> None:
        """One kind of input, and not too many."""
        if self.input_type is not None and self.prompt_name is not None:
            raise invalid("Give either 'prompt_name' or 'input_type'.", "prompt_name")
        if isinstance(self.input, str):
            return
        if len(kinds := set(map(type, self.input))) > 1:
            raise invalid("'input' mixes strings, token ids and lists of token ids.", "input")
        if kinds != {int} and len(self.input) > MAX_EMBEDDING_INPUTS:
            message = f"'input' has {len(self.input)} entries; at most {MAX_EMBEDDING_INPUTS} are allowed."
            raise invalid(message, "input")

    @property
    def keys(self) -> list[Key]:
        """The inputs, one each, in order."""
        match self.input:
            case str():
                return [self.input]
            case [int(), *_]:
                return [tuple(self.input)]  # type: ignore[arg-type]
            case [str(), *_]:
                return self.input  # type: ignore[return-value]
            case _:
                return [tuple(tokens) for tokens in self.input]  # type: ignore[arg-type]

    @property
    def options(self) -> tuple[object, ...]:
        """Everything in the request that changes a vector, besides its input."""
        return (
            self.dimensions,
            self.normalize is not False,
            self.max_tokens_per_text,
            self.input_type,
            self.prompt_name,
        )

    def check_model(self, ready: Ready) -> None:
        """Refuse what this model can't do. Raises `ApiError`."""
        if self.dimensions is not None and self.dimensions > ready.dimensions:
            raise invalid(f"The vectors of this model have {ready.dimensions} dimensions.", "dimensions")
        if self.backend_preference not in (None, "auto", ready.backend):
            reason = f"can't be '{self.backend_preference}': that backend is not installed here (only {ready.backend})."
            raise unsupported("backend_preference", reason)
        device = DEVICES.get(ready.device, ready.device)
        if self.device_preference not in (None, "auto", device):
            raise unsupported(
                "device_preference", f"can't be '{self.device_preference}': this model runs on '{device}'."
            )

    def check_tokens(self, keys: list[Key], ready: Ready) -> None:
        """Refuse ids that the model does not have, and too many of them where they are not to be cut."""
        for at, key in enumerate(keys):
            if isinstance(key, str):
                return
            where = "input" if len(keys) == 1 else f"input[{at}]"
            try:
                check_tokens(list(key), ready, where)
            except ApiError as error:
                if error.code != "context_length_exceeded" or self.max_tokens_per_text is None:
                    raise

    def job(self, keys: list[Key], *, request_id: str, tenant: str) -> EmbedJob:
        """The job for a worker that computes `keys`. The pool fills in its numbers."""
        return EmbedJob(
            job=0,
            attempt=0,
            request_id=request_id,
            tenant=tenant,
            texts=[key for key in keys if isinstance(key, str)],
            tokens=[list(key) for key in keys if not isinstance(key, str)],
            max_tokens_per_text=self.max_tokens_per_text,
            normalize=self.normalize is not False,
            dimensions=self.dimensions,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
            batch_size=self.batch_size,
        )


OPTION_TYPES = MappingProxyType(
    {name: kind for name, kind in get_type_hints(EmbeddingRequest, include_extras=True).items() if name in OPTIONS}
)
"""The types of the options, as the body has them."""


class EmbeddingUsage(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens, and what `return_timing` adds: seconds in the model and in all, who computed, how much was cached."""

    prompt_tokens: int
    total_tokens: int
    mlx_processing_time: float | None = None
    total_processing_time: float | None = None
    backend_used: str | None = None
    device_used: str | None = None
    batch_size_used: int | None = None
    cache_hits: int | None = None


class Embedding(Answer, frozen=True, kw_only=True):
    """One vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Answer, frozen=True, kw_only=True):
    """One vector per input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
