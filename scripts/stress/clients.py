"""Many clients at once, each a thread that notes what became of its request and when."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

from stress.running_pool import RunningPool, wait_until
from stress.sse_reader import Streamed, read_stream


@dataclass
class Client:
    """One request and its outcome. `broken`: the connection ended without a well-formed answer."""

    body: dict[str, Any]
    status: int = 0
    payload: bytes = b""
    broken: str = ""
    arrivals: list[float] = field(default_factory=list)
    ended_at: float = 0.0

    @property
    def streamed(self) -> Streamed:
        """The stream that came."""
        return read_stream(self.payload)

    @property
    def code(self) -> str | None:
        """The code of the error that it got, as a status or as a frame."""
        if self.status != 200:
            found: str | None = read_error(self.payload)
            return found
        if self.body.get("stream"):
            error = self.streamed.error
            return None if error is None else error["code"]
        return None

    @property
    def well_formed(self) -> bool:
        """A whole answer, an error with its status, or a stream that ended in one of the two legal ways."""
        if self.broken or not self.status:
            return False
        if self.status != 200:
            return read_error(self.payload) is not None
        return self.streamed.well_formed if self.body.get("stream") else b'"choices"' in self.payload

    def text(self) -> str:
        """Return the text of choice 0."""
        if self.body.get("stream"):
            return self.streamed.text()
        content: str = json.loads(self.payload)["choices"][0]["message"]["content"]
        return content


def read_error(payload: bytes) -> str | None:
    """Return the code in the body of a refusal; None where it is not of our shape."""
    try:
        error = json.loads(payload)["error"]
        assert {"message", "type", "param", "code", "error_id"} <= error.keys()
    except (ValueError, KeyError, TypeError, AssertionError):
        return None
    code: str = error["code"]
    return code


def ask(pool: RunningPool, client: Client) -> None:
    """Send a client's body to `/v1/chat/completions` and note what comes."""
    connection = HTTPConnection("127.0.0.1", pool.port, timeout=60)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(client.body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        client.status = response.status
        while chunk := response.read1(65536):
            client.arrivals.append(time.monotonic())
            client.payload += chunk
    except (OSError, HTTPException) as error:
        client.broken = repr(error)
    finally:
        client.ended_at = time.monotonic()
        connection.close()


class ParallelClients:
    """Sends all bodies to `/v1/chat/completions` at once."""

    def __init__(self, pool: RunningPool, bodies: Sequence[dict[str, Any]]) -> None:
        self.clients = [Client(body) for body in bodies]
        self._threads = [threading.Thread(target=ask, args=(pool, client)) for client in self.clients]
        for thread in self._threads:
            thread.start()

    def wait_for_output(self, clients: Sequence[Client], *, frames: int = 3) -> None:
        """Wait until each of these has a few frames with text."""
        wait_until(lambda: all(client.payload.count(b'"content"') >= frames for client in clients), what="output flows")

    def join(self, timeout_s: float = 30.0) -> list[Client]:
        """Wait for all ends."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a client still waits"
        return self.clients
