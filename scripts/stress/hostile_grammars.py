"""Grammars of one key that take seconds, gigabytes, or for ever, and what another key's requests take beside them."""

import itertools
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from stress.key_commands import bearer, keys, known
from stress.running_pool import RunningPool, chat_body, wait_until

AT_ONCE = 16
RATE_S = 1.0
"""Sixty a minute."""
WARM_UP = 3


def make_hostile_grammar(number: int) -> dict[str, Any]:
    """Return fields of `structured_outputs`: catastrophic expressions, huge repetitions, 64 KB schemas, endless choice.

    Each number gives another grammar.
    """
    match number % 4:
        case 0:
            return {"regex": f"(((a{{400}}){{400}}){{40}})x{number}"}
        case 1:
            return {"regex": f"([a-z]{{1,200}}|[b-y]{{1,300}}){{1,200}}z{number}"}
        case 2:
            names = {
                f"property_{number}_{at}": {"type": "string", "pattern": "^(a|b)*a(a|b){12}$"} for at in range(900)
            }
            return {"json": {"type": "object", "properties": names}}
        case _:
            return {"grammar": f"start: (x | y){{1,3000}} /{number}/\nx: /(.*a.{{30}}){{5}}/\ny: x x x"}


class GrammarAttacker(threading.Thread):
    """Sends sixteen hostile grammars at once, then one a second, whatever becomes of them, until it is told to stop."""

    def __init__(self, pool: RunningPool, key: str) -> None:
        super().__init__()
        self._pool, self._key = pool, key
        self._enough = threading.Event()
        self.statuses: list[int] = []
        self.start()

    def run(self) -> None:
        """Attack."""
        for number in itertools.count():
            threading.Thread(target=self._ask, args=(number,), daemon=True).start()
            if self._enough.wait(RATE_S if number >= AT_ONCE else 0.0):
                return

    def stop(self) -> None:
        """Send no more."""
        self._enough.set()
        self.join()

    def _ask(self, number: int) -> None:
        body = chat_body(f"hostile {number}", max_tokens=64, structured_outputs=make_hostile_grammar(number))
        # Some still wait when the pool stops.
        with suppress(OSError, HTTPException):
            self.statuses.append(self._pool.post("/v1/chat/completions", body, headers=bearer(self._key)).status)


@dataclass
class GrammarReport:
    """What another key's chats and new schemas took alone and beside the attacker, in seconds."""

    attacker_key: str
    attacker_statuses: list[int] = field(default_factory=list)
    chats: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "beside": []})
    schemas: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "beside": []})


def attack_by_grammars(pool: RunningPool, *, requests: int) -> GrammarReport:
    """Send so many chats and new schemas alone, and as many beside hostile grammars, until one of these is refused."""
    free = ("--burst", "0", "--rpm", "0", "--tpd", "100000000")
    bad, good = keys(pool, "create", "bad", *free), keys(pool, "create", "good", *free)
    wait_until(lambda: known(pool, bad) and known(pool, good))
    schemas = ({"json": {"type": "array", "items": {"const": at}, "minItems": 2, "maxItems": 9}} for at in range(999))
    for _ in range(WARM_UP):
        _chat_s(pool, good), _chat_s(pool, good, structured_outputs=next(schemas))
    report, attacker = GrammarReport(bad), None
    for name in ("alone", "beside"):
        attacker = GrammarAttacker(pool, bad) if name == "beside" else None
        for _ in range(requests):
            report.chats[name].append(_chat_s(pool, good))
            report.schemas[name].append(_chat_s(pool, good, structured_outputs=next(schemas)))
    assert attacker is not None
    wait_until(lambda: {400, 429} & {*attacker.statuses})
    attacker.stop()
    report.attacker_statuses = sorted(attacker.statuses)
    return report


def _chat_s(pool: RunningPool, key: str, **fields: Any) -> float:
    body = chat_body("hello", max_tokens=32, ignore_eos=True, temperature=0, **fields)
    began = time.monotonic()
    answer = pool.post("/v1/chat/completions", body, headers=bearer(key))
    assert answer.status == 200, answer.body
    return time.monotonic() - began
