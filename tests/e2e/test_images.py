"""Images through a whole pool: a gateway, a model that sees, one that does not, sixteen images at once."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial

import pytest
from stress.clients import ParallelClients
from stress.running_pool import RunningPool, resident_bytes, wait_until

from tests.support.picture_files import data_url, padded, picture, showing
from tests.support.pool_fixtures import EYES

RED, BLUE = data_url(picture(colour="red")), data_url(picture(colour="blue"))
IMAGE_TOKENS = 16
Start = Callable[..., RunningPool]
Record = Callable[[str, object], None]


def counts(pool: RunningPool) -> dict[str, int]:
    """Requests by type."""
    found: dict[str, int] = pool.get("/v1/queue/stats").json()["metrics"]["request_types"]
    return found


def test_an_image_is_seen_when_no_model_is_named(seeing: RunningPool) -> None:
    """It goes to the model that sees, as itself: the answer depends on it, and its tokens are counted."""
    red, again, blue = (seeing.post("/v1/chat/completions", showing(url)).json() for url in (RED, RED, BLUE))
    text = seeing.chat("what is this?", max_tokens=8).json()
    said = [answer["choices"][0]["message"]["content"] for answer in (red, again, blue)]
    assert said[0] == said[1] != said[2]
    assert (red["model"], text["model"]) == ("eyes", "words")
    two = seeing.post("/v1/chat/completions", showing(RED, BLUE)).json()
    assert two["usage"]["prompt_tokens"] == red["usage"]["prompt_tokens"] + IMAGE_TOKENS


def test_requests_are_counted_by_what_is_in_them(seeing: RunningPool) -> None:
    """`vision` and `vision_stream` in the statistics, the metrics and the log; text is text on any model."""
    before = counts(seeing)
    seeing.post("/v1/chat/completions", showing(RED), headers={"X-Request-ID": "seen-1"})
    seeing.post("/v1/chat/completions", showing(RED, stream=True))
    seeing.chat("hello", model="eyes", max_tokens=2)
    wait_until(lambda: sum(counts(seeing).values()) == sum(before.values()) + 3)
    after = counts(seeing)
    grown = {kind for kind in after if after[kind] > before[kind]}
    assert grown == {"vision", "vision_stream", "text"}
    stats = seeing.get("/v1/queue/stats").json()["queue_stats"]
    assert (stats["vision_queue"]["running"], stats["chat_queue"]["running"]) == (True, True)
    metrics = seeing.get("/metrics").body.decode()
    assert 'pool_requests_total{model="eyes",outcome="done",type="vision_stream"}' in metrics
    assert "pool_image_held_bytes 0.0" in metrics
    [line] = [text for text in seeing.gateway.text().splitlines() if "Request completed" in text and "seen-1" in text]
    assert "[model=eyes request_type=vision prompt_tokens=" in line
    assert "base64" not in seeing.gateway.text()


def test_tokens_are_counted_with_images_when_tokenizing(seeing: RunningPool) -> None:
    """`/v1/tokenize` sees what a chat would."""
    messages = showing(RED, BLUE)["messages"]
    count = seeing.post("/v1/tokenize", {"messages": messages}).json()["count"]
    usage = seeing.post("/v1/chat/completions", showing(RED, BLUE)).json()["usage"]
    assert count == usage["prompt_tokens"]
    refused = seeing.post("/v1/tokenize", {"messages": messages, "model": "words"})
    assert (refused.status, refused.error["param"]) == (400, "messages[0].content[1].image_url.url")


def test_bounds_hold_when_images_are_many_or_large(seeing: RunningPool) -> None:
    """Sixteen images and a body of almost 20 MB are answered; one more is refused by name."""
    urls = [data_url(picture((at + 1, 5))) for at in range(17)]
    assert seeing.post("/v1/chat/completions", showing(*urls[:16])).status == 200
    refused = seeing.post("/v1/chat/completions", showing(*urls))
    assert (refused.status, refused.error["param"]) == (400, "messages[0].content[17].image_url.url")
    large = data_url(padded(15_700_000))
    assert seeing.post("/v1/chat/completions", showing(large)).status == 200
    assert seeing.post("/v1/chat/completions", showing(large + "A" * 100_000)).status == 413


def test_images_are_answered_when_only_a_vision_model_is_there(start_pool: Start) -> None:
    """It answers text, too; a chat-only pool names the image that it can't take."""
    pool = start_pool(EYES)
    assert pool.chat("hello", max_tokens=2).json()["model"] == "eyes"
    assert pool.post("/v1/completions", {"prompt": "hello", "max_tokens": 2}).json()["model"] == "eyes"
    assert pool.post("/v1/chat/completions", showing(RED)).json()["model"] == "eyes"


def test_images_are_refused_when_no_model_sees(fake: RunningPool) -> None:
    """400 that names the first image; the model is not asked."""
    asked = partial(fake.post, "/v1/chat/completions", showing(RED, BLUE))
    # A gateway that has just started waits to hear from other models.
    wait_until(lambda: asked().status != 503)
    refused = asked()
    assert (refused.status, refused.error["param"]) == (400, "messages[0].content[1].image_url.url")
    assert refused.headers["x-should-retry"] == "false"


def test_nothing_is_fetched_from_this_machine_when_a_url_says_so(seeing: RunningPool) -> None:
    """The gateway as it is configured by default: 400 that names the image; its own address is not contacted."""
    before = seeing.metric("pool_image_fetches_total")
    for host in ("127.0.0.1", "localhost", "[::1]", "2130706433"):
        refused = seeing.post("/v1/chat/completions", showing(RED, f"http://{host}:80/metrics"))
        assert (refused.status, refused.error["param"]) == (400, "messages[0].content[2].image_url.url")
    assert seeing.metric("pool_image_fetches_total") == before + 4
    for url in (f"{seeing.url}/metrics", "file:///etc/passwd", "/etc/passwd"):
        refused = seeing.post("/v1/chat/completions", showing(url))
        assert (refused.status, refused.error["param"]) == (400, "messages[0].content[1].image_url.url")


def test_files_are_refused_when_they_mean_harm(seeing: RunningPool) -> None:
    """Bombs, pages, vector graphics, cut and foreign files: a 400 that names them, and no memory spent."""
    bomb = picture((9000, 9000), mode="1", colour="white", optimize=True)
    assert len(bomb) < 30_000
    png = picture()
    files = {
        "bomb": bomb,
        "gif bomb": b"GIF89a\xff\xff\xff\xff" + picture(form="GIF")[10:],
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<html><img src='http://127.0.0.1/'></html>",
        "cut": png[:20],
        "behind something": b"%PDF-1.7\n" + png,
        "tiff": picture(form="TIFF"),
        "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
        "nothing": b"",
    }
    seeing.post("/v1/chat/completions", showing(RED))
    before = resident_bytes(seeing.gateway.pid)
    for name, data in files.items():
        refused = seeing.post("/v1/chat/completions", showing(RED, data_url(data)))
        assert (refused.status, refused.error["param"]) == (400, "messages[0].content[2].image_url.url"), name
    assert resident_bytes(seeing.gateway.pid) < before + (8 << 20)


def test_urls_are_refused_when_fetching_is_off(start_pool: Start) -> None:
    """Data URLs go on working."""
    pool = start_pool(EYES, gateway=["--remote-images", "off"])
    refused = pool.post("/v1/chat/completions", showing("https://images.example.com/a.png"))
    assert (refused.status, "data: URL" in refused.error["message"]) == (400, True)
    assert pool.post("/v1/chat/completions", showing(RED)).status == 200


@pytest.mark.parametrize("count", [16, pytest.param(40, marks=pytest.mark.long)])
def test_memory_comes_back_when_many_large_images_have_passed(seeing: RunningPool, record: Record, count: int) -> None:
    """Many requests with 4 MB each leave the gateway as large as the first fifth of them did."""
    body = json.dumps(showing(data_url(padded(4_000_000)))).encode()
    json_type = {"Content-Type": "application/json"}

    def send(count: int) -> int:
        for _ in range(count):
            assert seeing.request("POST", "/v1/chat/completions", body, headers=json_type).status == 200
        return resident_bytes(seeing.gateway.pid)

    before, after = send(count), send(4 * count)
    record("resident_mb", [before >> 20, after >> 20])
    assert after < before + (16 << 20)
    assert seeing.metric("pool_image_held_bytes") == 0


def test_images_are_not_lost_when_the_engine_dies_under_them(start_pool: Start) -> None:
    """Jobs without output start again on the next engine, with their images, and answer as if nothing had been."""
    pool = start_pool(EYES)
    bodies = [showing(url, RED, text="fake: prefill@0.3 tokens@9") for url in (RED, BLUE)]
    undisturbed = [client.text() for client in ParallelClients(pool, bodies).join()]
    crowd = ParallelClients(pool, bodies)
    wait_until(lambda: pool.active() == len(bodies), what="they are aboard")
    os.kill(pool.engine_pid(), signal.SIGKILL)
    assert [client.text() for client in crowd.join()] == undisturbed
    wait_until(lambda: pool.metric("pool_image_held_bytes") == 0)
