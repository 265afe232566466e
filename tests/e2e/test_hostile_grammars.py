"""One key's grammars are its own affair: whoever else asks, for a new schema or for none, is served as ever."""

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from stress.running_pool import RunningPool, chat_body, wait_until

from tests.support.key_commands import PRODUCTION, bearer, keys, known, used

RATE_S = 1.0
"""Sixty a minute."""
ROUNDS = 12


def hostile(number: int) -> dict[str, Any]:
    """Each one different: catastrophic expressions, huge repetitions, 64 KB schemas, endless alternatives."""
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


class Attacker(threading.Thread):
    """Sends one hostile grammar a second, whatever becomes of those before, until it is told to stop."""

    def __init__(self, pool: RunningPool, key: str) -> None:
        super().__init__()
        self._pool, self._key = pool, key
        self.enough = threading.Event()
        self.statuses: list[int] = []
        self.start()

    def run(self) -> None:
        """Attack."""
        for number in itertools.count():
            threading.Thread(target=self._ask, args=(number,), daemon=True).start()
            if self.enough.wait(RATE_S if number >= 16 else 0.0):
                return

    def _ask(self, number: int) -> None:
        body = chat_body(f"hostile {number}", max_tokens=64, structured_outputs=hostile(number))
        # Some still wait when the pool stops.
        with suppress(OSError, HTTPException):
            self.statuses.append(self._pool.post("/v1/chat/completions", body, headers=bearer(self._key)).status)


def took(pool: RunningPool, key: str, **fields: Any) -> float:
    body = chat_body("hello", max_tokens=32, ignore_eos=True, temperature=0, **fields)
    began = time.monotonic()
    answer = pool.post("/v1/chat/completions", body, headers=bearer(key))
    assert answer.status == 200, answer.body
    return time.monotonic() - began


@pytest.mark.mlx
def test_others_are_served_as_ever_when_one_key_sends_hostile_grammars(
    start_pool: Callable[..., RunningPool], model_folder: Callable[[str], Path], record: Callable[[str, object], None]
) -> None:
    """Sixteen at once, then one a second: another key's new schema is compiled, its chat goes on much as before."""
    pool = start_pool(
        ("--model-path", str(model_folder("qwen3")), "--served-name", "tiny", "--max-concurrency", "16"),
        environment=PRODUCTION,
    )
    free = ("--burst", "0", "--rpm", "0", "--tpd", "100000000")
    bad, good = keys(pool, "create", "bad", *free), keys(pool, "create", "good", *free)
    wait_until(lambda: known(pool, bad) and known(pool, good))
    schemas = ({"json": {"type": "array", "items": {"const": at}, "minItems": 2, "maxItems": 9}} for at in range(999))
    for _ in range(3):
        took(pool, good), took(pool, good, structured_outputs=next(schemas))
    chats: dict[str, list[float]] = {"alone": [], "beside": []}
    fresh: dict[str, list[float]] = {"alone": [], "beside": []}
    attacker = None
    for name in ("alone", "beside"):
        attacker = Attacker(pool, bad) if name == "beside" else None
        for _ in range(ROUNDS):
            chats[name].append(took(pool, good))
            fresh[name].append(took(pool, good, structured_outputs=next(schemas)))
    assert attacker is not None
    wait_until(lambda: {400, 429} & {*attacker.statuses})
    attacker.enough.set()
    attacker.join()
    record("answers to the attacker", sorted(attacker.statuses))
    for name in chats:
        record(f"chat {name}", [round(median(chats[name]), 3), round(max(chats[name]), 3)])
        record(f"new schema {name}", [round(median(fresh[name]), 3), round(max(fresh[name]), 3)])
    assert max(fresh["beside"]) < 20
    assert median(chats["beside"]) < 10 * median(chats["alone"])
    # What was compiled for it has its price.
    wait_until(lambda: used(pool, bad)[1] > 100)
