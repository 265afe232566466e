"""`POST /similarity`: two lists of texts or vectors, or one against itself; scores, or the most similar pairs."""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from gateway.schema.base import Answer
from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import (
    MAX_EMBEDDING_INPUTS,
    MAX_PRODUCTS,
    MAX_SCORES,
    NUMBERS,
    EmbeddingText,
    EmbeddingVector,
    TopPairs,
)
from gateway.schema.parts.embed_options import Inputs, TextOptions
from gateway.schema.structure import Bounds

Side = Annotated[list[EmbeddingText | EmbeddingVector], Meta(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
ABOUT_TEXTS = (
    "normalize",
    "dimensions",
    "max_tokens_per_text",
    "truncate_prompt_tokens",
    "truncate",
    "truncation",
    "batch_size",
    "input_type",
    "prompt_name",
    "backend_preference",
    "device_preference",
)


class SimilarityRequest(TextOptions, frozen=True, kw_only=True):
    """`left` is compared with `right`, or with itself where there is no `right`; each holds texts, or vectors.

    Without `top_k` all scores are answered, at most 262,144 of them. The other options say how texts are embedded.
    """

    bounds: ClassVar[Bounds] = NUMBERS
    left: Side
    right: Side | None = None
    metric: Literal["cosine", "dot", "euclidean"] = "cosine"
    top_k: TopPairs | None = None

    def check_values(self) -> None:
        """Check that sides are of one kind and length, options apply, and the answer can be sent. Raises `ApiError`."""
        super().check_values()
        left = _length("left", self.left)
        right = left if self.right is None else _length("right", self.right)
        if left and right and left != right:
            raise invalid(f"'right' has vectors of {right} numbers, 'left' of {left}.", "right")
        if left and right:
            for name in ABOUT_TEXTS:
                if getattr(self, name) is not None:
                    raise invalid(f"'{name}' is only allowed where there are texts.", name)
        if self.top_k is None and self.pairs > MAX_SCORES:
            message = f"This makes {self.pairs} scores; where there are more than {MAX_SCORES}, give 'top_k'."
            raise invalid(message, "top_k")

    @property
    def pairs(self) -> int:
        """How many there are to compare."""
        return len(self.left) * len(self.left if self.right is None else self.right)

    @property
    def inputs(self) -> Inputs:
        """The texts of both sides, left ones first."""
        left, right = ([text for text in side or [] if isinstance(text, str)] for side in (self.left, self.right))

        def place(at: int | None) -> str:
            if at is None:
                return "left" if left else "right"
            return f"left[{at}]" if at < len(left) else f"right[{at - len(left)}]"

        return Inputs(keys=[*left, *right], place=place)

    def check_work(self, dimensions: int) -> None:
        """Refuse what would keep a worker busy for too long. Raises `ApiError`."""
        most = MAX_PRODUCTS // dimensions
        if self.pairs > most:
            message = (
                f"This makes {self.pairs} pairs; with vectors of {dimensions} dimensions, at most {most} are compared."
            )
            raise invalid(message, "left" if self.right is None else "right")


def _length(name: str, side: list[Any]) -> int:
    """Return the length of a side's vectors; 0 for texts. Raises `ApiError`."""
    if len({*map(type, side)}) > 1:
        raise invalid(f"'{name}' mixes texts and vectors.", name)
    if isinstance(side[0], str):
        return 0
    lengths = {*map(len, side)}
    if len(lengths) > 1:
        raise invalid(f"'{name}' has vectors of {min(lengths)} and of {max(lengths)} numbers.", name)
    return lengths.pop()


class Pair(Answer, frozen=True, kw_only=True):
    """Two inputs, by their places in `left` and `right`, and how similar they are."""

    left: int
    right: int
    score: float


class SimilarityAnswer(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """`scores`, a row for each on the left, or the `top_k` most similar `pairs`, best first.

    With `euclidean` a score is a distance: less is more similar. Of one list with itself, pairs are those of different
    places, each once. `model` is absent where there were only vectors.
    """

    metric: str
    shape: list[int]
    processing_time: float
    model: str | None = None
    cached: bool | None = None
    scores: list[list[float]] | None = None
    pairs: list[Pair] | None = None
