"""What the logs say, and what they must never say."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from stress.clients import ParallelClients
from stress.running_pool import FAKE, RunningPool, chat_body, wait_until

NONCE = "zanzibarquokka"
KEY = "sk-verysecretkey"


def test_logs_hold_no_prompt_and_no_key_when_requests_come_and_fail(
    start_pool: Callable[..., RunningPool], tmp_path: Path
) -> None:
    """Whatever is asked, however it fails: no text and no key of a client is in a log, at its most verbose."""
    log = tmp_path / "gateway.log"
    pool = start_pool(
        (*FAKE, "--log-level", "debug"),
        gateway=("--log-level", "debug", "--log-file", str(log)),
        expected="Traceback|RuntimeError|scripted",
    )
    headers = {"Authorization": f"Bearer {KEY}", "X-API-Key": KEY, "X-Request-ID": "trace-17"}
    path = f"/v1/chat/completions?api_key={KEY}"
    for content in (NONCE, f"{NONCE} fake: oom@0", f"{NONCE} fake: raise@2"):
        for stream in (False, True):
            pool.post(path, chat_body(content, stream=stream), headers=headers)
            pool.wait_healthy()
    pool.post(path, chat_body(NONCE, temperature=NONCE), headers=headers)
    pool.post(path, chat_body(NONCE, stop=[NONCE], max_tokens=10**9), headers=headers)
    pool.post(path, {NONCE: NONCE}, headers=headers)
    pool.post(path, f'{{"messages": "{NONCE}'.encode(), headers={**headers, "Content-Type": "application/json"})
    pool.post("/v1/tokenize", {"prompt": NONCE}, headers=headers)
    pool.post("/v1/completions", {"prompt": [NONCE, NONCE], "model": NONCE}, headers=headers)
    gone = pool.open_chat(f"{NONCE} fake: slow@0.05", stream=True)
    wait_until(lambda: pool.active() == 1)
    gone.close()
    wait_until(pool.idle)
    pool.stop()
    written = "".join(program.text() for program in pool.programs) + log.read_text()
    assert "request_id=trace-17" in written
    assert NONCE not in written
    assert KEY not in written


def test_line_names_the_request_when_it_completes(fake: RunningPool) -> None:
    """The line that the logs' readers look for, and one with tokens, words, characters, time and speed."""
    assert (
        fake.post("/v1/chat/completions", chat_body("fake: tokens@7"), headers={"X-Request-ID": "line-1"}).status == 200
    )
    lines = wait_until(lambda: re.findall(r".*\[request_id=line-1\]", fake.gateway.text())[2:] and fake.gateway.text())
    assert re.search(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| Request completed: POST /v1/chat/completions status=200 "
        r"duration=\d+\.\d{3}s \[request_id=line-1\]",
        lines,
    )
    assert re.search(r"tokens=7 words=7 chars=\d+ time=\S+s tps=\S+ \[request_id=line-1\]", lines)


def test_lines_are_json_when_asked_for(start_pool: Callable[..., RunningPool]) -> None:
    """`--log-json true`: each line is one object; request lines carry their id."""
    pool = start_pool(FAKE, gateway=("--log-json", "true"))
    crowd = ParallelClients(pool, [chat_body("fake: tokens@3", stream=stream) for stream in (True, False)])
    crowd.join()
    pool.stop()
    lines = [json.loads(line) for line in pool.gateway.text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    done = [line for line in lines if line["message"].startswith("Request completed: POST")]
    assert len(done) == 2
    assert all(line["request_id"] and line["status"] == 200 for line in done)
