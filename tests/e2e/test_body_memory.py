"""Bodies in flight over real HTTP: what the gateway's process takes for them, and that it gives it back."""

import contextlib
import select
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
WITHHELD_BYTES = MB // 16
"""Of a form's last field, what is not counted until its end has come."""
SEND_S = 60.0
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


def send_until_refused(connection: socket.socket, data: bytes) -> None:
    """Send `data`, but for the rest once an answer comes.

    A gateway that has refused a body takes the rest of it when it has time: whoever only sends waits for that.
    """
    left = memoryview(data)
    connection.setblocking(False)
    while left:
        readable, _, _ = select.select([connection], [connection], [], SEND_S)
        if readable:
            return
        with contextlib.suppress(BlockingIOError):
            left = left[connection.send(left) :]


def send_unfinished(pool: RunningPool, start: bytes, size: int) -> tuple[list[socket.socket], list[bytes]]:
    """Send `COUNT` requests but for their last byte; the connections, and status lines of refusals."""
    data, lines, connections = start + b" " * size, [], []
    for count in range(1, COUNT + 1):
        connection = socket.create_connection(("127.0.0.1", pool.port), timeout=SEND_S)
        connections.append(connection)
        with contextlib.suppress(ConnectionError):
            send_until_refused(connection, data)
        wait_until(lambda count=count: read_bodies(pool, size) >= count, what="the gateway holds it or refused it")
        if pool.metric("pool_body_memory_refused_total") > len(lines):
            connection.settimeout(SEND_S)
            lines.append(connection.recv(4096).partition(b"\r\n")[0])
    return connections, lines


def read_bodies(pool: RunningPool, size: int) -> float:
    """How many bodies of `size` are held or were refused."""
    return round(pool.metric("pool_body_memory_bytes") / size) + pool.metric("pool_body_memory_refused_total")


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
    held = (COUNT - len(refused)) * (size - WITHHELD_BYTES)
    wait_until(lambda: pool.metric("pool_body_memory_bytes") >= held, what="all that was not refused is held")
    assert pool.metric("pool_body_memory_refused_total") == len(refused)
    for connection in connections:
        connection.close()
    wait_until(lambda: pool.metric("pool_body_memory_bytes") == 0, what="all bodies are gone")
    wait_until(lambda: resident_bytes(pid) - before < LEFT_BYTES, what="their memory is given back")
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
    wait_until(lambda: pool.metric("pool_body_memory_bytes") == 0, what="nothing is held")
    wait_until(lambda: resident_bytes(pool.gateway.pid) - before < LEFT_BYTES, what="the memory is given back")
