"""How inputs become vectors: the options that every embedding endpoint shares, and the job that is made of them.

Each may come in the body, by header or by query.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_type_hints

from gateway.embedding_cache import CacheKey
from gateway.schema import ignored
from gateway.schema.base import Request
from gateway.schema.errors import invalid, unsupported
from gateway.schema.parts.bounds import BatchSize, CutTokens, Dimensions, MaxTokensPerText, ModelName, PromptName
from gateway.schema.parts.thinking import agree_on
from protocol.messages import EmbedJob, Image, Ready

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
TRUNCATES = "truncate"
"""The capability of workers that cut texts that are too long."""
_DEVICES_ASKED = MappingProxyType({"mps": "gpu", "cpu": "cpu"})


class EmbedOptions(Request, frozen=True, kw_only=True):
    """What holds for images as for texts."""

    ignorable: ClassVar[Mapping[str, ignored.Rule]] = ignored.EMBEDDING
    idle: ClassVar[frozenset[str]] = frozenset({"user"})
    model: ModelName | None = None
    dimensions: Dimensions | None = None
    batch_size: BatchSize | None = None
    normalize: bool | None = None
    backend_preference: Literal["mlx", "torch", "auto"] | None = None
    device_preference: Literal["mps", "cpu", "auto"] | None = None
    input_type: Literal["query", "document"] | None = None
    prompt_name: PromptName | None = None

    def check_values(self) -> None:
        """Check that a prompt has one name. Raises `ApiError`."""
        if self.input_type is not None and self.prompt_name is not None:
            raise invalid("Give either 'prompt_name' or 'input_type'.", "prompt_name")

    @property
    def cut(self) -> int | None:
        """Where longer texts are cut; None: they are refused."""
        return None

    @property
    def truncated(self) -> bool | None:
        """Whether texts over the model's limit are cut there; None: as the worker is set."""
        return None

    def cuts_texts(self, ready: Ready) -> bool:
        """Whether a text that is too long is cut, and not refused."""
        if self.cut is not None:
            return True
        return TRUNCATES in ready.capabilities if self.truncated is None else self.truncated

    @property
    def backend(self) -> str | None:
        """As it travels; None: the model's own."""
        return None if self.backend_preference == "auto" else self.backend_preference

    @property
    def device(self) -> str | None:
        """As it travels; None: the worker's own."""
        return _DEVICES_ASKED.get(self.device_preference or "")

    def name_field(self, ready: Ready) -> tuple[str, str]:
        """Name backend and device that compute this request; another backend picks a device of its own."""
        own = ready.device if self.backend in (None, ready.backend) else "auto"
        return self.backend or ready.backend, self.device or own

    def cache_namespace(self, ready: Ready) -> tuple[object, ...]:
        """Return everything that changes a vector, besides its input and the model."""
        asked = (self.dimensions, self.normalize is not False, self.cut, self.input_type, self.prompt_name)
        return (*asked, self.cuts_texts(ready), *self.name_field(ready))

    def check_model(self, ready: Ready) -> None:
        """Refuse what this model can't do. Raises `ApiError`."""
        if self.dimensions is not None and ready.dimensions and self.dimensions > ready.dimensions:
            raise invalid(f"The vectors of this model have {ready.dimensions} dimensions.", "dimensions")


class TextOptions(EmbedOptions, frozen=True, kw_only=True):
    """What holds where there are texts."""

    max_tokens_per_text: MaxTokensPerText | None = None
    truncate_prompt_tokens: CutTokens | None = None
    truncate: bool | Literal["NONE", "END"] | None = None
    truncation: bool | None = None

    @classmethod
    def refuse_unsupported(cls, raw: dict[str, Any]) -> None:
        """Refuse to cut the beginning of a text. Raises `ApiError`."""
        super().refuse_unsupported(raw)
        if raw.get("truncate") == "START":
            raise unsupported("truncate", "can't be 'START': texts are cut at their end.")
        if raw.get("truncate_prompt_tokens") == 0:
            raise invalid("'truncate_prompt_tokens' must not be 0: nothing would be left.", "truncate_prompt_tokens")

    def check_values(self) -> None:
        """Check that names of one thing agree. Raises `ApiError`."""
        super().check_values()
        _ = self.cut, self.truncated

    @property
    def cut(self) -> int | None:
        """Where longer texts are cut. Raises `ApiError`."""
        other = None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens
        return agree_on({"max_tokens_per_text": self.max_tokens_per_text, "truncate_prompt_tokens": other})

    @property
    def truncated(self) -> bool | None:
        """Whether texts over the model's limit are cut there. Raises `ApiError`."""
        word = self.truncate == "END" if isinstance(self.truncate, str) else self.truncate
        limit = True if self.truncate_prompt_tokens == -1 else None
        return agree_on({"truncate": word, "truncation": self.truncation, "truncate_prompt_tokens": limit})


@dataclass(frozen=True, kw_only=True, slots=True)
class InputImage:
    """An image as a request brought it: the file, its SHA-256, and the text that goes with it, where one does."""

    data: bytes
    digest: bytes
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a request wants to have embedded.

    `keys` has one entry per input, in order; `images` holds what is behind keys that are digests. `place` names the
    request's field of an input by its number, for error messages; None: of all of them. `image_place` does so for the
    image of an input that has a text, too.
    """

    keys: list[CacheKey]
    place: Callable[[int | None], str]
    image_place: Callable[[int | None], str] | None = None
    images: Mapping[bytes, InputImage] = field(default_factory=dict)

    def make_job(
        self, keys: list[CacheKey], options: EmbedOptions, *, request_id: str, tenant: str
    ) -> tuple[EmbedJob, list[bytes]]:
        """Make the job that computes `keys`, some of these, and its raw frames. The pool fills in its numbers.

        An image that goes with several texts travels once.
        """
        images = [self.images[key] for key in keys if isinstance(key, bytes)]
        buffers = {image.digest: image.data for image in images}
        frames = {digest: at for at, digest in enumerate(buffers)}
        texts = [key for key in keys if isinstance(key, str)]
        job = EmbedJob(
            job=0,
            attempt=0,
            request_id=request_id,
            tenant=tenant,
            texts=texts + [image.text for image in images if image.text is not None],
            tokens=[list(key) for key in keys if isinstance(key, tuple)],
            max_tokens_per_text=options.cut,
            truncate=options.truncated,
            normalize=options.normalize is not False,
            dimensions=options.dimensions,
            prompt_name=options.prompt_name,
            input_type=options.input_type,
            batch_size=options.batch_size,
            images=[Image(buffer=frames[image.digest], digest=image.digest) for image in images],
            backend=options.backend,
            device=options.device,
        )
        return job, list(buffers.values())


def places(field: str, count: int) -> Callable[[int | None], str]:
    """Return how the inputs of one field are named: by their number where there are several."""
    return lambda at: field if at is None or count == 1 else f"{field}[{at}]"


def option_types(kind: type[EmbedOptions]) -> dict[str, Any]:
    """Return the types of those of a request's fields that may come by header or query."""
    return {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in OPTIONS}
