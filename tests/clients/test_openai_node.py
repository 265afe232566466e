"""The unmodified npm client `openai`: one script per scenario, whose one line of JSON is looked at here."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stress.running_pool import FAKE, RunningPool, wait_until

from tests.support.picture_files import data_url, picture
from tests.support.pool_fixtures import QWEN_NAME, SIGHT_NAME

NODE = Path(__file__).with_name("node")
SMALL = (*FAKE, "--max-concurrency", "1", "--queue-size", "1", "--queue-timeout", "1")
IMAGE = data_url(picture(colour="red"))
LONG = "fake: slow@0.02 tokens@5000"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts a script against a pool; its packages are installed if they are not there yet."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        assert os.environ.get("CI") != "true", "node and npm are needed for this part of the suite"
        pytest.skip("node and npm are not installed")
    if not all((NODE / "node_modules" / name).exists() for name in ("openai", "ai", "zod")):
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(command, cwd=NODE, check=True, capture_output=True, timeout=300)

    def start(script: str, pool: RunningPool, model: str, image: str = "") -> "subprocess.Popen[str]":
        environment = {**os.environ, "POOL_BASE_URL": pool.base_url, "POOL_MODEL": model, "POOL_IMAGE": image}
        # OpenBLAS is for MLX; preloaded into node it starts threads that node trips over.
        environment.pop("LD_PRELOAD", None)
        process = subprocess.Popen(
            ["node", script], cwd=NODE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    started: list[subprocess.Popen[str]] = []
    yield start
    for process in started:
        process.kill()
        process.communicate()


def outcome(script: "subprocess.Popen[str]") -> Any:
    """What a script reports at its end."""
    output, errors = script.communicate(timeout=60)
    assert script.returncode == 0, errors
    return json.loads(output)


@pytest.mark.mlx
def test_node_client_chats_streams_and_completes(qwen: RunningPool, start: Start) -> None:
    """Whole, streamed and assembled answers agree; choices differ and repeat with a seed; log-probabilities come."""
    seen = outcome(start("chat.mjs", qwen, QWEN_NAME))
    assert seen["whole"]
    assert "".join(seen["pieces"]) == seen["helper"] == seen["whole"]
    assert seen["finish"] == [seen["finish_reason"]] == ["length"]
    assert seen["streamed_usage"]["total_tokens"] == seen["usage"]["total_tokens"]
    assert len(set(seen["three"])) == 3
    assert seen["again"] == seen["three"]
    assert [len(entry["top_logprobs"]) for entry in seen["logprobs"]] == [2] * 4
    assert len(set(seen["text"])) == 2


@pytest.mark.mlx
def test_node_client_raises_with_code_and_param(qwen: RunningPool, start: Start) -> None:
    """Each refusal is the client's own exception for its status; a deterministic one is tried once."""
    seen = outcome(start("errors.mjs", qwen, QWEN_NAME))
    expected = {
        "unknown_model": ("NotFoundError", 404, "model_not_found", "model"),
        "temperature": ("BadRequestError", 400, "invalid_request", "temperature"),
        "unsupported": ("BadRequestError", 400, "unsupported_parameter", "service_tier"),
        "context": ("BadRequestError", 400, "context_length_exceeded", "messages"),
        "streamed": ("BadRequestError", 400, "invalid_request", "temperature"),
    }
    found = {name: tuple(seen[name][key] for key in ("name", "status", "code", "param")) for name in expected}
    assert found == expected
    assert all(seen[name]["requestID"] for name in expected)
    assert seen["attempts"] == 1


@pytest.mark.mlx
def test_node_client_finds_models_and_request_ids(qwen: RunningPool, start: Start) -> None:
    """A model name with `/` is listed and retrieved; request ids are kept where given and made where not."""
    seen = outcome(start("models.mjs", qwen, QWEN_NAME))
    assert seen["listed"] == [QWEN_NAME]
    assert seen["retrieved"]["id"] == QWEN_NAME
    assert seen["missing"]["name"] == "NotFoundError"
    assert seen["given"] == {"header": "node.1", "id": "node.1", "data": "node.1"}
    assert len(seen["made"]) == 36


@pytest.mark.mlx
def test_vercel_client_chats_calls_and_makes_objects(qwen: RunningPool, start: Start) -> None:
    """Vercel's `ai`: text and streams, objects by a zod schema, demanded calls with their arguments parsed."""
    seen = outcome(start("vercel.mjs", qwen, QWEN_NAME))
    assert seen["text"]
    assert seen["finish"] == "length"
    assert seen["streamed"] == seen["text"]
    for made in (seen["object"], seen["parts"]):
        assert set(made) == {"name", "waves", "salty"}
        assert set(made["waves"]) <= {"round", "flat"}
    assert seen["calls"] == seen["streamed_calls"]
    [call] = seen["calls"]
    assert call["name"] == "weather"
    assert call["input"]["city"] in ("Oslo", "Rome")
    assert seen["refused"] == {"status": 400, "param": "response_format.json_schema.schema"}


@pytest.mark.mlx
@pytest.mark.parametrize("sees", [False, True])
def test_node_client_parses_streams_and_runs_tools(request: pytest.FixtureRequest, start: Start, sees: bool) -> None:
    """Its zod helpers, its streams and its runner of tools, with an image and without."""
    pool = request.getfixturevalue("sight" if sees else "qwen")
    model, image = (SIGHT_NAME, IMAGE) if sees else (QWEN_NAME, "")
    seen = outcome(start("objects.mjs", pool, model, image))
    for sea in (seen["parsed"], seen["streamed"]):
        assert set(sea) == {"name", "waves", "salty", "depth"}
        assert set(sea["waves"]) <= {"round", "flat"}
        assert isinstance(sea["salty"], bool)
    assert seen["snapshots"] > 1
    [call] = seen["called"]
    assert call["city"] in ("Oslo", "Rome")
    assert seen["calling"] == seen["called"]
    assert seen["deltas"] > 1
    assert set(seen["cities"]) <= {"Oslo", "Rome"}
    assert seen["cities"]
    assert seen["roles"][:3] == ["user", "assistant", "tool"]


@pytest.mark.mlx
def test_vercel_client_sees(sight: RunningPool, start: Start) -> None:
    """Vercel's `ai` with an image: text, objects and calls, streamed and not."""
    seen = outcome(start("vercel_sees.mjs", sight, SIGHT_NAME, IMAGE))
    assert seen["text"]
    assert seen["streamed"] == seen["text"]
    assert seen["tokens"][0] > seen["tokens"][1]
    for made in (seen["made"], seen["parts"]):
        assert set(made) == {"name", "round"}
    assert seen["partial"] > 1
    assert seen["called"] == seen["calls"]
    assert seen["called"][0]["colour"] in ("red", "blue")


def test_node_client_obeys_retry_headers(start_pool: Callable[..., RunningPool], start: Start) -> None:
    """429 is tried again when the header says, 504 is not tried again."""
    pool = start_pool(SMALL)
    held = [pool.open_chat(LONG, stream=True) for _ in range(2)]
    wait_until(lambda: pool.active() == 2)
    seen = outcome(start("retries.mjs", pool, "fake"))
    assert seen["attempts"] == 1
    assert (seen["error"]["status"], seen["error"]["code"]) == (504, "queue_timeout")
    for connection in held:
        connection.close()
    pool = start_pool((*SMALL[:-1], "60"))
    held = [pool.open_chat(LONG, stream=True) for _ in range(2)]
    wait_until(lambda: pool.active() == 2)
    refused = pool.metric("pool_requests_total")
    waiting = pool.open_chat(LONG)
    wait_until(lambda: pool.waiting() == 1)
    script = start("retries.mjs", pool, "fake")
    wait_until(lambda: pool.metric("pool_requests_total") > refused, what="the script was refused")
    for connection in (*held, waiting):
        connection.close()
    seen = outcome(script)
    assert seen.get("content"), seen
    assert seen["attempts"] >= 2
    assert seen["ms"] >= 900


def test_node_client_raises_when_a_stream_breaks(start_pool: Callable[..., RunningPool], start: Start) -> None:
    """A request that engines die of ends the iteration with an exception that carries the code."""
    pool = start_pool(FAKE)
    seen = outcome(start("broken.mjs", pool, "fake"))
    assert seen["seen"] >= 5
    assert seen["error"] is not None
    assert seen["error"]["code"] == "worker_crashed"
