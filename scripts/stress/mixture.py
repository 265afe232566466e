"""One client of everything that a pool offers: whole answers, streams, vectors, mistakes, doors slammed."""

import random
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import aiohttp

from stress.running_pool import chat_body

SHARES = MappingProxyType(
    {"stream": 50, "whole": 18, "vectors": 15, "leave": 10, "bad": 4, "refused": 1, "keyless": 1, "unknown": 1}
)
"""Per cent of the requests."""
KEY_SHARES = (9, 1)
EXPECTED = frozenset(
    {
        "stream 200",
        "whole 200",
        "vectors 200",
        "leave left",
        "bad 400",
        "refused 507",
        "keyless 401",
        "unknown 404",
    }
)
"""All that may come of them."""
LONG = "".join(f" and word {number} of a prompt that is long enough to leave marks" for number in range(10))


class Mixture:
    """Requests in random order, with one of `keys`; each differs from all before."""

    def __init__(self, session: aiohttp.ClientSession, url: str, *, keys: Sequence[str], chance: random.Random) -> None:
        self._session = session
        self._url = url
        self._keys = keys
        self._chance = chance

    async def one(self, number: int) -> str:
        """Send one request; says which kind it was, and what became of it."""
        kind = self._chance.choices([*SHARES], [*SHARES.values()])[0]
        return f"{kind} {await self._send(kind, f'{number} {self._chance.random()}{LONG}')}"

    def _body(self, kind: str, text: str) -> dict[str, Any]:
        match kind:
            case "vectors":
                return {"input": [text, "known"], "encoding_format": "base64"}
            case "leave":
                return chat_body(f"fake: slow@0.005 tokens@200 {text}", stream=True)
            case "refused":
                return chat_body(f"fake: oom@0 {text}")
            case "bad":
                return chat_body(text, temperature=9)
            case "unknown":
                return chat_body(text, model="nobody")
        return chat_body(text, max_tokens=12, stream=kind == "stream")

    async def _send(self, kind: str, text: str) -> str:
        path = "/v1/embeddings" if kind == "vectors" else "/v1/chat/completions"
        headers = (
            {} if kind == "keyless" else {"Authorization": f"Bearer {self._chance.choices(self._keys, KEY_SHARES)[0]}"}
        )
        async with self._session.post(f"{self._url}{path}", json=self._body(kind, text), headers=headers) as response:
            if kind == "leave":
                await response.content.readany()
                response.close()
                return "left"
            data = await response.read()
        if kind == "stream" and not data.endswith(b"data: [DONE]\n\n"):
            return "cut off"
        return str(response.status)
