"""Attacks by strangers, who have no key."""

import itertools
import os
import secrets
import signal
import socket
import time
import zlib
from collections import Counter
from contextlib import ExitStack, suppress
from types import MappingProxyType

from hostility import bodies, machine
from hostility.context import AttackContext, side_by_side
from hostility.exchanges import Address, ask, head, pieces, send
from hostility.monitor import MB
from hostility.pool import OUTSIDE, AttackedPool
from hostility.report import GAP_KEYLESS_S, GROWTH_KEYLESS, AttackReport
from hostility.routes import read_routes
from hostility.traces import key_traces

SIDE_BY_SIDE = 8
UNPACKED = 4096 * MB
"""Packed, four of them."""


def pack(encoding: str, size: int = UNPACKED) -> bytes:
    """Return a body that unpacks to so many bytes of zeros; of an encoding that Python does not know, to none.

    A piece that ends in a full flush may be repeated: the sum at the end is wrong then, which shows when all is done.
    """
    if encoding not in ("gzip", "deflate"):
        return b"\x00" * 4096
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    top = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return top + piece * (size >> 20) + packer.flush()


def flood(context: AttackContext) -> AttackReport:
    """Send the largest and worst bodies to every route, without a key, from eight connections at once."""
    pool, report = context.pool, AttackReport()
    routes = [route for route in read_routes(pool.address, pool.keys.master) if not route.open]
    made = [body.make() for body in itertools.islice(bodies.whole(bodies.BODY_BYTES), 3)]
    statuses: Counter[int] = Counter()

    def send_until(at: int) -> None:
        turn = itertools.cycle([(route, body) for route in routes[at:] + routes[:at] for body in made])
        while time.monotonic() < deadline:
            route, body = next(turn)
            headers = {"Content-Type": "application/json"}
            answer = ask(pool.outside, route.method, route.address, body, headers=headers, timeout_s=30.0)
            statuses[answer.status] += 1

    with context.observe_attack() as attack:
        deadline = time.monotonic() + context.seconds
        side_by_side(SIDE_BY_SIDE, send_until)
    attack.add_readings(report, GAP_KEYLESS_S)
    _add_growth(report, attack.before["gateway"], attack.seen.grown_bytes("gateway", attack.before["gateway"]))
    report.add("refusals", sum(statuses.values()), note=str(dict(statuses)))
    return report


def packed(context: AttackContext) -> AttackReport:
    """Send bodies with a Content-Encoding to every route, with and without a key: nobody unpacks them."""
    pool, report = context.pool, AttackReport()
    made = {encoding: pack(encoding) for encoding in ("gzip", "deflate", "br", "zstd")}
    keys = (None, pool.keys.unbound)
    asked = [*itertools.product(read_routes(pool.address, pool.keys.master), made, keys)]
    asked = asked[:: max(1, round(1 / context.part))]
    faults: list[str] = []
    counted = itertools.count()

    def send_until(_: int) -> None:
        while time.monotonic() < deadline and (at := next(counted)) < len(asked):
            route, encoding, key = asked[at]
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
            request = head(route.method, route.address, {**headers, "Content-Length": str(len(made[encoding]))})
            # What was refused is still sent to its end: somebody may read it.
            answer = send(pool.outside, [request, *pieces(made[encoding])], stay_s=1.0)
            if not (400 <= answer.status < 500 and answer.refused_well):
                faults.append(f"{route.name}, {encoding}: {answer.status} {answer.fault}")
            context.say(f"{at + 1} of {len(asked)}")

    with context.observe_attack() as attack:
        deadline = time.monotonic() + context.seconds
        side_by_side(SIDE_BY_SIDE, send_until)
    attack.add_readings(report, GAP_KEYLESS_S)
    _add_growth(report, attack.before["gateway"], attack.seen.grown_bytes("gateway", attack.before["gateway"]))
    report.add("packed bodies not refused with 4xx", len(faults), 0, "", "; ".join(faults[:4]))
    return report


def plain_connections(context: AttackContext) -> AttackReport:
    """Open more connections than there are descriptors, which say nothing, or half of a head."""
    return _connections(context, "plain")


def tls_connections(context: AttackContext) -> AttackReport:
    """Open more connections than there are descriptors, which finish no TLS handshake or speak no TLS."""
    return _connections(context, "TLS")


def _connections(context: AttackContext, name: str) -> AttackReport:
    report = AttackReport()
    with AttackedPool(("chat",), tls=name == "TLS", most_descriptors=DESCRIPTORS) as pool:
        _crowd(AttackContext(pool=pool, seconds=context.seconds, say=context.say), SILENT[name], report)
    return report


DESCRIPTORS = 256
SILENT: MappingProxyType[str, tuple[bytes, ...]] = MappingProxyType(
    {
        "plain": (b"", b"GET /ping HTTP/1.1\r\nHost:"),
        "TLS": (b"", bytes.fromhex("160301020001"), b"\x16"),
    }
)
"""Beginnings after which nothing comes."""
OTHERWISE = (
    b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"\x00" * 64,
    bytes.fromhex("16030102000100") + b"a" * 600,
)
"""What is said to a port in a language that is not spoken there."""


def _crowd(context: AttackContext, openings: tuple[bytes, ...], report: AttackReport) -> None:
    pool, port = context.pool, context.pool.address.port
    engine = pool.engine_pids()["chat"]
    with context.observe_attack(requests=False) as attack, ExitStack() as stack:
        for at in range(DESCRIPTORS + 64):
            # No TLS on our side: no handshake is ever finished.
            with suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5, (OUTSIDE, 0)))
                connection.sendall(openings[at % len(openings)])
        time.sleep(0.5)
        held = machine.descriptors(pool.gateway.pid)
        report.add(f"descriptors taken, of {DESCRIPTORS}", held, DESCRIPTORS - 32)
        os.kill(engine, signal.SIGKILL)
        report.add("time until a killed engine is back", _wait_for_engine(context), 20.0, "s")
        report.add("time until strangers are heard", _wait_for_answer(context), 31.0, "s")
    report.add("longest gap of /ping, kept connection", attack.seen.longest_s("ping"), GAP_KEYLESS_S, "s")
    growth = attack.seen.grown_bytes("gateway", attack.before["gateway"])
    report.add("growth of the gateway", growth / MB, GROWTH_KEYLESS / MB, "MB")
    for opening in OTHERWISE:
        send(Address(port=port), [opening], timeout_s=3.0)
    report.add("not served after other languages", float(_wait_for_answer(context) > 5), 0)


def _wait_for_engine(context: AttackContext) -> float:
    """Return how long the gateway took to hear that the model is up again; its log has what it says."""
    began, before = time.monotonic(), context.pool.log("gateway").count(" connected (pid ")
    while (
        context.pool.log("gateway").count(" connected (pid ") == before
        and time.monotonic() - began < 2 * context.seconds
    ):
        time.sleep(0.1)
    return time.monotonic() - began


def _wait_for_answer(context: AttackContext) -> float:
    """Return how long it took until somebody new was answered."""
    began = time.monotonic()
    while ask(context.pool.outside, "GET", "/ping", timeout_s=5.0).status != 200:
        if time.monotonic() - began > 2 * context.seconds:
            break
        time.sleep(0.2)
    return time.monotonic() - began


def malformed_requests(key: str) -> dict[str, bytes]:
    """Return what no parser of HTTP takes, with a key somewhere in it."""
    end, bare = b"\r\n\r\n", key.encode()
    host = b"Host: 127.0.0.1\r\n"
    bearer = b"Authorization: Bearer " + bare
    return {
        "header without a colon": b"GET /v1/models HTTP/1.1\r\n" + host + b"Authorization Bearer " + bare + end,
        "header with a control character": b"GET /v1/models HTTP/1.1\r\n" + host + bearer + b"\x01" + end,
        "header with a zero": b"GET /v1/models HTTP/1.1\r\n" + host + bearer + b"\x00" + end,
        "name of a header": b"GET /v1/models HTTP/1.1\r\n" + host + bare + b"\xff: 1" + end,
        "name of a header with blanks": b"GET /v1/models HTTP/1.1\r\n" + host + b"X " + bare + b" : 1" + end,
        "folded header": b"GET /v1/models HTTP/1.1\r\n" + host + b"Authorization: Bearer\r\n " + bare + end,
        "bare line feeds": b"GET /v1/models HTTP/1.1\nHost: a\n" + bearer + b"\n\x01\n\n",
        "long header": b"GET /v1/models HTTP/1.1\r\n" + host + bearer + b"a" * 70_000 + end,
        "version": b"GET /v1/models?api_key=" + bare + b" HTTP/9.9\r\n" + host + end[2:],
        "request line": b"GET /v1/models " + bare + b" HTTP/1.1\r\n" + host + end[2:],
        "no request line": bearer + end,
        "method": bare + b" /v1/models HTTP/1.1\r\n" + host + end[2:],
        "path": b"GET /v1/" + bare + b" HTTP/1.1\r\n" + host + end[2:],
        "path and query": b"GET /v1/" + bare + b"?api_key=" + bare + b" HTTP/1.1\r\n" + host + end[2:],
        "path of a route": b"GET /v1/models/" + bare + b" HTTP/1.1\r\n" + host + bearer + end,
        "path of an operator's route": b"GET /admin/api-keys/" + bare + b" HTTP/1.1\r\n" + host + bearer + end,
        "absolute address": b"GET http://user:" + bare + b"@127.0.0.1/v1/models HTTP/1.1\r\n" + host + end[2:],
        "broken address": b"GET http://[" + bare + b"/ HTTP/1.1\r\n" + host + end[2:],
        "host": b"GET /v1/models HTTP/1.1\r\nHost: " + bare + b"\xff" + end,
        "length": b"POST /v1/tokenize HTTP/1.1\r\n" + host + b"Content-Length: " + bare + end,
        "two lengths": b"POST /v1/tokenize HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n"
        + host
        + bearer
        + end,
        "encoding": b"POST /v1/tokenize HTTP/1.1\r\n" + host + b"Transfer-Encoding: " + bare + end,
        "chunk": b"POST /v1/tokenize HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n" + bare + end,
        "upgrade": b"GET /v1/models HTTP/1.1\r\n" + host + b"Connection: upgrade\r\nUpgrade: " + bare + b"\x02" + end,
        "expectation": b"POST /v1/tokenize HTTP/1.1\r\n" + host + b"Content-Length: 2\r\nExpect: " + bare + end,
        "request id": b"GET /v1/models HTTP/1.1\r\n" + host + b"X-Request-ID: " + bare + end,
        "digits in the query": b"GET /admin/events?limit=" + b"9" * 5000 + b" HTTP/1.1\r\n" + host + bearer + end,
        "line separators": b"GET /%0A%E2%80%A8" + bare + b" HTTP/1.1\r\n" + host + end[2:],
    }


MOST_GUESSES = 20
"""Within five seconds, where each costs twice the time of the one before."""
MOST_LINES = 3
"""Of the log, for each request: begun, refused, ended."""


def malformed(context: AttackContext) -> AttackReport:
    """Send what no parser takes, keys in every place: an error of the usual shape, few lines, no key in any."""
    pool, report = context.pool, AttackReport()
    badly: list[str] = []
    chatty: list[str] = []
    with context.observe_attack(requests=False) as attack:
        both = [malformed_requests(key) for key in (pool.make_attacker(), pool.keys.master)]
        for name, data in [entry for requests in both for entry in requests.items()]:
            before = len(pool.log("gateway"))
            answer = send(pool.outside, [data], timeout_s=10.0)
            if not answer.refused_well:
                badly.append(f"{name}: {answer.status} {answer.body[:60]!r} {answer.fault}")
            time.sleep(0.05)
            written = pool.log("gateway")[before:].splitlines()
            # Watches ask meanwhile; all they ask for is quiet but this.
            lines = sum("/admin/workers" not in line and "loop was held" not in line for line in written)
            if lines > MOST_LINES:
                chatty.append(f"{name}: {lines}")
            context.say(name)
    report.add_gaps(attack.seen, GAP_KEYLESS_S)
    report.add("refusals without the shape of errors", len(badly), 0, "", "; ".join(badly[:6]))
    report.add(f"requests with more than {MOST_LINES} lines in the log", len(chatty), 0, "", "; ".join(chatty[:6]))
    found = key_traces(pool)
    report.add("places that hold a key", len(found), 0, "", "; ".join(found[:5]))
    return report


def guessing(context: AttackContext) -> AttackReport:
    """Guess at the operator's key: each is in the log with its address, and they are slowed down."""
    pool, report = context.pool, AttackReport()
    before = len(pool.log("gateway"))
    answers, until = Counter[int](), time.monotonic() + min(context.seconds, 5.0)
    with context.observe_attack() as attack:
        while time.monotonic() < until:
            guess = {"Authorization": f"Bearer master-{secrets.token_urlsafe(32)}"}
            answers[ask(pool.outside, "GET", "/admin/stats", headers=guess).status] += 1
    attack.add_readings(report, GAP_KEYLESS_S)
    report.add("guesses that were looked at", answers[401], MOST_GUESSES, "", str(dict(answers)))
    lines = [line for line in pool.log("gateway")[before:].splitlines() if OUTSIDE in line]
    report.add("no line of the log names the address", float(not lines), 0)
    return report


def _add_growth(report: AttackReport, before: int, grown: int) -> None:
    note = f"{before / MB:.0f} MB before"
    report.add("growth of the gateway", grown / MB, GROWTH_KEYLESS / MB, "MB", note)
