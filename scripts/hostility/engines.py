"""Attacks with one ordinary key that aim at the engines: texts, pictures, grammars, work that nobody waits for."""

import base64
import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import Any

from hostility import machine
from hostility.context import AttackContext, AttackRecord, in_background, side_by_side
from hostility.exchanges import Exchange, head
from hostility.monitor import MB, median
from hostility.pictures import hostile_images, odd_images, ordinary_image
from hostility.report import GAP_KEYED_S, GROWTH_ENGINE, AttackReport

LONG = 20 * MB - 8192
MIDDLE = 2 * MB
Request = tuple[str, str, dict[str, Any]]
"""A name, a path, a body."""


def long_texts() -> list[Request]:
    """Return texts that take long to tokenise, to disarm, or to cut, for every route that takes text."""
    chance = random.Random(1)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=MIDDLE))
    texts = {
        "words": "the cat sat on the mat. " * (MIDDLE // 24),
        "one word": letters,
        "one letter": "a" * MIDDLE,
        "blanks": " \n\t" * (MIDDLE // 3),
        "digits": "0123456789" * (MIDDLE // 10),
        "beginnings of control tokens": "<|im_star" * (MIDDLE // 9),
        "control tokens": "<|im_start|>" * (MIDDLE // 12),
        "not ASCII": "é字🙂" * (MIDDLE // 9),
        "combining": "e\u0301" * (MIDDLE // 3),
        "20 MB of words": "the cat sat on the mat. " * (LONG // 24),
        "20 MB of one letter": "a" * LONG,
        "20 MB of blanks": " " * LONG,
    }  # fmt: skip
    return [request for name, text in texts.items() for request in _of_text(name, text)]


def _of_text(name: str, text: str) -> list[Request]:
    embedding = {"model": "embedding"}
    return [
        (f"embeddings: {name}", "/v1/embeddings", {"input": text, **embedding}),
        (f"embeddings, cut: {name}", "/v1/embeddings", {"input": text, "max_tokens_per_text": 8, **embedding}),
        (f"tokenize, embedding: {name}", "/v1/tokenize", {"prompt": text, **embedding}),
        (f"tokenize: {name}", "/v1/tokenize", {"prompt": text, "model": "chat"}),
        (f"chat: {name}", "/v1/chat/completions", _saying(text)),
        (f"vision: {name}", "/v1/chat/completions", {**_saying(text), "model": "vision"}),
        (f"completion: {name}", "/v1/completions", {"prompt": text, "max_tokens": 1, "model": "chat"}),
        (f"similarity: {name}", "/similarity", {"left": [text], "right": ["a cat"], "max_tokens_per_text": 8}),
    ]


def _saying(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "model": "chat"}


def many_texts() -> list[Request]:
    """Return the most that one request may ask of an embedding model, and of a tokenizer."""
    words = [f"{at} cats sat on the mat and looked at {at + 1} dogs" for at in range(2048)]
    chance = random.Random(2)
    vectors = [[round(chance.random(), 3) for _ in range(1024)] for _ in range(1024)]
    cut = {"input": ["a b c " * 1500] * 2048, "max_tokens_per_text": 1}
    prompts = {"prompt": ["a b c " * 300] * 128, "max_tokens": 1, "model": "chat"}
    return [
        ("similarity: 2,048 by 2,048 texts", "/similarity", {"left": words, "right": words[::-1], "top_k": 2048}),
        ("similarity: 512 by 512 scores", "/similarity", {"left": words[:512], "right": words[512:1024]}),
        ("similarity: vectors", "/similarity", {"left": vectors, "right": vectors, "top_k": 2048}),
        ("embeddings: 2,048 texts", "/v1/embeddings", {"input": words, "model": "embedding"}),
        ("embeddings: 2,048 long texts, cut", "/v1/embeddings", cut),
        ("detokenize: 2 million", "/v1/detokenize", {"tokens": [5] * 2_000_000, "model": "chat"}),
        ("completions: 128 prompts", "/v1/completions", prompts),
    ]


def texts(context: AttackContext) -> AttackReport:
    """Send texts of 2 and 20 MB to every route that takes text, one by one: no engine is held, none dies."""
    return _one_by_one(context, long_texts())


def largest(context: AttackContext) -> AttackReport:
    """Send the most that one request may ask of engines, one by one: others' requests go on."""
    return _one_by_one(context, many_texts())


def _one_by_one(context: AttackContext, requests: list[Request]) -> AttackReport:
    report, before = AttackReport(), _warm_up(context)
    with context.observe_attack() as attack:
        spans = _send_each(context, _some(requests, context.part))
    _judge_each(report, attack, spans)
    _judge_engines(context, report, attack, before)
    return report


def _warm_up(context: AttackContext) -> dict[str, int]:
    """Ask what takes most memory of all that is ordinary, so that growth is growth beyond it; answers engines' pids."""
    if not context.pool.warmed:
        context.pool.warmed = True
        long = " ".join(f"cat {at}" for at in range(80))
        _ask(context, "/v1/embeddings", {"model": "embedding", "input": [f"{at} {long}" for at in range(64)]})
        for model in ("chat", "vision"):
            _ask(
                context,
                "/v1/chat/completions",
                {**_saying("the cat sat. " * 300), "model": model, "n": 8, "max_tokens": 64},
            )
        _ask(context, "/v1/chat/completions", _showing(ordinary_image()))
    return context.pool.engine_pids()


def tokenizing(context: AttackContext) -> AttackReport:
    """Send texts of 2 MB at one key's limits: others' embeddings, tokens and streams go on."""
    report, requests = AttackReport(), [one for one in long_texts() if "one word" in one[0] or "control" in one[0]]
    before = _warm_up(context)
    with context.observe_attack(streams=True) as attack:
        statuses = _flood(context, requests)
    _judge_engines(context, report, attack, before)
    latency = max(attack.seen.latencies_s("embedding /v1/embeddings"), default=0.0)
    report.add("longest wait of another's embedding", latency, 2.0, "s")
    report.add("requests sent", sum(statuses.values()), note=str(dict(statuses)))
    return report


def pictures(context: AttackContext) -> AttackReport:
    """Send image bombs of every kind: each is refused within a second of processor time, text goes on."""
    report = AttackReport()
    bombs = {**hostile_images(), **odd_images()}
    names = _some(list(bombs), context.part)
    usual: list[float] = []
    spent: dict[str, float] = {}
    waits: dict[str, float] = {}
    statuses: dict[str, str] = {}
    before = _warm_up(context)
    with context.observe_attack() as attack:
        for name in names:
            body = _showing(bombs[name])
            # One alone before each one beside: what a busy machine adds is added to both.
            usual.append(_seen_text(context))
            began, answers = _processor_s(context), list[Exchange]()
            asking = in_background(
                lambda body=body, answers=answers: answers.append(_ask(context, "/v1/chat/completions", body))
            )  # type: ignore[misc]
            time.sleep(0.02)
            waits[name] = _seen_text(context)
            asking()
            spent[name] = _processor_s(context) - began
            statuses[name] = str(answers[0].status) if answers else "none"
            context.say(name)
    for name in names:
        report.add(f"{name}: processor time", spent[name], 1.0, "s", statuses[name])
    slowest = max(waits, key=lambda name: waits[name])
    longer = waits[slowest] - max(usual)
    report.add(
        "the longest wait of a text beside them, to alone", longer, 0.2, "s", f"{slowest}; alone {max(usual):.2f} s"
    )
    wrong = [f"{name}: {status}" for name, status in statuses.items() if status not in ("200", "400", "413")]
    report.add("pictures answered with neither 200 nor 400", len(wrong), 0, "", "; ".join(wrong[:5]))
    _judge_engines(context, report, attack, before)
    return report


def _showing(image: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    return {"model": "vision", "max_tokens": 1, "messages": [{"role": "user", "content": shown}]}


def _processor_s(context: AttackContext) -> float:
    """Return the processor time of everything that belongs to the vision model, and of the gateway."""
    roots = [context.pool.supervisors["vision"].pid, context.pool.gateway.pid]
    return sum(machine.processor_s(pid) for root in roots for pid in machine.family(root))


def _seen_text(context: AttackContext) -> float:
    """Return how long the vision model takes to answer a text."""
    body = {"model": "vision", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello!"}]}
    return context.pool.ask("POST", "/v1/chat/completions", body, key=context.pool.keys.victim).took_s


def hostile_grammars(seed: int) -> list[dict[str, Any]]:
    """Return fields of chat requests whose grammars take long; each seed gives others."""

    def schema(value: dict[str, Any]) -> dict[str, Any]:
        named = {
            "name": f"s{seed}",
            "schema": {"type": "object", "properties": {f"p{seed}": value}, "required": [f"p{seed}"]},
        }
        return {"response_format": {"type": "json_schema", "json_schema": named}}

    def extra(**fields: Any) -> dict[str, Any]:
        return {"structured_outputs": fields}

    deep = f"(((a{{400}}){{400}}){{{40 + seed}}})x"
    many = "|".join(f"/(((a{{200}}){{200}}){{{40 + seed + at}}})x/" for at in range(30))
    return [
        extra(regex=deep),
        extra(regex=f"(((a{{400}}){{400}}){{{400 + seed}}})x"),
        extra(regex=f"((((a{{99}}){{99}}){{99}}){{{99 + seed}}})x"),
        extra(regex=f"(a{{1,{900 + seed}}}){{1,900}}"),
        extra(regex="(" + "|".join(f"{at}{seed}[a-z]{{1,99}}" for at in range(3000)) + ")"),
        extra(grammar=f"start: /{deep}/"),
        extra(grammar=f"start: {many}"),
        extra(grammar=f'start: a{"" if seed % 2 else "?"} "{seed}"\na: b b b\nb: c c c c | a\nc: "x"* | a | b'),
        schema({"type": "string", "pattern": f"^{deep}$"}),
        schema({"enum": [f"{at}-{seed}-{'y' * 20}" for at in range(2000)]}),
        schema({"type": "array", "items": {"type": "integer"}, "minItems": 10_000, "maxItems": 1_000_000 + seed}),
    ]


def grammars(context: AttackContext) -> AttackReport:
    """Send one key's hostile grammars, sixty a minute: another's schema and chat do not wait for them."""
    pool, report, made = context.pool, AttackReport(), itertools.count()
    fresh, usual, during = list[float](), list[float](), list[float]()
    faults: list[str] = []
    lock, key = threading.Lock(), pool.make_attacker()
    turn = itertools.chain.from_iterable(hostile_grammars(seed) for seed in itertools.count())

    def send_grammars(_: int) -> None:
        while time.monotonic() < deadline:
            with lock:
                fields = next(turn)
            answer = _ask(context, "/v1/chat/completions", {**_saying("Go."), "max_tokens": 8, **fields}, key=key)
            if answer.status >= 500:
                faults.append(f"{answer.status} {json.dumps(fields)[:80]}")
            if answer.status == 429:
                time.sleep(0.5)

    def ask_victim(into: list[float]) -> None:
        body = {
            "model": "chat",
            "max_tokens": 24,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Tell me a story."}],
        }
        answer = pool.ask("POST", "/v1/chat/completions", body, key=pool.keys.victim)
        into.append(answer.took_s)

    def ask_fresh() -> None:
        wanted = {
            "type": "object",
            "properties": {f"v{next(made)}": {"type": "boolean"}},
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "v", "schema": wanted}}
        body = {**_saying("Yes?"), "max_tokens": 16, "response_format": form}
        answer = pool.ask("POST", "/v1/chat/completions", body, key=pool.keys.victim)
        fresh.append(answer.took_s if answer.status == 200 else 999.0)

    for _ in range(8):
        ask_victim(usual)
    before = _warm_up(context)
    with context.observe_attack() as attack:
        deadline = time.monotonic() + context.seconds
        join = in_background(lambda: side_by_side(1 if context.part < 0.2 else 10, send_grammars))
        while time.monotonic() < deadline:
            ask_fresh()
            ask_victim(during)
            context.say(f"{len(fresh)} schemas")
            time.sleep(0.2)
        join()
    # The machine may have become busier or idler meanwhile: undisturbed is before and after.
    for _ in range(8):
        ask_victim(usual)
    report.add("another's new schema, longest", max(fresh, default=0.0), 2.0, "s", f"{len(fresh)} of them")
    ratio = median(during) / max(median(usual), 1e-6)
    report.add("another's chat, to undisturbed", ratio, 1.2, "", f"{median(usual):.3f} s undisturbed")
    report.add("hostile grammars answered with 5xx", len(faults), 0, "", "; ".join(faults[:4]))
    _judge_engines(context, report, attack, before)
    return report


def leaving(context: AttackContext) -> AttackReport:
    """Ask for eight long answers each and leave at once, at one key's limits: rows end, others go on."""
    pool, report = context.pool, AttackReport()
    body = {**_saying("Tell me a story."), "n": 8, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {pool.make_attacker()}"}
    request = head("POST", "/v1/chat/completions", {**headers, "Content-Length": str(len(data))}) + data
    before, left = _warm_up(context), 0
    with context.observe_attack(streams=True) as attack, ExitStack() as stack:
        deadline = time.monotonic() + context.seconds
        while time.monotonic() < deadline:
            connections: list[socket.socket] = []
            for _ in range(10):
                with suppress(OSError):
                    connection = stack.enter_context(pool.address.connect())
                    connection.sendall(request)
                    connections.append(connection)
            time.sleep(0.1)
            for connection in connections:
                connection.close()
            left += len(connections)
            time.sleep(0.9)
        began = time.monotonic()
        stats = pool.ask("GET", "/v1/queue/stats", key=pool.keys.victim).json() or {}
        while stats.get("queue_stats", {}).get("active_requests", 0) > 3 and time.monotonic() - began < 30.0:
            time.sleep(0.1)
            stats = pool.ask("GET", "/v1/queue/stats", key=pool.keys.victim).json() or {}
        report.add("time until their rows have ended", time.monotonic() - began, 2.0, "s")
    report.add("clients that left", left)
    _judge_engines(context, report, attack, before)
    return report


def _some(items: list[Any], part: float) -> list[Any]:
    """Return evenly so many of them."""
    count = max(1, round(part * len(items)))
    return [items[at * len(items) // count] for at in range(count)]


def _ask(context: AttackContext, path: str, body: dict[str, Any], *, key: str | None = None) -> Exchange:
    return context.pool.ask("POST", path, body, key=key or context.pool.keys.unbound)


def _send_each(context: AttackContext, requests: list[Request]) -> list[tuple[str, float, float, Exchange]]:
    spans = []
    for at, (name, path, body) in enumerate(requests):
        began = time.monotonic()
        answer = _ask(context, path, body)
        spans.append((name, began, time.monotonic(), answer))
        context.say(f"{at + 1} of {len(requests)}: {name}")
    return spans


def _judge_each(report: AttackReport, attack: AttackRecord, spans: list[tuple[str, float, float, Exchange]]) -> None:
    """Add the worst of what was sent one at a time."""
    slowest = max(spans, key=lambda span: span[2] - span[1])
    report.add("longest answer", slowest[2] - slowest[1], None, "s", f"{slowest[0]}: {slowest[3].status}")
    silence = {
        name: max((row[3] for row in attack.seen.workers if began <= row[0] <= ended + 1), default=0.0)
        for name, began, ended, _ in spans
    }
    worst = max(silence, key=lambda name: silence[name])
    report.add("longest silence of an engine meanwhile", silence[worst], None, "s", worst)
    wrong = [
        f"{name}: {answer.status} {answer.fault}" for name, _, _, answer in spans if not 200 <= answer.status < 500
    ]
    report.add("requests answered with 5xx, or not", len(wrong), 0, "", "; ".join(wrong[:5]))


def _flood(context: AttackContext, requests: list[Request]) -> Counter[int]:
    """Send them in turn from ten connections, at one key's limits."""
    statuses, key = Counter[int](), context.pool.make_attacker()

    def send_until(at: int) -> None:
        for _, path, body in itertools.cycle(requests[at:] + requests[:at]):
            if time.monotonic() > deadline:
                return
            answer = _ask(context, path, body, key=key)
            statuses[answer.status] += 1
            if answer.status == 429:
                time.sleep(0.5)

    deadline = time.monotonic() + context.seconds
    side_by_side(10, send_until)
    return statuses


def _judge_engines(context: AttackContext, report: AttackReport, attack: AttackRecord, before: dict[str, int]) -> None:
    attack.add_readings(report, GAP_KEYED_S)
    for kind in context.pool.supervisors:
        grown = attack.seen.grown_bytes(kind, attack.before[kind])
        report.add(
            f"growth of {kind}", grown / MB, GROWTH_ENGINE / MB, "MB", f"{attack.before[kind] / MB:.0f} MB before"
        )
    after = context.pool.engine_pids()
    gone = [kind for kind, pid in before.items() if after.get(kind) != pid]
    report.add("engines that died", len(gone), 0, "", ", ".join(gone))
