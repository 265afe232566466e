"""Conversations of several turns side by side: how much of their prompts comes from prefix caches."""

import random
import threading
from collections.abc import Sequence

from stress.running_pool import RunningPool, wait_until


def hit_rate(flags: Sequence[str], *, replicas: int, conversations: int, turns: int, seed: int) -> float:
    """Return the share of all prompt tokens that was found in a cache."""
    pool = RunningPool(*[flags] * replicas)
    counts: list[tuple[int, int]] = []

    def talk(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        messages = [{"role": "system", "content": "You are a helpful assistant that answers in short sentences. " * 4}]
        for turn in range(turns):
            words = " ".join(str(chance.randint(0, 99)) for _ in range(40))
            messages.append({"role": "user", "content": f"{number} {turn}: {words}"})
            body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
            answer = pool.post("/v1/chat/completions", body).json()
            usage = answer["usage"]
            counts.append((usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]))
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})

    try:
        pool.wait_healthy(120)
        wait_until(lambda: pool.replicas() == replicas, timeout_s=120)
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(conversations)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        pool.stop()
        pool.remove()
    return sum(cached for cached, _ in counts) / sum(size for _, size in counts)
