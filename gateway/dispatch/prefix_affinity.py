"""Which worker computed which beginnings of prompts last, so that what follows them finds its cache. Pure.

A prompt is cut into chunks; a chunk's key is the hash of all up to its end. So two prompts share as many keys as they
share leading chunks, whatever stands behind them, and the longest known one says where its cache is.
"""

from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence

from protocol.messages import ChatPrompt, GenerateJob, Job, TextPrompt, TokenPrompt

FINE_BYTES, FINE_CHUNKS = 64, 64
"""Chunks at the beginning of a prompt, where conversations part."""
COARSE_BYTES, COARSE_CHUNKS = 1024, 512
"""And behind it. What comes after half a megabyte is not looked at."""
MOST_BYTES = FINE_BYTES * FINE_CHUNKS + COARSE_BYTES * COARSE_CHUNKS
REMEMBERED = 32_768
"""Keys of one model that are remembered, the last used ones: about 5 MB."""


class PrefixAffinity:
    """What is known of one model's workers."""

    def __init__(self) -> None:
        self._holders: OrderedDict[int, str] = OrderedDict()

    def find_holder(self, keys: Sequence[int], among: Collection[str]) -> str | None:
        """Return the uid (one of `among`) that computed the longest known beginning; None if there is none."""
        for key in reversed(keys):
            uid = self._holders.get(key)
            if uid is not None and uid in among:
                return uid
        return None

    def record_prompt(self, keys: Sequence[int], uid: str) -> None:
        """Note that a worker is about to compute this prompt."""
        for key in keys:
            self._holders[key] = uid
            self._holders.move_to_end(key)
        while len(self._holders) > REMEMBERED:
            self._holders.popitem(last=False)

    def __len__(self) -> int:
        return len(self._holders)


def keys_of(job: Job, cache_key: str | None) -> list[int]:
    """Return the keys of a job's prompt, shortest beginning first; empty for jobs that leave nothing in a prefix cache.

    `cache_key` is the client's own word for what belongs together (`prompt_cache_key`): a beginning of no length.
    """
    if not isinstance(job, GenerateJob):
        return []
    owner = (job.tenant, job.adapter)
    keys = [hash((owner, cache_key))] if cache_key else []
    match job.prompt:
        case ChatPrompt(messages=data, tools=tools, template=template):
            key = hash((owner, tools, *sorted(template.items())))
        case TextPrompt(text=text):
            key, data = hash((owner, "text")), text[:MOST_BYTES].encode(errors="replace")
        case TokenPrompt(tokens=tokens):
            key, data = hash((owner, "tokens")), array("q", tokens[:MOST_BYTES]).tobytes()
    for start, end in _chunks(len(data)):
        key = hash((key, data[start:end]))
        keys.append(key)
    return keys


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    """Whole chunks only: the end of a conversation changes with its next turn."""
    start = 0
    for length, count in ((FINE_BYTES, FINE_CHUNKS), (COARSE_BYTES, COARSE_CHUNKS)):
        for _ in range(min(count, (size - start) // length)):
            yield start, start + length
            start += length
