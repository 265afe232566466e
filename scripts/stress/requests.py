"""Requests for clients in trouble: made from a seed, with the answers that they have to get."""

import json
import random
from collections.abc import Sequence
from typing import Any

from stress.fake_answers import fake_answer
from stress.load import Make
from stress.running_pool import RunningPool, chat_body

STEP_S = 0.01


def of_the_fake_engine(chance: random.Random) -> tuple[dict[str, Any], str]:
    """Return streams and whole answers of one to two seconds, each another one."""
    content = f"fake: slow@{STEP_S} tokens@{chance.randint(60, 150)} {chance.random()}"
    body = chat_body(content, stream=chance.random() < 0.8)
    return body, fake_answer(body)


def of_a_model(flags: Sequence[str], *, prompts: int, max_tokens: int, seed: int) -> Make:
    """Return greedy and seeded streams of a real model, with the answers of an undisturbed run of it."""
    chance = random.Random(seed)
    bodies = []
    for at in range(prompts):
        sampling: dict[str, Any] = {"temperature": 0}
        if at % 3 == 2:
            sampling = {"temperature": 0.8, "top_p": 0.9, "seed": at}
        content = f"tell me about {chance.random()}"
        bodies.append(chat_body(content, stream=at % 4 != 3, max_tokens=max_tokens, ignore_eos=True, **sampling))
    pool = RunningPool(flags)
    try:
        pool.wait_healthy(120)
        known = [(body, _text(pool, body)) for body in bodies]
    finally:
        pool.stop()
        pool.remove()
    return lambda chance: chance.choice(known)


def _text(pool: RunningPool, body: dict[str, Any]) -> str:
    answer = pool.post("/v1/chat/completions", {**body, "stream": False})
    text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
    return text
