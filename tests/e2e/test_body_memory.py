"""Bodies in flight over real HTTP: what the gateway's process takes for them, and that it gives it back."""

import contextlib
import socket
from collections.abc import Callable

import pytest
from stress.running_pool import FAKE, RunningPool, resident_bytes, wait_until

MB = 1024 * 1024
TALKER = "talker"
COUNT = 60
"""Bodies at once; all of them together would take four times what may be taken."""
GROWTH_BYTES = 300 * MB
"""Most that the gateway may grow by."""
LEFT_BYTES = 60 * MB
"""Of that, what may still be there when all are gone: arenas, caches, what the machine's C library keeps."""


@pytest.fixture
def pool(start_pool: Callable[..., RunningPool]) -> RunningPool:
    """A pool of its own, whose gateway has not grown yet."""
    talker, encoder = (*FAKE, "--served-name", TALKER), (*FAKE, "--model-type", "embedding", "--served-name", "encoder")
    pool = start_pool(talker, encoder, healthy=False)
    wait_until(lambda: len(pool.get("/health").json()["models"]) == 2, what="both models are known")
    pool.wait_healthy()
    return pool


def head(path: str, kind: str, size: int) -> bytes:
    """The head of a request."""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode()


def send_unfinished(pool: RunningPool, start: bytes, size: int) -> tuple[list[socket.socket], list[bytes]]:
    """Send `COUNT` requests but for their last byte; the connections, and status lines of refusals."""
    chunk, lines, connections = b" " * (256 * 1024), [], []
    for _ in range(COUNT):
        connection = socket.create_connection(("127.0.0.1", pool.port), timeout=60)
        connections.append(connection)
        with contextlib.suppress(ConnectionError):
            connection.sendall(start)
            for _ in range(size // len(chunk)):
                connection.sendall(chunk)
                connection.settimeout(0)
                with contextlib.suppress(BlockingIOError):
                    lines.append(connection.recv(4096).partition(b"\r\n")[0])
                    break
                connection.settimeout(60)
    return connections, lines


@pytest.mark.parametrize(
    ("path", "kind", "start", "size"),
    [
        ("/v1/embeddings", "application/json", b'{"input": "', 18 * MB),
        (
            "/embed/image",
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n',
            18 * MB,
        ),
    ],
    ids=["JSON", "form"],
)
def test_memory_is_bounded_and_comes_back_when_many_bodies_hang(
    pool: RunningPool, path: str, kind: str, start: bytes, size: int, record: Callable[[str, object], None]
) -> None:
    """Who does not fit gets a 429 while sending; others are served; when all have left, so has their memory."""
    pid, chat = pool.gateway.pid, {"max_tokens": 2, "model": TALKER}
    assert pool.chat(**chat).status == 200
    before = resident_bytes(pid)
    connections, refused = send_unfinished(pool, head(path, kind, size + len(start) + MB) + start, size)
    grown = resident_bytes(pid) - before
    record("growth in MB", grown // MB)
    assert set(refused) == {b"HTTP/1.1 429 Too Many Requests"}
    assert COUNT - len(refused) >= 5
    assert grown < GROWTH_BYTES
    assert pool.metric("pool_body_memory_bytes") >= (COUNT - len(refused)) * size
    assert pool.metric("pool_body_memory_refused_total") == len(refused)
    for connection in connections:
        connection.close()
    wait_until(lambda: pool.metric("pool_body_memory_bytes") == 0, timeout_s=30, what="all bodies are gone")
    wait_until(lambda: resident_bytes(pid) - before < LEFT_BYTES, timeout_s=30, what="their memory is given back")
    assert pool.chat(**chat).status == 200


def test_memory_comes_back_when_large_requests_have_ended(pool: RunningPool) -> None:
    """Whether they were answered, refused by the model or refused by us."""
    text = b"word, [x] {y} " * (10 * MB // 14)
    bodies = (
        ("/v1/embeddings", b'{"input":["%b","\xf0\x9f\x98\x80"]}' % text),
        ("/v1/chat/completions", b'{"max_tokens":1,"messages":[{"role":"user","content":"%b"}]}' % text),
        ("/v1/chat/completions", b'{"messages":[{"role":"%b","content":"a"}]}' % text),
        ("/v1/completions", b'{"prompt":[%b1]}' % (b"12345," * 1_500_000)),
    )
    assert pool.chat(max_tokens=2, model=TALKER).status == 200
    before = resident_bytes(pool.gateway.pid)
    for path, body in bodies * 2:
        status = pool.request("POST", path, body, headers={"Content-Type": "application/json"}).status
        assert status in (200, 400)
    wait_until(lambda: pool.metric("pool_body_memory_bytes") == 0, timeout_s=30, what="nothing is held")
    wait_until(
        lambda: resident_bytes(pool.gateway.pid) - before < LEFT_BYTES, timeout_s=30, what="the memory is given back"
    )
