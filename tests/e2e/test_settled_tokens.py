"""What keys are charged is what was computed for them, to the token, whatever happens to clients and engines.

That is: a prompt, once, however many engines computed it, without what was cached; every step of every choice, whether
its text was written to the client's connection or not. A client that leaves here half-closes and reads what was on its
way: it is charged that at least, and what was computed before its engine heard of it.
"""

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stress.key_commands import MASTER, PRODUCTION, bearer, keys, known, metric, used
from stress.running_pool import FAKE, RunningPool, chat_body, wait_until

TPD = 1_000_000
LONGEST = 2000
"""No answer here is longer than that with its prompt."""
Make = Callable[[random.Random], dict[str, Any]]


@dataclass
class Account:
    """One key, and what its client was served by the client's own count."""

    key: str
    requests: int = 0
    tokens: int = 0
    more: int = 0
    """What may have been computed beyond `tokens` for those that left."""
    kinds: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, tokens: int, *, more: int = 0) -> None:
        """One request more; several clients share a key."""
        with self.lock:
            self.requests += 1
            self.tokens += tokens
            self.more += more
            self.kinds[kind] = self.kinds.get(kind, 0) + 1


class LoadClient(threading.Thread):
    """A client that asks without pause until it is told to stop, and leaves every other time."""

    def __init__(self, pool: RunningPool, account: Account, make: Make, *, seed: object, prompt_tokens: int) -> None:
        super().__init__()
        self._pool, self._account, self._make = pool, account, make
        self._chance = random.Random(f"{seed}")
        self._prompt_tokens = prompt_tokens
        self.enough = threading.Event()
        self.start()

    def run(self) -> None:
        """Ask."""
        while not self.enough.is_set():
            kind = self._chance.choice(("whole", "stream", "leave", "leave"))
            try:
                tokens = self._ask(kind, self._make(self._chance))
                self._account.note(kind, tokens, more=LONGEST - tokens if kind == "leave" else 0)
            except (AssertionError, OSError, KeyError, ValueError) as error:
                self._account.faults.append(f"{kind}: {error!r}")

    def _ask(self, kind: str, body: dict[str, Any]) -> int:
        body |= {"stream": kind in ("stream", "leave"), "stream_options": {"include_usage": True}}
        if not body["stream"]:
            del body["stream_options"]
        with sent(self._pool, self._account, body) as connection:
            if kind != "leave":
                return self._whole(connection, body)
            received = b""
            for _ in range(self._chance.randint(1, 12)):
                received += connection.recv(65536)
            return self._prompt_tokens + _tokens_in(received + _rest(connection))

    def _whole(self, connection: socket.socket, body: dict[str, Any]) -> int:
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        if body["stream"]:
            assert b"data: [DONE]" in received, received[-500:]
            usage = next(frame["usage"] for frame in _frames(received) if frame.get("usage"))
            assert usage["completion_tokens"] == _tokens_in(received)
        else:
            usage = _usage(received)
        assert usage["prompt_tokens"] == self._prompt_tokens
        return int(usage["total_tokens"])


def sent(pool: RunningPool, account: Account, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent."""
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {account.key}\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", pool.port), timeout=60)
    connection.sendall(head.encode() + data)
    return connection


def _usage(received: bytes) -> dict[str, Any]:
    usage: dict[str, Any] = json.loads(received.partition(b"\r\n\r\n")[2])["usage"]
    return usage


def _rest(connection: socket.socket) -> bytes:
    """Say goodbye, and read what was on its way."""
    connection.shutdown(socket.SHUT_WR)
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def _frames(received: bytes) -> list[dict[str, Any]]:
    """The events of a chunked body, the last of which may be cut off by the end of the connection."""
    return [
        json.loads(line[6:])
        for line in received.split(b"\r\n")
        for line in line.split(b"\n\n")
        if line.startswith(b"data: {")
    ]


def _tokens_in(received: bytes) -> int:
    """Log-probabilities are one a token; the fake engine has none, but its tokens are words."""
    count = 0
    for frame in _frames(received):
        for choice in frame["choices"]:
            if choice.get("logprobs"):
                count += len(choice["logprobs"]["content"])
            else:
                count += len((choice["delta"].get("content") or "").split())
    return count


def _run(
    pool: RunningPool,
    make: Make,
    *,
    long: dict[str, Any],
    clients: int,
    kills: int,
    seconds: float,
    prompt_tokens: int,
) -> list[Account]:
    """Load with kills; afterwards every account agrees with the database, and every reservation was given back."""
    accounts = [
        Account(keys(pool, "create", f"client {at}", "--burst", "0", "--rpm", "0", "--tpd", str(TPD)))
        for at in range(3)
    ]
    wait_until(lambda: all(known(pool, account.key) for account in accounts))
    began = time.monotonic()
    load = [LoadClient(pool, accounts[at % 3], make, seed=at, prompt_tokens=prompt_tokens) for at in range(clients)]
    replicas = len(pool.supervisors)
    for kill in range(kills):
        time.sleep(seconds / kills)
        os.kill(pool.engine_pid(kill % replicas), signal.SIGKILL)
        wait_until(lambda: _replicas(pool) < replicas)
        wait_until(lambda: _replicas(pool) == replicas, timeout_s=120)
    time.sleep(seconds / kills)
    for client in load:
        client.enough.set()
    for client in load:
        client.join(60)
        assert not client.is_alive()
    _leave_whole(pool, accounts, long, prompt_tokens)
    # Whoever left is charged once its engine has said what that came to; it is written within a second.
    wait_until(lambda: metric(pool, "pool_worker_running_rows") == 0)
    time.sleep(1.5)
    for account in accounts:
        _check(pool, account, began)
    return accounts


def _leave_whole(pool: RunningPool, accounts: list[Account], body: dict[str, Any], prompt_tokens: int) -> None:
    """Leave whole answers half done: only the engines say when their prompts were accepted."""
    wait_until(lambda: metric(pool, "pool_active_requests") == 0)
    wait_until(lambda: metric(pool, "pool_worker_running_rows") == 0)
    connections = [sent(pool, account, body) for account in accounts for _ in range(3)]
    wait_until(lambda: metric(pool, "pool_worker_running_rows") == len(connections))
    for connection in connections:
        assert _rest(connection) == b""
        connection.close()
    for account in accounts:
        for _ in range(3):
            account.note("leave whole", prompt_tokens, more=LONGEST)


def _check(pool: RunningPool, account: Account, began: float) -> None:
    assert account.faults == []
    wait_until(lambda: used(pool, account.key)[0] >= account.requests)
    with suppress(AssertionError):
        wait_until(lambda: used(pool, account.key)[1] >= account.tokens)
    requests, tokens = used(pool, account.key)
    assert requests == account.requests
    assert account.tokens <= tokens <= account.tokens + account.more
    # A refused request settles nothing, but shows what is left.
    refused = pool.post("/v1/chat/completions", chat_body("x", temperature=9), headers=bearer(account.key))
    left = int(refused.headers["x-ratelimit-remaining-tokens"])
    came_back = (time.monotonic() - began) * TPD / 86_400 + 1
    assert TPD - tokens <= left <= TPD - tokens + came_back


def _replicas(pool: RunningPool) -> int:
    return sum(model["replicas"] for model in pool.get("/health", headers=bearer(MASTER)).json()["models"])


def test_every_account_agrees_with_its_client_when_clients_leave_and_engines_die_under_load(
    start_pool: Callable[..., RunningPool], record: Callable[[str, object], None]
) -> None:
    """Two engines, three kills, twelve clients that leave at any moment: not a token off for those that stayed."""
    pool = start_pool(FAKE, FAKE, environment=PRODUCTION, expected="worker_lost")
    wait_until(lambda: _replicas(pool) == 2)

    def make(chance: random.Random) -> dict[str, Any]:
        return chat_body(f"fake: slow@0.01 tokens@{chance.randint(110, 200)} {chance.random()}")

    prompt = pool.post("/v1/tokenize", make(random.Random(1)), headers=bearer(MASTER)).json()["count"]
    long = chat_body("fake: slow@0.05 tokens@400 0")
    accounts = _run(pool, make, long=long, clients=12, kills=3, seconds=4.5, prompt_tokens=prompt)
    record("requests", sum(account.requests for account in accounts))
    record("tokens", sum(account.tokens for account in accounts))
    record("kinds", [account.kinds for account in accounts])
    assert metric(pool, "pool_jobs_continued_total") > 0
    assert all(sum(account.kinds.get(kind, 0) for account in accounts) for kind in ("whole", "stream", "leave"))


def test_charges_are_what_engines_stepped_when_clients_leave(start_pool: Callable[..., RunningPool]) -> None:
    """Streams, whole answers, several choices, all left half-way: every step that was computed is charged, no other."""
    pool = start_pool(FAKE, environment=PRODUCTION)
    account = Account(keys(pool, "create", "leaves", "--burst", "0", "--rpm", "0", "--tpd", str(TPD)))
    wait_until(lambda: known(pool, account.key))
    before = _steps(pool)
    bodies = [
        chat_body(f"fake: slow@0.02 tokens@300 {number}", n=1 + number % 3, stream=bool(number % 2))
        for number in range(8)
    ]
    connections = [sent(pool, account, body) for body in bodies]
    wait_until(lambda: _steps(pool) - before > 200)
    for connection in connections:
        connection.close()
    wait_until(lambda: metric(pool, "pool_worker_running_rows") == 0)
    prompt = pool.post("/v1/tokenize", {"messages": bodies[0]["messages"]}, headers=bearer(MASTER)).json()["count"]

    def expected() -> int:
        # What rows did in their last moments may reach the counters after the word that they are gone.
        return _steps(pool) - before + prompt * len(bodies)

    with suppress(AssertionError):
        wait_until(lambda: used(pool, account.key)[1] == expected())
    assert used(pool, account.key) == (len(bodies), expected())


def _steps(pool: RunningPool) -> int:
    """Rows that engines have stepped: of the fake one, each tells a token."""
    page = pool.get("/metrics", headers=bearer(MASTER)).body.decode()
    sums = (line for line in page.splitlines() if line.startswith("pool_batch_size_sum") and 'step="decode"' in line)
    return sum(int(float(line.rpartition(" ")[2])) for line in sums)


@pytest.mark.mlx
def test_every_account_agrees_with_its_client_when_a_real_model_dies(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], record: Callable[[str, object], None]
) -> None:
    """The same with a model that goes on where it stopped: what it computes twice is counted once."""
    flags = ("--model-path", str(model_folder("qwen3")), "--served-name", "tiny", "--context-length", "2048")
    flags += ("--prefix-cache-bytes", "0")
    pool = start_pool(flags, environment=PRODUCTION, expected="worker_lost")

    def make(chance: random.Random) -> dict[str, Any]:
        content = f"one two three {chance.randint(100, 999)}"
        return chat_body(content, max_tokens=chance.randint(300, 600), temperature=0, ignore_eos=True, logprobs=True)

    prompts = [{"messages": make(random.Random(at))["messages"]} for at in range(20)]
    sizes = {pool.post("/v1/tokenize", prompt, headers=bearer(MASTER)).json()["count"] for prompt in prompts}
    assert len(sizes) == 1
    long = make(random.Random(0)) | {"max_tokens": 1900}
    accounts = _run(pool, make, long=long, clients=6, kills=1, seconds=4.0, prompt_tokens=sizes.pop())
    record("tokens", sum(account.tokens for account in accounts))
    record("kinds", [account.kinds for account in accounts])
