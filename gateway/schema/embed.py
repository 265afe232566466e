"""`POST /embed/text`: the request, and the shape of the answer that all of `/embed` gives."""

from gateway.schema.base import Answer
from gateway.schema.bounds import EmbeddingTexts
from gateway.schema.embed_options import Inputs, TextOptions


class EmbedTextRequest(TextOptions, frozen=True, kw_only=True):
    """Texts to embed, up to 2,048. The options may also be given by header or by query; the body wins."""

    texts: EmbeddingTexts

    @property
    def inputs(self) -> Inputs:
        """The texts, in order."""
        return Inputs(keys=[*self.texts], place=lambda at: "texts" if at is None else f"texts[{at}]")


class EmbedAnswer(Answer, frozen=True, kw_only=True):
    """One vector per input, in order.

    `shape` is [vectors, dimensions], `processing_time` seconds, `cached` whether every vector was known already.
    """

    embeddings: list[list[float]]
    shape: list[int]
    model: str
    processing_time: float
    cached: bool
