"""Requests as guides to servers of this kind show them: sent as they stand, answered with the fields that are shown."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from stress.key_commands import MASTER, PRODUCTION, bearer
from stress.running_pool import FAKE, ROOT, HttpAnswer, RunningPool, wait_until

from tests.support.picture_files import data_url, picture

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
GEMMA = "mlx-community/gemma-3-4b-it-4bit"
FAST = "fast-inference-model"
ADA = "text-embedding-ada-002"
IMAGE = data_url(picture())
"""Stands where the guides have addresses of the public internet."""


@pytest.fixture(scope="module")
def _guided() -> Iterator[RunningPool]:
    pool = RunningPool(
        (*FAKE, "--served-name", FAST, "--max-concurrency", "2", "--queue-timeout", "300", "--queue-size", "100"),
        (*FAKE, "--served-name", GEMMA, "--model-type", "lm", "--context-length", "8192", "--mlx-warmup", "true"),
        (*FAKE, "--served-name", "eyes", "--model-type", "multimodal"),
        (*FAKE, "--served-name", "vectors", "--model-type", "embeddings"),
    )
    try:
        wait_until(lambda: len(pool.get("/health").json()["models"]) == 4)
        pool.wait_healthy()
        yield pool
    finally:
        pool.stop()
        pool.check_logs()
        pool.remove()


@pytest.fixture
def pool(_guided: RunningPool) -> RunningPool:
    """A chat model of each name that the guides use, one that sees, and one that embeds texts and images."""
    return _guided


@pytest.fixture
def client(pool: RunningPool) -> Iterator[openai.OpenAI]:
    """With any string as its key."""
    with openai.OpenAI(base_url=pool.base_url, api_key="dummy", max_retries=0) as made:
        yield made


def curl(pool: RunningPool, *words: str, where: Path = ROOT) -> str:
    """What curl prints, for the words that stand behind it; addresses begin with a path."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    asked = [f"{pool.url}{word}" if word.startswith("/") else word for word in words]
    done = subprocess.run(["curl", "-sS", *asked], cwd=where, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def answered(answer: HttpAnswer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json()


# -- embeddings with settings of their own ---------------------------------


def test_embedding_settings_come_in_the_body(pool: RunningPool) -> None:
    """All of them at once; the usage has the timings that were asked for."""
    body = {
        "input": ["Your text here"], "model": ADA, "batch_size": 32, "normalize": True, "backend_preference": "mlx",
        "max_tokens_per_text": 512, "return_timing": False,
    }  # fmt: skip
    plain = answered(pool.post(EMBEDDINGS, body))
    assert (plain["object"], plain["data"][0]["object"]) == ("list", "embedding")
    assert set(plain["usage"]) == {"prompt_tokens", "total_tokens"}
    timed = answered(pool.post(EMBEDDINGS, {**body, "input": ["another text"], "return_timing": True}))["usage"]
    shown = {"mlx_processing_time", "total_processing_time", "backend_used", "device_used", "batch_size_used"}
    assert shown <= timed.keys()
    assert timed["backend_used"] == "MLXBackend"


def test_device_is_computed_on_or_named_when_this_machine_lacks_it(pool: RunningPool) -> None:
    """`mps` is the GPU: where there is none, the refusal names the field."""
    body = {"input": ["Your text here"], "model": ADA, "device_preference": "mps"}
    answer = pool.post(EMBEDDINGS, body)
    assert answer.status == 200 or answer.error["param"] == "device_preference"
    assert pool.post(EMBEDDINGS, {**body, "device_preference": "auto"}).status == 200
    assert pool.post(EMBEDDINGS, {**body, "device_preference": "cpu"}).status == 200


def test_embedding_settings_come_in_headers(pool: RunningPool) -> None:
    """As an enterprise's proxy would set them."""
    words = ["-X", "POST", EMBEDDINGS, "-H", "Content-Type: application/json", "-H", "X-MLX-Batch-Size: 64"]
    words += ["-H", "X-MLX-Normalize: true", "-H", "X-MLX-Backend: mlx", "-H", "X-MLX-Device: cpu"]
    said = json.loads(curl(pool, *words, "-d", '{"input": ["Hello MLX"], "model": "text-embedding-ada-002"}'))
    assert len(said["data"]) == 1


@pytest.mark.parametrize(
    ("texts", "extra"),
    [
        (["Hello Apple MLX!"], {}),
        (
            ["Hello Apple MLX!", "Fast embeddings"],
            {"batch_size": 16, "normalize": True, "backend_preference": "mlx", "return_timing": True},
        ),
        (
            [f"text {number}" for number in range(100)],
            {"batch_size": 64, "backend_preference": "mlx", "return_timing": True},
        ),
        (["Single text for fast processing"], {"batch_size": 1, "backend_preference": "mlx", "return_timing": True}),
        (["first line", "second line"], {"batch_size": 32, "normalize": False, "return_timing": True}),
    ],
)  # fmt: skip
def test_embedding_settings_come_by_the_client(client: openai.OpenAI, texts: list[str], extra: dict[str, Any]) -> None:
    """In `extra_body`; the measurements are attributes of the usage."""
    answer = client.embeddings.create(model=ADA, input=texts, extra_body=extra)
    assert len(answer.data) == len(texts)
    assert hasattr(answer.usage, "mlx_processing_time") is bool(extra.get("return_timing"))
    if extra.get("return_timing"):
        assert answer.usage.total_processing_time >= 0
        assert answer.usage.backend_used == "MLXBackend"


# -- queues, texts and images ----------------------------------------------


def test_queue_statistics_have_every_field_that_is_shown(pool: RunningPool) -> None:
    """Totals, a queue for each kind, and what was served."""
    answered(pool.post(CHAT, {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}))
    stats = json.loads(curl(pool, "/v1/queue/stats"))
    queue = {"running", "queue_size", "max_queue_size", "active_requests", "max_concurrency"}
    assert stats["status"] == "ok"
    assert queue <= stats["queue_stats"].keys()
    assert queue == stats["queue_stats"]["vision_queue"].keys()
    assert stats["queue_stats"]["chat_queue"]["running"] is True
    metrics = stats["metrics"]
    assert {
        "total_requests",
        "total_tokens",
        "total_time",
        "request_types",
        "error_count",
        "performance",
    } <= metrics.keys()
    assert {"vision", "vision_stream", "text", "text_stream"} <= metrics["request_types"].keys()
    assert {"avg_tps", "max_tps", "min_tps", "recent_requests"} == metrics["performance"].keys()


def test_full_queue_answers_with_the_words_that_are_shown(start_pool: Callable[..., RunningPool]) -> None:
    """429 and `detail`."""
    full = start_pool((*FAKE, "--max-concurrency", "1", "--queue-size", "1"))
    for number in range(3):
        full.open_chat(f"fake: slow@0.1 tokens@100 {number}", stream=True)
    wait_until(lambda: full.waiting() >= 1)
    answer = wait_until(lambda: (found := full.chat("one more")).status == 429 and found)
    assert answer.json()["detail"] == "Too many requests. Service is at capacity."


def test_text_is_answered_without_a_model(pool: RunningPool) -> None:
    """The smallest body that is shown; the answer has the fields that are shown."""
    asked = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    said = json.loads(curl(pool, CHAT, "-H", "Content-Type: application/json", "-d", asked))
    assert said["object"] == "chat.completion"
    assert said["id"].startswith("chatcmpl-")
    assert isinstance(said["created"], int)
    [choice] = said["choices"]
    assert (choice["index"], choice["message"]["role"]) == (0, "assistant")
    assert choice["finish_reason"] in ("stop", "length")


SEEN = [
    {"type": "text", "text": "What is in this image?"},
    {"type": "image_url", "image_url": {"url": IMAGE}},
]


def test_image_is_answered_by_the_model_that_sees(pool: RunningPool) -> None:
    """Without a model's name, whole and as a stream."""
    asked = {"messages": [{"role": "user", "content": SEEN}]}
    assert answered(pool.post(CHAT, asked))["model"] == "eyes"
    stream = pool.post(CHAT, {"stream": True, **asked})
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert stream.body.endswith(b"data: [DONE]\n\n")


def test_conversation_goes_on_behind_an_image(pool: RunningPool) -> None:
    """A system message, an image, an answer, a question about it."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant that describes images."},
        {"role": "user", "content": SEEN},
        {"role": "assistant", "content": "The image shows a wooden boardwalk..."},
        {"role": "user", "content": "Are there any people in the image?"},
    ]
    assert answered(pool.post(CHAT, {"messages": messages}))["model"] == "eyes"


# -- OpenAI's endpoints ----------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/ping", "/v1/queue/stats", "/docs", "/redoc", "/info"])
def test_address_answers_as_it_is_shown(pool: RunningPool, path: str) -> None:
    """With nothing but the path."""
    assert pool.get(path).status == 200


def test_chat_is_asked_by_curl_with_any_key(pool: RunningPool) -> None:
    """`Authorization: Bearer dummy`, a model, bounds and a temperature; whole and as a stream."""
    head = ["-X", "POST", CHAT, "-H", "Content-Type: application/json", "-H", "Authorization: Bearer dummy"]
    body = {
        "model": FAST, "messages": [{"role": "user", "content": "Hello, how are you?"}], "max_tokens": 50,
        "temperature": 0.7,
    }  # fmt: skip
    assert json.loads(curl(pool, *head, "-d", json.dumps(body)))["model"] == FAST
    small = {"model": FAST, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 10}
    assert json.loads(curl(pool, *head[:5], "-d", json.dumps(small)))["usage"]["completion_tokens"] <= 10
    assert "data: [DONE]" in curl(pool, *head[:5], "-d", json.dumps({**small, "stream": True}))


def test_chat_is_asked_by_the_client(client: openai.OpenAI) -> None:
    """A joke, a capital, a story word by word."""
    joke = [{"role": "user", "content": "Tell me a joke"}]
    answer: Any = client.chat.completions.create(model=FAST, messages=joke, max_tokens=100, temperature=0.8)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    messages: Any = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    answer = client.chat.completions.create(model=FAST, messages=messages, max_tokens=50, temperature=0.7)
    assert answer.choices[0].message.content
    story: Any = [{"role": "user", "content": "Tell me a story"}]
    stream = client.chat.completions.create(model=FAST, messages=story, max_tokens=200, temperature=0.8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_texts_are_continued_by_the_client(client: openai.OpenAI) -> None:
    """Whole and as a stream."""
    text = client.completions.create(model=FAST, prompt="The future of AI is", max_tokens=50, temperature=0.8)
    assert text.choices[0].text
    stream = client.completions.create(
        model=FAST, prompt="Once upon a time", max_tokens=100, temperature=0.9, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream)


def test_one_text_is_embedded_by_the_client(client: openai.OpenAI) -> None:
    """By a model that embeds: one process serves one kind."""
    text = "This is a test sentence for embedding generation."
    assert client.embeddings.create(model="vectors", input=text).data[0].embedding
    with pytest.raises(openai.BadRequestError, match="not for embedding"):
        client.embeddings.create(model=FAST, input=text)


def test_texts_become_tokens_and_back(pool: RunningPool) -> None:
    """`/v1/tokenize` and `/v1/detokenize`."""
    found = answered(pool.post("/v1/tokenize", {"model": FAST, "prompt": "Hello!"}))
    assert found["count"] == len(found["tokens"])
    assert "prompt" in answered(pool.post("/v1/detokenize", {"model": FAST, "tokens": found["tokens"]}))


def test_missing_field_is_an_error_of_the_shown_shape(pool: RunningPool) -> None:
    """`message`, `type`, `param` and `code`."""
    error = pool.post(CHAT, {"model": FAST}).error
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    assert {"message", "code"} <= error.keys()


# -- texts and images as vectors -------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/embed/text", {}),
        ("/embed/text", {"X-API-Key": "your-api-key"}),
        ("/embed/text?api_key=your-api-key", {}),
    ],
)
def test_texts_become_vectors(pool: RunningPool, path: str, headers: dict[str, str]) -> None:
    """With a key in a header, in the query, and without one."""
    for body in ({"texts": ["Hello world"], "normalize": True}, {"texts": ["Sample text", "Another text"]}):
        answer = answered(pool.request("POST", path, body, headers=headers))
        assert {"embeddings", "shape", "model", "processing_time", "cached"} == answer.keys()
        assert answer["shape"][0] == len(body["texts"])  # type: ignore[arg-type]


def test_images_become_vectors(pool: RunningPool, tmp_path: Path) -> None:
    """Forms as curl sends them: a file, and a text with an image."""
    (tmp_path / "image.jpg").write_bytes(picture())
    key = ["-H", "X-API-Key: your-key", "-X", "POST"]
    answer = json.loads(curl(pool, *key, "/embed/image", "-F", "file=@image.jpg", where=tmp_path))
    assert answer["shape"][0] == 1
    words = ["/embed/multimodal", "-F", "text=Describe this image", "-F", "image=@image.jpg"]
    assert json.loads(curl(pool, *key, *words, where=tmp_path))["shape"][0] == 1


def test_embeddings_are_compared(pool: RunningPool) -> None:
    """Texts with texts."""
    answer = answered(pool.post("/similarity", {"left": ["Hello world"], "right": ["Hello", "Goodbye"]}))
    assert len(answer["scores"][0]) == 2


def test_health_says_that_the_model_is_loaded(pool: RunningPool) -> None:
    """What whoever waits for a server looks for."""
    health = pool.get("/health").json()
    assert (health["status"], health["model_loaded"], health["models_healthy"]) == ("ok", True, True)
    assert health["model_status"] == "initialized"
    assert health["warmup_enabled"] is health["warmup_completed"] is True
    assert pool.get("/info").json()["embedding_dim"] > 0


def test_keys_are_made_and_listed_with_the_shown_body(start_pool: Callable[..., RunningPool]) -> None:
    """For 30 days, for texts and images; statistics and configuration beside them."""
    guarded = start_pool((*FAKE, "--model-type", "embedding"), healthy=False, environment=PRODUCTION)
    body = {"name": "client-app", "permissions": ["embed:text", "embed:image"], "expires_in_days": 30}
    made = answered(guarded.request("POST", "/admin/api-keys", body, headers={"X-API-Key": MASTER}))
    assert round((made["expires_at"] - made["created_at"]) / 86_400) == 30
    listed = answered(guarded.get("/admin/api-keys", headers=bearer(MASTER)))["data"]
    assert [entry["name"] for entry in listed] == ["client-app"]
    stats = answered(guarded.get("/admin/stats", headers=bearer(MASTER)))
    assert {"cache", "rate_limiting", "configuration", "performance"} <= stats.keys()
    assert answered(guarded.get("/admin/config", headers=bearer(MASTER)))
    guarded.wait_healthy()
    texts = {"texts": ["Hello world"]}
    assert guarded.post("/embed/text", texts).status == 401
    assert answered(guarded.post("/embed/text", texts, headers={"X-API-Key": made["key"]}))["shape"][0] == 1
    assert answered(guarded.post(f"/embed/text?api_key={made['key']}", texts))["shape"][0] == 1


# -- what a service before the pool asks -----------------------------------


def test_models_are_listed_with_every_shown_field(pool: RunningPool) -> None:
    """And one alone, by an id with a slash."""
    shown = {"id", "object", "created", "owned_by", "description", "context_length", "family", "tags", "tier"}
    listed = answered(pool.get("/v1/models"))
    assert listed["object"] == "list"
    [card] = [card for card in listed["data"] if card["id"] == GEMMA]
    assert shown <= card.keys()
    assert (card["object"], card["owned_by"], card["tier"]) == ("model", "local-mlx", "3A")
    assert "chat" in card["tags"]
    one = json.loads(curl(pool, f"/v1/models/{GEMMA}"))
    assert {name: one[name] for name in shown} == {name: card[name] for name in shown}


def test_request_id_comes_back_and_is_in_the_log(pool: RunningPool) -> None:
    """As curl sends it, which calls any body a form; by the name of a model's last part."""
    body = json.dumps({"model": GEMMA.rpartition("/")[2], "messages": [{"role": "user", "content": "Hello"}]})
    said = curl(pool, "-i", "-H", "X-Request-ID: req-tier2-abc123", CHAT, "-d", body)
    head, _, answer = said.replace("\r", "").partition("\n\n")
    assert "\nX-Request-ID: req-tier2-abc123\n" in f"{head}\n"
    assert "\nX-Process-Time: " in head
    assert json.loads(answer)["model"] == GEMMA
    line = r"| INFO | Request completed: POST /v1/chat/completions status=200 duration="
    wait_until(lambda: "[request_id=req-tier2-abc123]" in pool.gateway.text())
    assert [text for text in pool.gateway.text().splitlines() if line in text and "req-tier2-abc123" in text]


def test_form_is_refused_when_it_holds_no_object(pool: RunningPool) -> None:
    """Only what begins as JSON is taken for it."""
    for body in (b"model=x", b"[1]", b"", b"%7B%22a%22%3A1%7D"):
        answer = pool.request("POST", CHAT, body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type"), body


def test_unloaded_pool_says_so_to_whoever_waits(start_pool: Callable[..., RunningPool]) -> None:
    """503 with the fields that are shown, until a model is there."""
    empty = start_pool(healthy=False)
    answer = empty.get("/health")
    body = answer.json()
    assert answer.status == 503
    assert (body["status"], body["model_id"], body["model_status"]) == ("ok", None, "uninitialized")
    assert (body["models_healthy"], body["warmup_enabled"], body["warmup_completed"]) == (False, None, None)
