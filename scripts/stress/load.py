"""Clients that ask without pause, each request judged by its own undisturbed answer."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stress.clients import Client, ask
from stress.running_pool import RunningPool

Make = Callable[[random.Random], tuple[dict[str, Any], str]]
"""Makes a request, and the text that it has to be answered with."""


@dataclass
class LoadResult:
    """What became of all requests."""

    asked: int = 0
    good: int = 0
    faults: list[str] = field(default_factory=list)


class LoadGenerator:
    """So many clients, each a thread with a random sequence of its own."""

    def __init__(self, pool: RunningPool, make: Make, *, clients: int, seed: int) -> None:
        self.load = LoadResult()
        self._pool = pool
        self._make = make
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/{at}"),)) for at in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop_clients(self) -> LoadResult:
        """Ask nothing more, wait for what runs."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        if any(thread.is_alive() for thread in self._threads):
            self.load.faults.append("a client still waits")
        return self.load

    def _run(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            body, text = self._make(chance)
            client = Client(body)
            ask(self._pool, client)
            fault = find_fault(client, text)
            with self._lock:
                self.load.asked += 1
                self.load.good += not fault
                if fault:
                    self.load.faults.append(f"{time.strftime('%H:%M:%S')} {fault}: {body}")


def find_fault(client: Client, text: str) -> str:
    """Return why an outcome is not the undisturbed one; empty if it is."""
    if not client.well_formed:
        return f"not well-formed ({client.broken or client.status})"
    if client.code:
        return f"failed as {client.code}"
    if client.body.get("stream") and not client.streamed.whole:
        return "cut off"
    got = client.text()
    if got == text:
        return ""
    same = next(
        (at for at, (one, other) in enumerate(zip(got, text, strict=False)) if one != other), min(len(got), len(text))
    )
    return f"another text from character {same}: {got[same : same + 40]!r} instead of {text[same : same + 40]!r}"
