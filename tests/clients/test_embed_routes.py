"""`/embed/text`, `/similarity`, `/info` and what else embedding models answer, over bare HTTP, on all-MiniLM-L6-v2."""

import math
import uuid
from typing import Any

import numpy as np
import pytest
from stress.running_pool import RunningPool

from tests.support.pool_fixtures import MINILM_NAME

pytestmark = pytest.mark.mlx

DIMENSIONS = 384
CAT, KITTEN, STOCKS = "A cat sits on the mat.", "A kitten is lying on a rug.", "Stock markets fell sharply today."


def fresh(text: str = "text") -> str:
    """One that no cache knows."""
    return f"{text} {uuid.uuid4().hex[:8]}"


def embed_text(pool: RunningPool, *texts: str, **fields: Any) -> Any:
    answer = pool.post("/embed/text", {"texts": [*texts], **fields})
    assert answer.status == 200, answer.body
    return answer.json()


def similarity(pool: RunningPool, **fields: Any) -> Any:
    answer = pool.post("/similarity", fields)
    assert answer.status == 200, answer.body
    return answer.json()


# -- /embed/text -------------------------------------------------------------


def test_texts_become_plain_vectors(minilm: RunningPool) -> None:
    """The vectors of `/v1/embeddings`, as a list of lists, and what they are."""
    texts = [fresh(), fresh()]
    answer = embed_text(minilm, *texts, normalize=True)
    assert answer.keys() == {"embeddings", "shape", "model", "processing_time", "cached"}
    assert (answer["shape"], answer["model"], answer["cached"]) == ([2, DIMENSIONS], MINILM_NAME, False)
    assert np.array(answer["embeddings"]).shape == (2, DIMENSIONS)
    assert answer["processing_time"] > 0
    openai = minilm.post("/v1/embeddings", {"input": texts}).json()
    assert [entry["embedding"] for entry in openai["data"]] == answer["embeddings"]
    again = embed_text(minilm, *texts)
    assert (again["cached"], again["embeddings"]) == (True, answer["embeddings"])
    assert embed_text(minilm, texts[0], fresh())["cached"] is False


def test_options_of_embeddings_hold_for_plain_texts(minilm: RunningPool) -> None:
    """By body, header and query, as there."""
    text = fresh("word " * 40)
    raw = minilm.post("/embed/text", {"texts": [text]}, headers={"X-MLX-Normalize": "false"}).json()["embeddings"][0]
    assert not math.isclose(math.hypot(*raw), 1, abs_tol=1e-2)
    cut = minilm.post("/embed/text?max_tokens_per_text=5", {"texts": [text], "dimensions": 8}).json()
    assert cut["shape"] == [1, 8]
    assert math.isclose(math.hypot(*cut["embeddings"][0]), 1, abs_tol=1e-5)
    assert cut["embeddings"] == embed_text(minilm, text, dimensions=8, max_tokens_per_text=5)["embeddings"]
    assert cut["embeddings"] != embed_text(minilm, text, dimensions=8)["embeddings"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "texts", "invalid_request"),
        ({"texts": []}, "texts", "invalid_request"),
        ({"texts": "a"}, "texts", "invalid_request"),
        ({"texts": [""]}, "texts[0]", "invalid_request"),
        ({"texts": ["a", 5]}, "texts[1]", "invalid_request"),
        ({"texts": ["a"] * 2049}, "texts", "invalid_request"),
        ({"texts": ["a", "word " * 300]}, "texts[1]", "context_length_exceeded"),
        ({"texts": ["a"], "dimensions": 385}, "dimensions", "invalid_request"),
        ({"texts": ["a"], "model": "none"}, "model", "model_not_found"),
        ({"texts": ["a"], "input": "a"}, "input", "unsupported_parameter"),
        ({"texts": ["a"], "encoding_format": "float"}, "encoding_format", "unsupported_parameter"),
        ({"texts": ["a"], "backend_preference": "torch"}, "backend_preference", "invalid_request"),
    ],
)
def test_bad_texts_are_named(minilm: RunningPool, body: Any, param: str, code: str) -> None:
    """The field of this endpoint, whatever the worker calls it."""
    answer = minilm.post("/embed/text", body)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (
        404 if code == "model_not_found" else 400, param, code,
    )  # fmt: skip


def test_input_at_fault_is_counted_as_the_request_counts(minilm: RunningPool) -> None:
    """Though the worker sees only those inputs that no cache knows, and each once."""
    known = fresh()
    embed_text(minilm, known)
    answer = minilm.post("/v1/embeddings", {"input": [known, known, fresh(), "word " * 300]})
    assert (answer.status, answer.error["param"]) == (400, "input[3]")
    assert "'input[3]'" in answer.error["message"]


# -- /similarity ---------------------------------------------------------------


def test_texts_are_compared_by_meaning(minilm: RunningPool) -> None:
    """A row for each on the left; the same by the vectors themselves."""
    answer = similarity(minilm, left=[CAT], right=[KITTEN, STOCKS, CAT])
    assert (answer["shape"], answer["metric"], answer["model"]) == ([1, 3], "cosine", MINILM_NAME)
    kitten, stocks, cat = answer["scores"][0]
    assert cat > 0.999 > kitten > 0.4 > 0.2 > stocks
    left, right = (embed_text(minilm, *texts)["embeddings"] for texts in ([CAT], [KITTEN, STOCKS, CAT]))
    by_vectors = similarity(minilm, left=left, right=right)
    assert np.allclose(by_vectors["scores"], answer["scores"], atol=1e-6)
    assert "model" not in by_vectors
    assert "pairs" not in by_vectors
    mixed = similarity(minilm, left=[CAT], right=right, metric="dot")
    assert np.allclose(mixed["scores"], answer["scores"], atol=1e-6)
    assert mixed["cached"] is True


def test_best_pairs_of_one_list_come_first(minilm: RunningPool) -> None:
    """`top_k` of one list against itself: each pair once, the closest first; a distance is best when small."""
    texts = [STOCKS, CAT, KITTEN]
    for metric in ("cosine", "dot", "euclidean"):
        answer = similarity(minilm, left=texts, metric=metric, top_k=2)
        assert "scores" not in answer
        first, second = answer["pairs"]
        assert (first["left"], first["right"]) == (1, 2)
        assert (first["score"] > second["score"]) is (metric != "euclidean")
    assert len(similarity(minilm, left=texts, top_k=2048)["pairs"]) == 3


def test_scores_of_vectors_need_no_embedding(minilm: RunningPool) -> None:
    """Numbers in, numbers out; nothing is looked up in the cache or counted as embedded."""
    before = minilm.metric("pool_vector_cache_lookups_total")
    answer = similarity(minilm, left=[[0, 3], [4, 0]], right=[[4, 0], [0, -1], [0, 0]], metric="euclidean")
    assert np.allclose(answer["scores"], [[5, 4, 3], [0, math.sqrt(17), 4]])
    assert similarity(minilm, left=[[0, 3], [4, 0]], right=[[4, 0]], metric="dot")["scores"] == [[0], [16]]
    assert similarity(minilm, left=[[1, 1], [1, 0]])["scores"][1][1] == 1
    assert minilm.metric("pool_vector_cache_lookups_total") == before


def test_bounds_of_similarity_are_inclusive(minilm: RunningPool) -> None:
    """512 × 512 scores, 2,048 × 2,048 vectors for their best pairs; one more is refused."""
    row = [[0.5, at / 7] for at in range(2048)]
    whole = similarity(minilm, left=row[:512], right=row[:512])
    assert whole["shape"] == [512, 512]
    assert len(whole["scores"]) == 512
    assert {len(scores) for scores in whole["scores"]} == {512}
    assert np.allclose(np.diag(whole["scores"]), 1)
    assert minilm.post("/similarity", {"left": row[:513], "right": row[:512]}).error["param"] == "top_k"
    best = similarity(minilm, left=row, right=row, top_k=2048)
    assert len(best["pairs"]) == 2048
    assert best["shape"] == [2048, 2048]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "left"),
        ({"left": []}, "left"),
        ({"left": "a"}, "left"),
        ({"left": ["a", ""]}, "left[1]"),
        ({"left": [[]]}, "left[0]"),
        ({"left": ["a", [1]]}, "left"),
        ({"left": [[1, 2], [1]]}, "left"),
        ({"left": [[1, 2]], "right": [[1]]}, "right"),
        ({"left": ["a"], "right": []}, "right"),
        ({"left": ["a"], "right": [[1, 2]]}, "right"),
        ({"left": [[1, "a"]]}, "left[0][1]"),
        ({"left": [[1e16]]}, "left[0][0]"),
        ({"left": [[1]] * 2049, "top_k": 1}, "left"),
        ({"left": ["a"], "top_k": 0}, "top_k"),
        ({"left": ["a"], "top_k": 2049}, "top_k"),
        ({"left": ["a"], "metric": "hamming"}, "metric"),
        ({"left": [[1]], "normalize": True}, "normalize"),
        ({"left": [[1]], "backend_preference": "mlx"}, "backend_preference"),
        ({"left": [[0] * 1030] * 2048, "top_k": 1}, "left"),
        ({"left": [[0] * 1030] * 2048, "right": [[0] * 1030] * 2048, "top_k": 1}, None),
        ({"left": ["a"], "right": ["b", "word " * 300]}, "right[1]"),
        ({"left": ["a"], "dimensions": 385}, "dimensions"),
        ({"left": ["a"], "threshold": 1}, "threshold"),
    ],
)  # fmt: skip
def test_bad_comparison_is_named(minilm: RunningPool, body: Any, param: str) -> None:
    """400, with the field at fault."""
    answer = minilm.post("/similarity", body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


# -- /info, /v1/models, /v1/tokenize ---------------------------------------------


def test_info_tells_what_is_served(minilm: RunningPool) -> None:
    """Model, dimensions, quantisation, memory, load time; cache and throughput as they were used."""
    text = fresh()
    before = minilm.get("/info").json()
    embed_text(minilm, text)
    embed_text(minilm, text)
    after = minilm.get("/info").json()
    assert (after["model"], after["kind"], after["state"], after["replicas"]) == (MINILM_NAME, "embedding", "ready", 1)
    assert (after["embedding_dim"], after["context_length"], after["quantization"]) == (DIMENSIONS, 256, "none")
    assert (after["backend"], after["device"] in ("cpu", "gpu")) == ("mlx", True)
    assert after["load_time"] > 0
    assert after["memory"]["weights"] > 22_000_000
    assert after["memory"]["resident"] > after["memory"]["weights"]
    cache, cache_before = after["cache"], before["cache"]
    assert (cache["hits"] - cache_before["hits"], cache["misses"] - cache_before["misses"]) == (1, 1)
    assert 0 < cache["hit_rate"] < 1
    assert 0 < cache["used_bytes"] < cache["capacity_bytes"]
    assert cache["ttl_s"] == 3600
    assert after["throughput"]["inputs"] - before["throughput"]["inputs"] == 2
    assert after["throughput"]["tokens_per_second"] > 0
    assert minilm.metric("pool_embedded_inputs_total") == after["throughput"]["inputs"]


def test_info_of_one_model_may_be_asked_for(minilm: RunningPool, fake: RunningPool) -> None:
    """By any of its names; a chat model has none of an embedding model's figures; a pool without any tells of that."""
    assert minilm.get("/info?model=text-embedding-ada-002").json()["model"] == MINILM_NAME
    chat = fake.get("/info?model=fake").json()
    assert (chat["kind"], chat["throughput"]["inputs"]) == ("chat", 0)
    assert fake.get("/info").json()["model"] == "fake"
    unknown = fake.get("/info?model=none")
    assert (unknown.status in (404, 503), unknown.error["param"]) == (True, "model")


@pytest.mark.parametrize("name", ["text-embedding-ada-002", "text-embedding-3-small", "text-embedding-3-large", "bert"])
def test_every_name_of_a_model_is_described(minilm: RunningPool, name: str) -> None:
    """`GET /v1/models/{id}` finds what a request would."""
    answer = minilm.get(f"/v1/models/{name}")
    assert (answer.status, answer.json()["id"]) == (200, MINILM_NAME)


def test_embedding_model_shows_its_tokens(minilm: RunningPool) -> None:
    """As many as embedding the text costs; and back."""
    counted = minilm.post("/v1/tokenize", {"prompt": "A cat!", "model": MINILM_NAME}).json()
    assert counted == {"tokens": [101, 1037, 4937, 999, 102], "count": 5, "max_model_len": 256}
    assert minilm.post("/v1/tokenize", {"prompt": "A cat!"}).json() == counted
    bare = minilm.post("/v1/tokenize", {"prompt": "A cat!", "add_special_tokens": False}).json()
    assert bare["tokens"] == [1037, 4937, 999]
    usage = minilm.post("/v1/embeddings", {"input": "A cat!"}).json()["usage"]
    assert usage["prompt_tokens"] == counted["count"]
    text = minilm.post("/v1/detokenize", {"tokens": counted["tokens"]}).json()["prompt"]
    assert text.replace(" ", "").casefold() == "[cls]acat![sep]"
    for body, param in (({"tokens": [30_522]}, "tokens"), ({"tokens": [-1]}, "tokens[0]")):
        refused = minilm.post("/v1/detokenize", body)
        assert (refused.status, refused.error["param"]) == (400, param)
    refused = minilm.post("/v1/tokenize", {"messages": [{"role": "user", "content": "a"}]})
    assert (refused.status, refused.error["param"]) == (400, "messages")
