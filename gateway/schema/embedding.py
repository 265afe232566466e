"""`POST /v1/embeddings`: the request and the shape of the answer."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from gateway.embedding_cache import CacheKey
from gateway.schema.base import Answer
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import (
    MAX_EMBEDDING_INPUTS,
    NUMBERS,
    Bookkeeping,
    EmbeddingText,
    EmbeddingTokens,
    TokenId,
)
from gateway.schema.parts.embed_options import Inputs, TextOptions, places
from gateway.schema.parts.sampling import check_tokens
from gateway.schema.structure import Bounds
from protocol.messages import Ready

FOREIGN_IDS = (
    " Token ids have to be the model's own; where a client tokenises for another model, have it send texts "
    "(LangChain: check_embedding_ctx_length=False)."
)


class EmbeddingRequest(TextOptions, frozen=True, kw_only=True):
    """Texts to embed: a string, token ids, or a list of up to 2,048 of either. Token ids are the model's own.

    Everything but `input`, `model`, `encoding_format`, `dimensions` and `user` may also be given by header
    (`X-MLX-Batch-Size` and so on) or by query; the body wins.
    """

    bounds: ClassVar[Bounds] = NUMBERS
    input: EmbeddingText | Annotated[list[EmbeddingText | TokenId | EmbeddingTokens], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    user: Bookkeeping | None = None
    return_timing: bool | None = None

    def check_values(self) -> None:
        """Check that there is one kind of input, and not too many. Raises `ApiError`."""
        super().check_values()
        if isinstance(self.input, str):
            return
        if len(kinds := set(map(type, self.input))) > 1:
            raise invalid("'input' mixes strings, token ids and lists of token ids.", "input")
        if kinds != {int} and len(self.input) > MAX_EMBEDDING_INPUTS:
            message = f"'input' has {len(self.input)} entries; at most {MAX_EMBEDDING_INPUTS} are allowed."
            raise invalid(message, "input")

    @property
    def inputs(self) -> Inputs:
        """The inputs, one each, in order."""
        keys: list[CacheKey]
        match self.input:
            case str():
                keys = [self.input]
            case [int(), *_]:
                keys = [tuple(self.input)]  # type: ignore[arg-type]
            case [str(), *_]:
                keys = self.input  # type: ignore[assignment]
            case _:
                keys = [tuple(tokens) for tokens in self.input]  # type: ignore[arg-type]
        return Inputs(keys=keys, place=places("input", len(keys)))

    def check_tokens(self, inputs: Inputs, ready: Ready) -> None:
        """Refuse ids that the model does not have, and too many of them where they are not to be cut."""
        for at, key in enumerate(inputs.keys):
            if not isinstance(key, tuple):
                return
            try:
                check_tokens(key, ready, inputs.place(at))
            except ApiError as error:
                if error.code == "context_length_exceeded":
                    if not self.cuts_texts(ready):
                        raise
                    continue
                raise invalid(error.message + FOREIGN_IDS, error.param) from None


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
