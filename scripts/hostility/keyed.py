"""Attacks with one ordinary key: bodies, forms, slowness, crowds."""

import itertools
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from hostility import bodies
from hostility.context import AttackContext, in_background, side_by_side
from hostility.exchanges import PIECE, Exchange, ask, head, pieces, send
from hostility.monitor import MB, settled_bytes
from hostility.report import GAP_KEYED_S, GROWTH_KEYED, SETTLE_S, AttackReport
from hostility.routes import Route, read_routes

SIDE_BY_SIDE = 4
ABORT_BYTES = 1200 * MB
"""An attack that has made the gateway grow by so much has shown enough."""


def sweep(context: AttackContext) -> AttackReport:
    """Send every body to every route that takes one, one by one: each is answered, none holds the gateway."""
    pool, report = context.pool, AttackReport()
    routes = [route for route in read_routes(pool.address, pool.keys.master) if route.fields]
    held: dict[str, tuple[float, str]] = {}
    spans: list[tuple[str, str, float, float]] = []
    faults: list[str] = []
    with context.observe_attack() as attack:
        for at, route in enumerate(routes):
            key = pool.keys.unbound if route.of_users else pool.keys.master
            for body in _chosen(route, context.part):
                data = body.make()
                began = time.monotonic()
                answer = _post(context, route, data, key)
                time.sleep(0.03)
                spans.append((route.name, body.name, began, time.monotonic()))
                if not _answered(answer):
                    faults.append(f"{route.name}, {body.name}: {answer.status} {answer.fault} {answer.body[:80]!r}")
            context.say(f"{at + 1} of {len(routes)} routes")
    for name, kind, began, ended in spans:
        gap = attack.seen.longest_s("ping", "fresh ping", since=began, until=ended)
        held[name] = max(held.get(name, (0.0, "")), (gap, kind))
    for name, (gap, kind) in held.items():
        report.add(f"{name}: longest gap of /ping", gap, GAP_KEYED_S, "s", kind)
    report.add("bodies sent", len(spans))
    report.add("bodies answered with 5xx, or not", len(faults), 0, "", "; ".join(faults[:5]))
    attack.add_readings(report, GAP_KEYED_S)
    _add_growth(report, attack.before["gateway"], attack.seen.grown_bytes("gateway", attack.before["gateway"]))
    return report


def _chosen(route: Route, part: float) -> Iterator[bodies.Body]:
    """Yield all bodies of a route, or evenly so many of them."""
    every = list(bodies.generate(route))
    count = max(1, round(part * len(every)))
    yield from (every[at * len(every) // count] for at in range(count))


def _post(context: AttackContext, route: Route, data: bytes, key: str, **headers: str) -> Exchange:
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **headers}
    return ask(context.pool.outside, route.method, route.address, data, headers=given)


def _answered(answer: Exchange) -> bool:
    """Return whether this is a whole answer, or an error of the usual shape that is not the server's fault."""
    return answer.status == 200 or (400 <= answer.status < 500 and answer.refused_well)


BURST = (
    "messages: parts of no type",
    "messages: wide",
    "messages: arguments of calls",
    "input: wide",
    "left: wide",
    "tools: schema",
    "response_format: schema",
)


def burst(context: AttackContext) -> AttackReport:
    """Send one key's most laborious bodies at its limits, ten at once and one a second."""
    pool, report = context.pool, AttackReport()
    routes = [route for route in read_routes(pool.address, pool.keys.master) if route.fields and route.of_users]
    made = [(route, body.make()) for route in routes for body in bodies.some(route, BURST)]
    turn, statuses, key = itertools.cycle(made), Counter[int](), pool.make_attacker()

    def send_until(_: int) -> None:
        while time.monotonic() < deadline:
            route, data = next(turn)
            answer = _post(context, route, data, key)
            statuses[answer.status] += 1
            if answer.status == 429:
                time.sleep(0.5)

    with context.observe_attack(streams=True) as attack:
        deadline = time.monotonic() + context.seconds
        side_by_side(10, send_until)
    attack.add_readings(report, GAP_KEYED_S)
    _add_growth(report, attack.before["gateway"], attack.seen.grown_bytes("gateway", attack.before["gateway"]))
    report.add("bodies sent", sum(statuses.values()), note=str(dict(statuses)))
    return report


def crowd(context: AttackContext) -> AttackReport:
    """Send all but the last byte of 300 bodies of 20 MB: memory is bounded, and given back."""
    report = AttackReport()
    routes = [route for route in read_routes(context.pool.address, context.pool.keys.master) if route.fields]
    routes = [route for route in routes if route.of_users]
    data = b'{"a":"' + b"a" * (bodies.BODY_BYTES - 16)

    def request(at: int) -> tuple[bytes, bytes]:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data) + 2)}
        return _keyed_head(context, routes[at % len(routes)], headers), data

    _hold(context, report, request, count=300)
    return report


def forms(context: AttackContext) -> AttackReport:
    """Send forms of 100 MB to every route that takes one: many parts, huge fields, no end; 40 at once."""
    report = AttackReport()
    routes = [route for route in read_routes(context.pool.address, context.pool.keys.master) if route.file]
    made = [(route, name, form) for route in routes for name, form in hostile_forms(route).items()]
    if not made:
        return report
    worst: tuple[float, str] = (0.0, "")
    faults: list[str] = []
    with context.observe_attack() as attack:
        spans = []
        for route, name, form in made:
            began = time.monotonic()
            kind = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(sum(map(len, form)))}
            data = itertools.chain([_keyed_head(context, route, kind)], *(pieces(part) for part in form))
            answer = send(context.pool.outside, data)
            spans.append((began, time.monotonic(), f"{route.name}, {name}"))
            if not _answered(answer):
                faults.append(f"{route.name}, {name}: {answer.status} {answer.fault} {answer.body[:80]!r}")
            context.say(name)
    for began, ended, name in spans:
        worst = max(worst, (attack.seen.longest_s("ping", "fresh ping", since=began, until=ended), name))
    report.add("longest gap of /ping for one form", worst[0], GAP_KEYED_S, "s", worst[1])
    report.add("forms answered with 5xx, or not", len(faults), 0, "", "; ".join(faults[:4]))
    attack.add_readings(report, GAP_KEYED_S)
    fields = [(route, form) for route, name, form in made if name == "fields of a megabyte"]

    def request(at: int) -> tuple[bytes, bytes]:
        route, form = fields[at % len(fields)]
        kind = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(100 * MB)}
        return _keyed_head(context, route, kind), b"".join(form)[: 64 * MB]

    _hold(context, report, request, count=40)
    return report


def hostile_forms(route: Route) -> dict[str, list[bytes]]:
    """Return forms for a route, each as pieces of bytes."""

    def part(name: str, data: bytes, extra: str = "") -> bytes:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"

    field = next(iter(route.form), "model")
    file, end = '; filename="a.png"', b"--b--\r\n"
    return {
        "fields of a megabyte": [*(part(f"f{at}", b"a" * (MB - 1024)) for at in range(98)), end],
        "one field of 90 MB": [part(field, b"a" * (90 * MB)), end],
        "one field, again and again": [*(part(field, b"a" * (MB - 1024)) for _ in range(98)), end],
        "files": [*(part(route.file, b"\x89PNG\r\n\x1a\n" + b"a" * (6 * MB), file) for _ in range(15)), end],
        "tiny parts": [*(part("a", b"") for _ in range(2000)), end],
        "lines": [b"\r\n" * (10 * MB), end],
        "no boundary": [b"a" * (90 * MB)],
        "headers": [b"--b\r\n" + b"".join(b"X-%d: a\r\n" % at for at in range(100_000)), end],
        "name of megabytes": [part("n" * (4 * MB), b"a"), end],
        "no end": [part(route.file, b"a" * (19 * MB), file)],
    }


def _keyed_head(context: AttackContext, route: Route, headers: dict[str, str]) -> bytes:
    given = {"Authorization": f"Bearer {context.pool.keys.unbound}", **headers}
    return head(route.method, route.address, given)


def _hold(
    context: AttackContext, report: AttackReport, request: Callable[[int], tuple[bytes, bytes]], *, count: int
) -> None:
    """Send `count` requests side by side but for their ends, hold them, let go; judge what was held."""
    with context.observe_attack() as attack:
        held = HeldRequests(context, request, count)
        before = attack.before["gateway"]
        held.push(context.seconds, lambda: attack.watch.memory()["gateway"] - before > ABORT_BYTES)
        context.say(f"{held.sent_bytes / MB:.0f} MB sent")
        held.close()
        after = settled_bytes(attack.watch, "gateway", before + 50 * MB, SETTLE_S)
    attack.add_readings(report, GAP_KEYED_S)
    note = f"{count} bodies, {held.sent_bytes / MB:.0f} MB sent, answers {dict(held.statuses)}"
    _add_growth(report, before, attack.seen.grown_bytes("gateway", before), note)
    report.add("growth that is left after 30 s", (after - before) / MB, 50, "MB")


class HeldRequests:
    """Many requests in flight at once, by one thread; none of them is finished."""

    def __init__(self, context: AttackContext, request: Callable[[int], tuple[bytes, bytes]], count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.sent_bytes = 0
        self._chosen = selectors.DefaultSelector()
        for at in range(count):
            with suppress(OSError):
                connection = context.pool.outside.connect(10.0)
                top, body = request(at)
                connection.sendall(top)
                connection.setblocking(False)
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                self._chosen.register(connection, both, [memoryview(body), 0])

    def push(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Send what is taken, for so long at most."""
        deadline, look = time.monotonic() + seconds, 0.0
        while self._chosen.get_map() and time.monotonic() < deadline:
            for entry, events in self._chosen.select(0.1):
                if events & selectors.EVENT_READ:
                    self._read(entry.fileobj)
                elif events & selectors.EVENT_WRITE:
                    self._write(entry.fileobj, entry.data)
            if time.monotonic() > look:
                look = time.monotonic() + 0.5
                if enough():
                    return

    def close(self) -> None:
        """Let go of all that is left."""
        for entry in list(self._chosen.get_map().values()):
            self._drop(entry.fileobj)
        self._chosen.close()

    def _read(self, connection: socket.socket) -> None:  # type: ignore[override]
        try:
            answer = connection.recv(PIECE)
        except OSError:
            answer = b""
        if answer[9:12] != b"100":
            self.statuses[int(answer[9:12]) if answer[9:12].isdigit() else 0] += 1
            self._drop(connection)

    def _write(self, connection: socket.socket, left: list[object]) -> None:
        view, at = left
        try:
            sent = connection.send(view[at : at + PIECE])  # type: ignore[index,operator]
        except BlockingIOError:
            return
        except OSError:
            self.statuses[0] += 1
            self._drop(connection)
            return
        self.sent_bytes += sent
        left[1] = at + sent  # type: ignore[operator]
        if left[1] >= len(view):  # type: ignore[arg-type,operator]
            self._chosen.modify(connection, selectors.EVENT_READ, left)

    def _drop(self, connection: socket.socket) -> None:
        self._chosen.unregister(connection)
        connection.close()


def slow(context: AttackContext) -> AttackReport:
    """Send bodies byte by byte, stop in the middle, lie about their length, or send a thousand chunks."""
    pool, report = context.pool, AttackReport()
    routes = [route for route in read_routes(pool.address, pool.keys.master) if route.fields and route.of_users]
    faults: list[str] = []
    with context.observe_attack() as attack:
        held = [_open(context, routes[at % len(routes)]) for at in range(100)]
        deadline = time.monotonic() + context.seconds

        def try_routes(at: int) -> None:
            for route in routes[at::SIDE_BY_SIDE]:
                for name, answer in _odd(context, route):
                    if not (_answered(answer) or answer.status in (0, 408, 417)):
                        faults.append(f"{route.name}, {name}: {answer.status} {answer.body[:80]!r}")
                    if time.monotonic() > deadline:
                        return

        join = in_background(lambda: side_by_side(SIDE_BY_SIDE, try_routes))
        while time.monotonic() < deadline:
            for connection in held:
                with suppress(OSError):
                    connection.sendall(b" ")
            time.sleep(1.0)
        join()
        for connection in held:
            connection.close()
    attack.add_readings(report, GAP_KEYED_S)
    _add_growth(report, attack.before["gateway"], attack.seen.grown_bytes("gateway", attack.before["gateway"]))
    report.add("odd requests answered with 5xx", len(faults), 0, "", "; ".join(faults[:5]))
    return report


def _open(context: AttackContext, route: Route) -> socket.socket:
    connection = context.pool.outside.connect()
    connection.sendall(_keyed_head(context, route, {"Content-Type": "application/json", "Content-Length": "20000000"}))
    return connection


def _odd(context: AttackContext, route: Route) -> Iterator[tuple[str, Exchange]]:
    """Send bodies in odd ways. Yields each with its answer."""
    address, kind = context.pool.outside, {"Content-Type": "application/json"}
    chunked = _keyed_head(context, route, {**kind, "Transfer-Encoding": "chunked"})
    tiny = b"1\r\n \r\n" * 200_000
    yield "tiny chunks", send(address, [chunked, *pieces(tiny), b"2\r\n{}\r\n0\r\n\r\n"], timeout_s=5.0)
    yield "chunk of no end", send(address, [chunked, b"FFFFFFFFFFFFFFF\r\n", *pieces(b" " * (25 * MB))], timeout_s=5.0)
    yield "chunk extensions", send(address, [chunked, b"1;" + b"a" * 100_000 + b"\r\n"], timeout_s=2.0)
    declared = _keyed_head(context, route, {**kind, "Content-Length": str(1 << 60)})
    yield "declared length", send(address, [declared], timeout_s=5.0)
    expected = _keyed_head(context, route, {**kind, "Content-Length": str(1 << 40), "Expect": "100-continue"})
    yield "expectation", send(address, [expected], timeout_s=5.0)
    other = _keyed_head(context, route, {**kind, "Content-Length": "2", "Expect": "miracles"})
    yield "other expectation", send(address, [other, b"{}"], timeout_s=5.0)
    one = _keyed_head(context, route, {**kind, "Content-Length": "2"}) + b"{}"
    yield "pipelined", send(address, [one * 500], timeout_s=5.0)
    with suppress(OSError), address.connect() as cut:
        cut.sendall(
            _keyed_head(context, route, {**kind, "Content-Length": str(bodies.BODY_BYTES)}) + b'{"a":' * 100_000
        )


def _add_growth(report: AttackReport, before: int, grown: int, note: str = "") -> None:
    held = f"{before / MB:.0f} MB before"
    report.add("growth of the gateway", grown / MB, GROWTH_KEYED / MB, "MB", f"{held}, {note}" if note else held)
