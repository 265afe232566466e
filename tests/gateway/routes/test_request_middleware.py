"""What happens around every request: ids, times, log lines, and the one shape of errors."""

import asyncio
import gzip
import logging
import re
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest
from yarl import URL

from gateway.config import GatewayConfig
from gateway.telemetry.logs import REQUEST, JsonLines, TextLines, setup_logging

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "sesame"}]}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("given", ["a", "A-z_0.9", "x" * 64])
async def test_request_id_is_kept_when_legal(client: Any, given: str) -> None:
    """An id that can't hurt a log is the request's id."""
    assert (await client.get("/v1/models", headers={"X-Request-ID": given})).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\tb", "é", "a/b", "a,b"])
async def test_request_id_is_replaced_when_illegal(client: Any, given: str | None) -> None:
    """Anything else becomes a fresh UUID."""
    headers = {} if given is None else {"X-Request-ID": given}
    answer = await client.get("/v1/models", headers=headers)
    uuid.UUID(answer.headers["X-Request-ID"])


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/nope", "/broken", "/nothing"])
async def test_process_time_is_told_when_not_streamed(client: Any, path: str) -> None:
    """Good or bad, an answer says how many seconds it took."""
    assert 0 <= float((await client.get(path)).headers["X-Process-Time"]) < 5


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("GET", CHAT, {}, 405, "method_not_allowed"),
        ("POST", "/v1/models", {}, 405, "method_not_allowed"),
        ("GET", "/broken", {}, 500, "internal_error"),
        ("POST", CHAT, {"data": b"{"}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ("POST", CHAT, {"data": b"{", "headers": JSON}, 400, "invalid_request"),
        ("POST", CHAT, {"data": b"", "headers": JSON}, 400, "invalid_request"),
        ("POST", CHAT, {"data": b"x" * 100_001, "headers": JSON}, 413, "body_too_large"),
        ("POST", CHAT, {"data": gzip.compress(b"{}"), "headers": JSON | {"Content-Encoding": "gzip"}}, 415,
         "unsupported_media_type"),
        ("GET", "/v1/models", {"headers": {"Content-Encoding": "deflate"}}, 415, "unsupported_media_type"),
        ("GET", "/v1/models", {"headers": {"Content-Encoding": "identity, gzip"}}, 415, "unsupported_media_type"),
        ("GET", "/v1/models", {"headers": [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]}, 415,
         "unsupported_media_type"),
    ],
)  # fmt: skip
async def test_error_has_the_one_shape_when_http_refuses(
    client: Any, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """aiohttp's refusals and bugs of ours look like every other error, and nothing leaks."""
    answer = await client.request(method, path, **options)
    assert answer.status == status
    body = await answer.json()
    assert set(body) == {"error"}
    assert body["error"]["code"] == code
    assert body["error"]["type"] == ("server_error" if status == 500 else "invalid_request_error")
    assert "secret" not in str(body)
    assert answer.headers["x-should-retry"] == "false"
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/", "/v1//chat//completions"]
)
async def test_right_path_is_named_when_the_base_url_is_wrong(client: Any, path: str) -> None:
    """Without `/v1`, with it twice, with slashes too many."""
    answer = await client.post(URL(path, encoded=True), json={})
    assert answer.status == 404
    assert f"'{CHAT}'" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/models/small", "/v1/models/{id}"),
        ("/v1/v1/models/org/small", "/v1/models/{id}"),
        ("/v1/version", "/version"),
        ("/version/", "/version"),
        ("/v1/tokenizer_info/", "/v1/tokenizer_info"),
    ],
)
async def test_right_path_is_named_when_something_else_was_meant(client: Any, path: str, meant: str) -> None:
    """Whatever is served, under whichever of its names."""
    answer = await client.get(URL(path, encoded=True))
    assert answer.status == 404
    assert f"Did you mean '{meant}'?" in (await answer.json())["error"]["message"]


async def test_right_path_is_named_when_the_base_url_ends_with_a_slash(client: Any) -> None:
    """`http://host/` and `/v1/models`, put together."""
    url = URL(f"{client.make_url('/')}/v1/models", encoded=True)
    assert url.raw_path == "//v1/models"
    async with client.session.get(url) as answer:
        assert answer.status == 404
        assert "Did you mean '/v1/models'?" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/nothing", "/v1/nothing", "/v1/chat", "/v1/chat/completions/x"])
async def test_no_path_is_named_when_none_is_like_it(client: Any, path: str) -> None:
    """A guess would be worse than none."""
    answer = await client.post(path, json={})
    assert (answer.status, "Did you mean" in await answer.text()) == (404, False)


@pytest.mark.parametrize("encoding", ["identity", "Identity ", "", "identity, identity"])
async def test_body_is_read_when_its_encoding_is_none(client: Any, encoding: str) -> None:
    """Some clients name what they have not done."""
    body = {"messages": [{"role": "user", "content": "x"}], "temperature": "warm"}
    answer = await client.post(CHAT, json=body, headers={"Content-Encoding": encoding})
    assert (answer.status, (await answer.json())["error"]["param"]) == (400, "temperature")


async def test_body_is_refused_when_over_the_limit_without_a_length(client: Any) -> None:
    """A chunked body is counted while it is read; at the limit it still is."""

    async def chunks(size: int) -> Any:
        prefix = b'{"prompt":"'
        yield prefix
        yield b"x" * (size - len(prefix) - 2)
        yield b'"}'

    for size, status in ((100_000, 200), (100_001, 413)):
        answer = await client.post("/v1/completions", data=chunks(size), headers=JSON)
        assert answer.status == status, await answer.text()


async def test_charset_is_accepted_when_named(client: Any) -> None:
    """The type counts, not its parameters."""
    answer = await client.post(
        CHAT, data=orjson.dumps(BODY), headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert answer.status == 200


async def test_full_queue_says_so_twice_when_it_refuses(client: Any, pool: Any) -> None:
    """The words and places that clients of this kind of server look for."""

    async def full(play: Any) -> None:
        await play.fail("queue_full", "internal words", retryable=True, retry_after_s=1.5)

    pool.script = full
    answer = await client.post(CHAT, json=BODY)
    body = await answer.json()
    assert answer.status == 429
    assert body["detail"] == body["error"]["message"] == "Too many requests. Service is at capacity."
    assert body["error"]["type"] == "rate_limit_error"
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1500")


async def test_lines_have_the_agreed_form_when_a_request_passes(client: Any, log: Any) -> None:
    """One line: the time, the level, the id, what was generated; and no prompt, answer or query."""
    url = URL(f"{CHAT}?api_key=k3y", encoded=True)
    await client.post(url, json=BODY, headers={"X-Request-ID": "req-123"})
    await log.wait_for("Request completed")
    mine = [line for line in log.lines if "req-123" in line and "| INFO |" in line]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| "
    patterns = [
        stamp + r"Request completed: POST /v1/chat/completions status=200 duration=\d+\.\d{3}s \[request_id=req-123\]"
        r" \[client=127\.0\.0\.1\] \[model=small request_type=text prompt_tokens=\d+ completion_tokens=2 tokens=2"
        r" words=2 chars=11 time=\d\.\d+ tps=\d+\.\d+\]",
    ]
    assert len(mine) == len(patterns)
    for line, pattern in zip(mine, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert not re.search("k3y|sesame|Hello", "\n".join(log.lines))


async def test_failure_is_logged_with_its_id_when_it_is_answered(client: Any, log: Any) -> None:
    """The `error_id` of the answer finds the line, which holds what the answer hides."""
    answer = await (await client.get("/broken")).json()
    line = await log.wait_for(answer["error"]["error_id"])
    assert "Traceback" in line
    assert "/secret/path" in line


async def test_path_cannot_forge_a_line_when_it_holds_controls(client: Any, log: Any) -> None:
    """Encoded line breaks in a path stay encoded in the log."""
    await client.get(URL("/x%0a2025-01-16%20|%20INFO%20|%20forged", encoded=True))
    await log.wait_for("status=404")
    assert not any(line.startswith("2025-01-16") for line in log.lines)
    assert all("\n" not in line for line in log.lines)


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("gateway.x", logging.INFO, __file__, 1, message, (), None)
    made.__dict__ |= extra
    return made


def test_text_line_is_one_line_when_the_message_is_not() -> None:
    """Control characters are shown, not obeyed."""
    assert TextLines().format(record("a\nb\x1b[31m\x9b")).endswith("| INFO | a\\x0ab\\x1b[31m\\x9b")


def test_json_line_has_fields_when_the_record_has_them() -> None:
    """One object: time, level, logger, message, the request's id and the record's own fields."""
    token = REQUEST.set("rid")
    try:
        line = JsonLines().format(record("a\nb", fields={"status": 200}))
    finally:
        REQUEST.reset(token)
    assert "\n" not in line
    parsed = orjson.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed.pop("time"))
    assert parsed == {"level": "INFO", "logger": "gateway.x", "message": "a\nb", "request_id": "rid", "status": 200}


@pytest.mark.parametrize("as_json", [True, False])
def test_file_gets_lines_when_configured(tmp_path: Path, as_json: bool) -> None:
    """Level and file are obeyed, in either form."""
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    before, level, access_level = root.handlers[:], root.level, access.level
    root.handlers = []
    try:
        setup_logging(GatewayConfig(log_level="warning", log_json=as_json, log_file=tmp_path / "log"))
        logging.getLogger("elsewhere.y").info("quiet")
        logging.getLogger("elsewhere.y").warning("loud")
        logging.getLogger("aiohttp.access").error("GET /?api_key=k3y")
        for handler in root.handlers:
            handler.close()
    finally:
        root.handlers = before
        root.setLevel(level)
        access.setLevel(access_level)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert orjson.loads(line)["message"] == "loud" if as_json else line.endswith("| WARNING | loud")


async def test_ids_do_not_mix_when_requests_overlap(client: Any, pool: Any, log: Any) -> None:
    """Concurrent requests log under their own ids."""
    both = asyncio.Barrier(2)

    async def together(play: Any) -> None:
        await play.accept()
        await both.wait()
        await play.say("x", finish="stop")
        await play.done()

    pool.script = together
    await asyncio.gather(*(client.post(CHAT, json=BODY, headers={"X-Request-ID": name}) for name in ("one", "two")))
    for name in ("one", "two"):
        assert len([line for line in log.lines if f"[request_id={name}]" in line]) == 2


async def test_refusal_is_part_of_the_one_line_when_a_caller_made_a_mistake(client: Any, log: Any) -> None:
    """Its code and its id, in the line of the request: no second one."""
    answer = await client.post(CHAT, json={"messages": "no"}, headers={"X-Request-ID": "req-124"})
    error_id = (await answer.json())["error"]["error_id"]
    await log.wait_for("Request completed")
    [line] = [line for line in log.lines if "req-124" in line and "| DEBUG |" not in line]
    assert "status=400 duration=" in line
    assert line.endswith(f"[code=invalid_request error_id={error_id}]")


async def test_broken_stream_is_no_success_in_its_line(client: Any, pool: Any, log: Any) -> None:
    """The headers said 200; the line and the counts say what came of it."""

    async def break_off(play: Any) -> None:
        await play.accept()
        await play.say("Hello")
        await play.fail("worker_lost", "gone", retryable=True)

    pool.script = break_off
    answer = await client.post(CHAT, json=BODY | {"stream": True}, headers={"X-Request-ID": "req-125"})
    assert answer.status == 200
    assert b"worker_lost" in await answer.read()
    await log.wait_for("Request completed")
    [line] = [line for line in log.lines if "req-125" in line and "Request completed" in line]
    assert "status=503" in line
    assert "[code=worker_lost error_id=" in line
    assert "model=small request_type=text_stream" in line
