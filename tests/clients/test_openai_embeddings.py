"""Embeddings through the unmodified `openai` client and bare HTTP, on all-MiniLM-L6-v2."""

import base64
import json
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from stress.key_traces import CLIENT_KEY
from stress.running_pool import FAKE, ROOT, HttpAnswer, RunningPool, wait_until

from tests.support.pool_fixtures import MINILM_NAME

pytestmark = pytest.mark.mlx

DIMENSIONS = 384
LIMIT = 256
A_CAT = [101, 1037, 4937, 102]


@pytest.fixture
def client(minilm: RunningPool) -> Iterator[OpenAI]:
    """Talks to the embedding model; never retries."""
    with OpenAI(base_url=minilm.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        yield client


def fresh(text: str = "text") -> str:
    """One that no cache knows."""
    return f"{text} {uuid.uuid4().hex[:8]}"


def embed(
    pool: RunningPool, given: Any, *, headers: dict[str, str] | None = None, query: str = "", **fields: Any
) -> HttpAnswer:
    return pool.post(f"/v1/embeddings{query}", {"input": given, **fields}, headers=headers)


def vectors(answer: HttpAnswer) -> Any:
    assert answer.status == 200, answer.body
    return np.array([entry["embedding"] for entry in answer.json()["data"]])


def test_vectors_through_the_client_are_those_of_the_reference(client: OpenAI) -> None:
    """The whole way: SDK, gateway, wire, engine and back, in batches of its making."""
    table = json.loads((ROOT / "tests" / "worker" / "engines" / "minilm_reference.json").read_text())
    texts = table["texts"]
    wanted = np.frombuffer(base64.b64decode(table["vectors"]), "<f4").reshape(len(texts), DIMENSIONS)
    answer = client.embeddings.create(
        model=MINILM_NAME, input=texts, extra_headers={"X-MLX-Max-Tokens-Per-Text": str(LIMIT)}
    )
    assert [entry.index for entry in answer.data] == list(range(len(texts)))
    found = np.array([entry.embedding for entry in answer.data])
    assert (found * wanted).sum(axis=1).min() >= 0.9999


def test_default_and_float_formats_are_the_same_vector(client: OpenAI) -> None:
    """The client asks for base64 by default and unpacks it; both come from one computation or two."""
    text = fresh()
    by_default = client.embeddings.create(model=MINILM_NAME, input=text)
    as_float = client.embeddings.create(model=MINILM_NAME, input=text, encoding_format="float")
    assert by_default.data[0].embedding == as_float.data[0].embedding
    assert len(as_float.data[0].embedding) == DIMENSIONS
    assert (by_default.object, by_default.model, by_default.data[0].object) == ("list", MINILM_NAME, "embedding")
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens == as_float.usage.prompt_tokens > 3


def test_base64_is_little_endian_float32(minilm: RunningPool) -> None:
    """What every client unpacks."""
    text = fresh()
    answer = embed(minilm, text, encoding_format="base64").json()
    numbers = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(answer["data"][0]["embedding"]))
    assert np.allclose(numbers, vectors(embed(minilm, text))[0], atol=1e-7)


@pytest.mark.parametrize("name", ["text-embedding-ada-002", "text-embedding-3-small", "text-embedding-3-large", "bert"])
def test_usual_names_reach_the_model(client: OpenAI, name: str) -> None:
    """Code written for OpenAI runs unchanged; the answer says who answered."""
    assert client.embeddings.create(model=name, input="hello").model == MINILM_NAME


def test_token_ids_are_taken_as_langchain_sends_them(client: OpenAI) -> None:
    """A list of ids, and a list of lists of ids."""
    [text] = client.embeddings.create(model=MINILM_NAME, input="a cat").data
    [flat] = client.embeddings.create(model=MINILM_NAME, input=A_CAT).data
    both = client.embeddings.create(model=MINILM_NAME, input=[A_CAT, [101, 102]])
    assert np.allclose(flat.embedding, text.embedding, atol=1e-6)
    assert np.allclose(both.data[0].embedding, text.embedding, atol=1e-6)
    assert both.usage.prompt_tokens == 6


def test_dimensions_are_cut_to_unit_vectors(minilm: RunningPool) -> None:
    """Matryoshka style."""
    text = fresh()
    whole, [short] = vectors(embed(minilm, text))[0], vectors(embed(minilm, text, dimensions=16))
    assert np.allclose(short, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
    assert vectors(embed(minilm, text, dimensions=DIMENSIONS)).shape == (1, DIMENSIONS)


def test_option_may_come_by_body_header_or_query(minilm: RunningPool) -> None:
    """The body wins over the header, the header over the query."""
    text = " ".join(["word"] * 50)

    def tokens(**given: Any) -> int:
        answer = embed(minilm, fresh(text), **given)
        assert answer.status == 200, answer.body
        count: int = answer.json()["usage"]["prompt_tokens"]
        return count

    query, header = "?max_tokens_per_text=10", {"X-MLX-Max-Tokens-Per-Text": "20"}
    assert tokens(query=query) == 10
    assert tokens(query=query, headers=header) == 20
    assert tokens(query=query, headers=header, max_tokens_per_text=30) == 30
    raw = vectors(embed(minilm, text, headers={"X-MLX-Normalize": "false"}))[0]
    assert not np.isclose(raw @ raw, 1, atol=1e-2)


def test_timing_is_told_when_asked(minilm: RunningPool) -> None:
    """Who computed, how long, in what batches, and how much was known already."""
    texts = [fresh() for _ in range(5)]
    options: dict[str, Any] = {"headers": {"X-MLX-Return-Timing": "true", "X-MLX-Batch-Size": "2"}}
    first = embed(minilm, texts, **options).json()["usage"]
    assert (first["backend_used"], first["device_used"] in ("cpu", "mps")) == ("MLXBackend", True)
    assert (first["batch_size_used"], first["cache_hits"]) == (2, 0)
    assert 0 < first["mlx_processing_time"] <= first["total_processing_time"]
    again = embed(minilm, [*texts, fresh()], **options).json()["usage"]
    assert (again["batch_size_used"], again["cache_hits"]) == (1, 5)
    assert "cache_hits" not in embed(minilm, texts).json()["usage"]


def test_cached_vectors_are_the_same_and_need_no_worker(minilm: RunningPool) -> None:
    """Hits, misses and repetitions in one request; every request counts as one of type `embedding`."""
    one, two = fresh(), fresh()
    before = minilm.get("/v1/queue/stats").json()["metrics"]
    hits = minilm.metric("pool_vector_cache_lookups_total")
    [alone] = vectors(embed(minilm, one))
    mixed = vectors(embed(minilm, [one, two, one, two, two]))
    assert np.array_equal(mixed[0], alone)
    assert np.array_equal(mixed[2], alone)
    assert np.array_equal(mixed[1], mixed[3])
    assert not np.allclose(mixed[0], mixed[1])
    assert np.array_equal(vectors(embed(minilm, [two, one])), mixed[[1, 0]])
    stats = minilm.get("/v1/queue/stats").json()
    assert stats["metrics"]["request_types"]["embedding"] - before["request_types"]["embedding"] == 3
    assert stats["metrics"]["total_tokens"] > before["total_tokens"]
    assert minilm.metric("pool_vector_cache_lookups_total") - hits == 8
    assert stats["queue_stats"]["embedding_queue"]["max_concurrency"] == 32


@pytest.mark.parametrize(
    ("given", "fields", "param", "code"),
    [
        ("", {}, "input", "invalid_request"),
        ([], {}, "input", "invalid_request"),
        (["a", ""], {}, "input[1]", "invalid_request"),
        ([[]], {}, "input[0]", "invalid_request"),
        (["a", 1], {}, "input", "invalid_request"),
        (["a"] * 2049, {}, "input", "invalid_request"),
        ([[101], [30_522]], {}, "input[1]", "invalid_request"),
        ([-1], {}, "input[0]", "invalid_request"),
        ([[1.5]], {}, "input[0][0]", "invalid_request"),
        ({"image": "x"}, {}, "input", "invalid_request"),
        ("word " * 255, {}, "input", "context_length_exceeded"),
        (["a", "word " * 255], {}, "input[1]", "context_length_exceeded"),
        ([101] * 257, {}, "input", "context_length_exceeded"),
        ("a", {"dimensions": 385}, "dimensions", "invalid_request"),
        ("a", {"dimensions": 0}, "dimensions", "invalid_request"),
        ("a", {"encoding_format": "int8"}, "encoding_format", "invalid_request"),
        ("a", {"batch_size": 129}, "batch_size", "invalid_request"),
        ("a", {"batch_size": 0}, "batch_size", "invalid_request"),
        ("a", {"max_tokens_per_text": 8193}, "max_tokens_per_text", "invalid_request"),
        ("a", {"max_tokens_per_text": 0}, "max_tokens_per_text", "invalid_request"),
        ("a", {"prompt_name": "query"}, "prompt_name", "invalid_request"),
        ("a", {"input_type": "poem"}, "input_type", "invalid_request"),
        ("a", {"input_type": "query", "prompt_name": "query"}, "prompt_name", "invalid_request"),
        ("a", {"backend_preference": "torch"}, "backend_preference", "invalid_request"),
        ("a", {"backend_preference": "jax"}, "backend_preference", "invalid_request"),
        ("a", {"model": "no-such-model"}, "model", "model_not_found"),
        ("a", {"temperature": 1}, "temperature", "unsupported_parameter"),
    ],
)  # fmt: skip
def test_bad_request_names_what_is_wrong(
    minilm: RunningPool, given: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    """A 400 (404 for a model) in OpenAI's shape, and nothing was computed."""
    answer = embed(minilm, given, **fields)
    assert answer.status == (404 if code == "model_not_found" else 400), answer.body
    assert (answer.error["param"], answer.error["code"]) == (param, code)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-MLX-Batch-Size", "129"),
        ("X-MLX-Batch-Size", "two"),
        ("X-MLX-Normalize", "perhaps"),
        ("X-MLX-Backend", "jax"),
    ],
)
def test_wrong_header_is_named(minilm: RunningPool, header: str, value: str) -> None:
    """The header itself is the parameter at fault; in a query it is the field."""
    answer = embed(minilm, "a", headers={header: value})
    assert (answer.status, answer.error["param"]) == (400, header)
    answer = embed(minilm, "a", query="?batch_size=129")
    assert (answer.status, answer.error["param"]) == (400, "batch_size")


def test_bounds_are_inclusive(minilm: RunningPool) -> None:
    """At the cap it works: texts, batch size, tokens of a text and of the cut, the longest text."""
    assert len(vectors(embed(minilm, ["same"] * 2048, encoding_format="float"))) == 2048
    assert len(vectors(embed(minilm, "a", batch_size=128, max_tokens_per_text=8192))) == 1
    assert embed(minilm, "word " * 254).json()["usage"]["prompt_tokens"] == LIMIT
    assert embed(minilm, "word " * 400, max_tokens_per_text=8192).json()["usage"]["prompt_tokens"] == LIMIT
    assert embed(minilm, [101] * LIMIT).status == 200


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"truncate": True}, LIMIT),
        ({"truncate": "END"}, LIMIT),
        ({"truncation": True}, LIMIT),
        ({"truncate_prompt_tokens": -1}, LIMIT),
        ({"truncate_prompt_tokens": 20}, 20),
        ({"truncate": True, "max_tokens_per_text": 30, "truncation_direction": "Right"}, 30),
        ({"truncate": False}, None),
        ({"truncate": "NONE"}, None),
        ({}, None),
    ],
)
def test_long_text_is_cut_when_a_client_asks_in_its_own_words(
    minilm: RunningPool, fields: dict[str, Any], count: int | None
) -> None:
    """TEI's, Cohere's, Voyage's and vLLM's names, on both endpoints; `usage` counts what was embedded."""
    long = "word " * 400
    for given in (long, [1037] * 400):
        answer = embed(minilm, given, **fields)
        if count is None:
            assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        else:
            assert answer.json()["usage"]["prompt_tokens"] == count
    native = minilm.post("/embed/text", {"texts": [long], **fields})
    assert native.status == (400 if count is None else 200)
    if count is not None:
        same = vectors(embed(minilm, long, max_tokens_per_text=count, encoding_format="float"))
        assert np.array_equal(np.array(native.json()["embeddings"]), same)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"truncate": "START"}, "truncate", "unsupported_parameter"),
        ({"truncation_direction": "Left"}, "truncation_direction", "unsupported_parameter"),
        ({"truncate": "MIDDLE"}, "truncate", "invalid_request"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_request"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "invalid_request"),
        ({"truncate": True, "truncation": False}, "truncate", "invalid_request"),
        ({"truncate_prompt_tokens": 5, "max_tokens_per_text": 6}, "max_tokens_per_text", "invalid_request"),
    ],
)
def test_cut_is_refused_when_it_is_not_the_one_that_is_made(
    minilm: RunningPool, fields: dict[str, Any], param: str, code: str
) -> None:
    """Texts are cut at their end, and only in one way at a time."""
    answer = embed(minilm, "a", **fields)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)


def test_parameters_are_named_when_they_change_no_vector(minilm: RunningPool) -> None:
    """In the header, whether the answer is short or goes out in pieces."""
    for given in ("a", ["a"] * 600):
        answer = embed(minilm, given, user="u", keep_alive=0, encoding_format="float")
        assert answer.headers["x-ignored-parameters"] == "keep_alive, user"
    assert "x-ignored-parameters" not in embed(minilm, "a").headers


def test_client_that_leaves_frees_the_worker(minilm: RunningPool) -> None:
    """Hundreds of long texts are dropped with the connection that asked for them."""
    wait_until(minilm.idle, what="nothing runs")
    connection = minilm.open("/v1/embeddings", {"input": [fresh("long words " * 100) for _ in range(600)]})
    wait_until(lambda: minilm.active() == 1, what="the job is at the worker")
    connection.close()
    wait_until(minilm.idle, what="the job is gone")
    wait_until(lambda: minilm.metric("pool_worker_waiting_rows") == 0, what="no text waits")


def test_single_texts_are_answered_beside_a_large_request(minilm: RunningPool) -> None:
    """While 2,048 texts are computed, others get theirs; at the end the large one is whole."""
    large: list[HttpAnswer] = []
    texts = [fresh() for _ in range(2048)]
    thread = threading.Thread(target=lambda: large.append(embed(minilm, texts, encoding_format="base64")))
    thread.start()
    try:
        wait_until(lambda: minilm.active() == 1, what="the large request is at the worker")
        for _ in range(5):
            assert len(vectors(embed(minilm, fresh()))) == 1
        assert not large
    finally:
        thread.join()
    assert len(large[0].json()["data"]) == 2048


def test_cache_can_be_switched_off(start_pool: Callable[..., RunningPool]) -> None:
    """Then nothing is counted and nothing is kept."""
    pool = start_pool((*FAKE, "--model-type", "embedding"), environment={"EMBEDDING_CACHE_ENABLED": "false"})
    answers = [embed(pool, "a", return_timing=True).json() for _ in range(2)]
    assert [answer["usage"]["cache_hits"] for answer in answers] == [0, 0]
    assert answers[0]["data"] == answers[1]["data"]
    assert pool.metric("pool_vector_cache_entries") == -1


def test_chat_model_embeds_nothing(fake: RunningPool) -> None:
    """Asked for by name it says so; a pool without an embedding model says that."""
    # A gateway that has just started does not yet know that no such model will come.
    wait_until(lambda: embed(fake, "a").status != 503, what="the pool has settled")
    for fields in ({"model": "fake"}, {}, {"model": "text-embedding-ada-002"}):
        answer = embed(fake, "a", **fields)
        assert answer.status in (400, 404)
        assert answer.error["param"] == "model"
