"""A process of its own that watches a pool from outside, so that an attacker's work does not count as the pool's.

It is told in JSON on its standard input what to watch; every further line there asks for what it has seen since the
last. Times are seconds of the monotonic clock, which all processes of a machine share.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from hostility import machine
from hostility.exchanges import Address, ask, head

PING_S = 0.02
FRESH_S = 0.1
LOOK_S = 0.1
MEMORY_S = 0.25
REQUEST_S = 0.5
LONG_S = 0.1
"""Shorter waits are told as their longest only, not one by one."""
STREAM_TOKENS = 1500


class MonitorLog:
    """What was seen since somebody last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gaps: dict[str, list[tuple[float, float, float]]] = {}
        self._longest: dict[str, tuple[float, float, float]] = {}
        self._rest: dict[str, list[Any]] = {}
        self._open: dict[str, tuple[float, float]] = {}
        self.starved: Callable[[], float] = lambda: 0.0

    def begin(self, name: str) -> None:
        """Note that something is waited for from now on, unless it is already."""
        with self._lock:
            self._open.setdefault(name, (time.monotonic(), self.starved()))

    def end(self, name: str) -> None:
        """Note that the answer has come."""
        with self._lock:
            self._note(name, *self._open.pop(name))

    def forget(self, name: str) -> None:
        """Note that nothing is waited for any more."""
        with self._lock:
            self._open.pop(name, None)

    def add(self, name: str, entry: Any) -> None:
        """Note anything else."""
        with self._lock:
            self._rest.setdefault(name, []).append(entry)

    def take(self) -> dict[str, Any]:
        """Return everything, and forget it. What is still waited for counts as far as it got."""
        with self._lock:
            for name, (since, starved) in self._open.items():
                self._note(name, since, starved)
            gaps = {name: [*rows, self._longest[name]] for name, rows in self._gaps.items()}
            found = {"gaps": gaps, **self._rest}
            self._gaps, self._longest, self._rest = {}, {}, {}
            return found

    def _note(self, name: str, since: float, starved: float) -> None:
        now = time.monotonic()
        row = (since, now, self.starved() - starved)
        rows = self._gaps.setdefault(name, [])
        if now - since > LONG_S:
            rows.append(row)
        longest = self._longest.get(name)
        if longest is None or now - since > longest[1] - longest[0]:
            self._longest[name] = row


class MonitorThreads:
    """The watches of one pool, a thread each."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.log = MonitorLog()
        self._address = Address(port=told["port"], tls=told["tls"])
        self._gateway = told["gateway"]
        self._roots: dict[str, int] = told["roots"]
        self._victim = {"Authorization": f"Bearer {told['victim']}"}
        self._master = {"Authorization": f"Bearer {told['master']}"}
        self._requests: list[dict[str, Any]] = told["requests"]
        self.log.starved = lambda: machine.starved_s(self._gateway)
        threads = [self._ping_kept, self._ping_fresh, self._look_at_memory]
        threads += [self._look_at_workers] if told["roots"].keys() - {"gateway"} else []
        threads += [self._ask] if self._requests else []
        threads += [self._stream] if told["streams"] else []
        for run in threads:
            threading.Thread(target=run, daemon=True).start()

    def _ping_kept(self) -> None:
        """Ping every 20 ms on a connection that stays."""
        while True:
            try:
                self._ping_until_broken()
            except OSError as error:
                self.log.add("lost_pings", [time.monotonic(), repr(error)])
            # What broke was waited for: the wait goes on with the next connection.
            time.sleep(PING_S)

    def _ping_until_broken(self) -> None:
        with self._address.connect(600.0) as connection:
            due = time.monotonic()
            while True:
                self.log.begin("ping")
                connection.sendall(head("GET", "/ping", {}))
                if b" 200 OK" not in connection.recv(65536):
                    raise OSError("not answered with 200")
                self.log.end("ping")
                due = max(due + PING_S, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))

    def _ping_fresh(self) -> None:
        """Ping ten times a second, on a new connection each time."""
        while True:
            self.log.begin("fresh ping")
            answer = ask(self._address, "GET", "/ping", timeout_s=600.0)
            if answer.status == 200:
                self.log.end("fresh ping")
            else:
                self.log.add("lost_pings", [time.monotonic(), answer.fault or str(answer.status)])
            time.sleep(FRESH_S)

    def _look_at_workers(self) -> None:
        """Note what the gateway knows of its workers: how long each has been silent, how often each was restarted."""
        while True:
            answer = ask(self._address, "GET", "/admin/workers", headers=self._master, timeout_s=600.0)
            if answer.status == 200:
                for worker in answer.json()["data"]:
                    row = [time.monotonic(), worker["model"], worker["pid"], worker["silent_s"], worker["restarts"]]
                    self.log.add("workers", row)
            time.sleep(LOOK_S)

    def _look_at_memory(self) -> None:
        while True:
            for name, pid in self._roots.items():
                held = sum(map(machine.memory_bytes, machine.family(pid)))
                self.log.add("memory", [time.monotonic(), name, held])
            time.sleep(MEMORY_S)

    def _ask(self) -> None:
        """Send small requests of somebody who does nothing wrong, one kind after the other."""
        at = 0
        while True:
            wanted = self._requests[at % len(self._requests)]
            at += 1
            began = time.monotonic()
            # Something else each time: what is cached tells nothing of an engine.
            body = json.dumps(wanted["body"]).replace("#", str(at)).encode()
            headers = {**self._victim, "Content-Type": "application/json"}
            self.log.begin(wanted["name"])
            answer = ask(self._address, "POST", wanted["path"], body, headers=headers, timeout_s=300.0)
            self.log.end(wanted["name"])
            fault = "" if answer.status == 200 else f"{answer.status} {answer.fault} {answer.body[:200]!r}"
            self.log.add("requests", [began, time.monotonic(), wanted["name"], fault])
            time.sleep(REQUEST_S)

    def _stream(self) -> None:
        """Read one long answer after the other, as it comes."""
        body = {"model": "chat", "stream": True, "max_tokens": STREAM_TOKENS, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "Tell me a story about a fox."}]
        data = json.dumps(body).encode()
        headers = {**self._victim, "Content-Type": "application/json", "Content-Length": str(len(data))}
        while True:
            fault = "no answer"
            try:
                with self._address.connect(300.0) as connection:
                    connection.sendall(head("POST", "/v1/chat/completions", headers) + data)
                    fault = self._read_stream(connection)
            except OSError as error:
                fault = repr(error)
            self.log.forget("stream")
            self.log.add("streams", [time.monotonic(), fault])
            time.sleep(PING_S)

    def _read_stream(self, connection: Any) -> str:
        """Read to the end; answers what is wrong with it."""
        tail, waiting = b"", False
        while b"data: [DONE]" not in tail:
            chunk = connection.recv(65536)
            if not chunk:
                return f"ended with {tail[-300:]!r}"
            tail = (tail + chunk)[-2000:]
            if b" 200 OK" not in tail and b"data: " not in tail:
                return repr(tail[:300])
            if b"data: " in chunk:
                if waiting:
                    self.log.end("stream")
                self.log.begin("stream")
                waiting = True
        return ""


def watch_idle(log: MonitorLog) -> None:
    """Note, as the control, how much too late an idle process wakes from 20 ms of sleep."""
    while True:
        due = time.monotonic() + PING_S
        time.sleep(PING_S)
        late = time.monotonic()
        if late - due > PING_S:
            log.add("late", [due, late])


def main() -> None:
    """Watch until standard input ends."""
    told = json.loads(sys.stdin.readline())
    if told["what"] == "idle":
        log = MonitorLog()
        threading.Thread(target=watch_idle, args=(log,), daemon=True).start()
    else:
        log = MonitorThreads(told).log
    with contextlib.suppress(BrokenPipeError):
        for _ in sys.stdin:
            print(json.dumps(log.take()), flush=True)


if __name__ == "__main__":
    main()
