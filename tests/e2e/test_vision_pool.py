"""A real vision model behind the gateway: a crowd of questions with and without images, one of them broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stress.clients import ParallelClients
from stress.running_pool import RunningPool

from tests.support.picture_files import data_url, showing
from tests.support.vision_runs import noise

pytestmark = pytest.mark.mlx

FILES = [noise(seed, 60 + 8 * seed, 120) for seed in range(8)]


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, Any]]:
    """Sixteen requests, every other one with images, each with its own sampling."""
    found = []
    for number in range(16):
        urls = [data_url(FILES[(number + at) % 8]) for at in range(number % 2 * (1 + number % 3))]
        sampling = {"temperature": number % 4 * 0.4, "seed": number, "max_tokens": 8 + number, "stream": True}
        found.append(showing(*urls, text=f"What is this, number {number}?", **sampling))
    return found


def test_crowd_with_one_broken_image(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], bodies: list[dict[str, Any]]
) -> None:
    """Fifteen say what they say alone; the sixteenth is told which of its images is damaged."""
    model = str(model_folder("qwen2-vl"))
    pool = start_pool(("--model-type", "vision", "--model-path", model, "--prefix-cache-bytes", "0"))
    alone = [ParallelClients(pool, [body]).join()[0].text() for body in bodies]
    # Its head is whole, so that the gateway lets it pass.
    broken = showing(data_url(FILES[0]), data_url(FILES[1][:-40]), text="And this?", stream=True)
    *others, refused = ParallelClients(pool, [*bodies, broken]).join()
    assert [client.text() for client in others] == alone
    assert len(set(alone)) == len(alone)
    answer = pool.post("/v1/chat/completions", {**broken, "stream": False})
    assert (answer.status, answer.error["param"]) == (400, "messages[0].content[2].image_url.url")
    assert "damaged" in answer.error["message"]
    assert refused.code == "invalid_request"
    assert pool.metric("pool_image_held_bytes") == 0


def test_second_turn_costs_no_look(start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path]) -> None:
    """`cached_tokens` covers the image, and the worker's counter of looks stays where it was."""
    model = str(model_folder("qwen3-vl"))
    pool = start_pool(("--model-type", "vision", "--model-path", model))
    question = showing(data_url(FILES[0]), text="What is this? " + "Look closely. " * 10, temperature=0)
    first = pool.post("/v1/chat/completions", question).json()
    said = first["choices"][0]["message"]
    turns = [*question["messages"], {"role": "assistant", "content": said["content"]}]
    body = {**question, "messages": [*turns, {"role": "user", "content": "Why?"}]}
    second = pool.post("/v1/chat/completions", body).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 8
