"""What the logs say, and what they must never say."""

import json
import os
import re
import signal
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
    """The line that the logs' readers look for, with tokens, words, characters, time and speed at its end."""
    assert (
        fake.post("/v1/chat/completions", chat_body("fake: tokens@7"), headers={"X-Request-ID": "line-1"}).status == 200
    )
    lines = wait_until(lambda: re.findall(r".*\[request_id=line-1\].*", fake.gateway.text()) and fake.gateway.text())
    assert re.search(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| Request completed: POST /v1/chat/completions status=200 "
        r"duration=\d+\.\d{3}s \[request_id=line-1\]",
        lines,
    )
    assert re.search(
        r"\[request_id=line-1\].* prompt_tokens=2 completion_tokens=7 tokens=7 words=7 chars=\d+ time=\S+ tps=\S+\]",
        lines,
    )


def test_lines_are_json_when_asked_for(start_pool: Callable[..., RunningPool]) -> None:
    """`POOL_LOG_JSON`: each line of each program is one object; a request has one line."""
    pool = start_pool(FAKE, environment={"POOL_LOG_JSON": "true"}, expected="scripted")
    crowd = ParallelClients(pool, [chat_body("fake: tokens@3", stream=stream) for stream in (True, False)])
    crowd.join()
    assert pool.chat("fake: abort@0").status >= 500
    pool.wait_healthy()
    pool.stop()
    for program in pool.programs:
        lines = [json.loads(line) for line in program.text().splitlines()]
        assert lines
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines), program.name
    lines = [json.loads(line) for line in pool.gateway.text().splitlines()]
    mine = [line for line in lines if line.get("path") == "/v1/chat/completions" and line["status"] == 200]
    assert len(mine) == 2
    for line in mine:
        assert line["message"].startswith("Request completed: POST /v1/chat/completions status=200")
        assert (line["method"], line["completion_tokens"], line["model"]) == ("POST", 3, "fake")
        assert line["request_id"]
        assert line["prompt_tokens"] > 0
    workers = [json.loads(line) for line in pool.supervisors[0].text().splitlines()]
    assert {line["model"] for line in workers} == {"fake"}
    [death] = [line["message"] for line in workers if "died of SIGABRT" in line["message"]][:1]
    assert '"message"' not in death


def test_ordinary_stop_writes_no_warning(start_pool: Callable[..., RunningPool]) -> None:
    """SIGINT to all, as Ctrl-C does under honcho: who left is said at INFO, and nothing above it."""
    pool = start_pool(FAKE, (*FAKE, "--served-name", "other"))
    assert pool.chat("fake: tokens@2", model="fake").status == 200
    for program in pool.programs:
        program.signal(signal.SIGINT)
    pool.stop()
    written = "\n".join(program.text() for program in pool.programs)
    assert not re.findall(r".*\| (?:WARNING|ERROR|CRITICAL) \|.*", written)


def test_stop_of_one_worker_is_told_at_info(start_pool: Callable[..., RunningPool]) -> None:
    """The gateway says that it left; nothing is lost."""
    pool = start_pool(FAKE, (*FAKE, "--served-name", "other"))
    wait_until(lambda: len(pool.get("/health").json()["models"]) == 2 and pool.healthy())
    pool.supervisors[1].stop()
    wait_until(lambda: "supervisor of other left" in pool.gateway.text())
    assert re.search(r"\| INFO \| worker \w+ of other left, 0 jobs in flight", pool.gateway.text())
    assert "| WARNING |" not in pool.gateway.text()


def test_death_and_continued_streams_are_events(start_pool: Callable[..., RunningPool]) -> None:
    """`/admin/events` has the reason of an engine's death, and how many streams went on where."""
    pool = start_pool(FAKE)
    crowd = ParallelClients(pool, [chat_body("fake: slow@0.02 tokens@100", stream=True)])
    wait_until(lambda: pool.active() == 1 and pool.metric("pool_time_to_first_token_seconds_count") == 1)
    os.kill(pool.engine_pid(), signal.SIGKILL)
    [client] = crowd.join()
    assert client.well_formed
    messages = [event["message"] for event in pool.get("/admin/events").json()["data"]]
    assert any(re.fullmatch(r"1 stream continued on worker \w+ of fake", message) for message in messages), messages
    deaths = [message for message in messages if re.match(r"engine \w+ of fake ended: ", message)]
    assert len(deaths) == 1
    assert "likely out of memory (signal 9)" in deaths[0]
