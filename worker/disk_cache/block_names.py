"""What files are called: keyed hashes of model, tenant and tokens. Without the key nothing can be told from them.

Tokens are cut into blocks, and a block is named by all tokens up to its end: prompts that begin alike share files, and
a longer conversation only adds some.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
"""Tokens in one file. What is found ends at a block's end: so many tokens less one may have to be computed again."""
BLOCK_BYTES = BLOCK * 8
DIGEST_BYTES = 16
LENGTH_BYTES = 4

Tokens = NDArray[np.int64]


class BlockNames:
    """The names of one tenant's files, of one model."""

    def __init__(self, key: bytes, model: str, tenant: str) -> None:
        self._key = _hash(key, b"tenant", model.encode(), tenant.encode(errors="surrogatepass"), size=32)
        self.folder = f"{_hash(key, b'model', model.encode()).hex()}/{_hash(self._key, b'folder').hex()}"
        """Where they are, below the cache's own folder."""

    def hash_prompt(self, tokens: Tokens) -> "BlockHashes":
        """Those of a prompt's files."""
        return BlockHashes(self, tokens)

    def name_snapshot(self, before: bytes, rest: bytes, length: int) -> str:
        """Return the name of what stands for exactly `length` tokens. Its length can be told with the key alone."""
        digest = _hash(self._key, b"snapshot", before, rest)
        return (digest + self._masked(length, digest)).hex()

    def snapshot_length(self, name: str) -> int | None:
        """Return how many tokens a snapshot stands for; None for other files."""
        try:
            raw = bytes.fromhex(name)
        except ValueError:
            return None
        if len(raw) != DIGEST_BYTES + LENGTH_BYTES:
            return None
        digest, masked = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        return int.from_bytes(self._masked(int.from_bytes(masked, "little"), digest), "little")

    def hash_blocks(self, data: bytes) -> list[bytes]:
        """Return a digest for the end of each whole block, the first one for none."""
        chain = [self._key]
        for at in range(0, len(data) // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES):
            chain.append(_hash(self._key, b"block", chain[-1], data[at : at + BLOCK_BYTES]))
        return chain

    def _masked(self, length: int, digest: bytes) -> bytes:
        mask = int.from_bytes(_hash(self._key, b"length", digest, size=LENGTH_BYTES), "little")
        return (length ^ mask).to_bytes(LENGTH_BYTES, "little")


class BlockHashes:
    """The names of one prompt's files."""

    def __init__(self, names: BlockNames, tokens: Tokens) -> None:
        self._names = names
        self._data = tokens.astype("<i8").tobytes()
        self._chain = names.hash_blocks(self._data)
        self.folder = names.folder

    def block_names(self, length: int) -> list[str]:
        """Those of every whole block of the first `length` tokens, in order."""
        return [digest.hex() for digest in self._chain[1 : length // BLOCK + 1]]

    def snapshot_name(self, length: int) -> str:
        """Return the name of what stands for exactly the first `length` tokens."""
        whole = length // BLOCK
        return self._names.name_snapshot(self._chain[whole], self._data[whole * BLOCK_BYTES : length * 8], length)


def _hash(key: bytes, *parts: bytes, size: int = DIGEST_BYTES) -> bytes:
    """Keyed, and of the parts as they are divided."""
    digest = hashlib.blake2b(key=key[:64], digest_size=size)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
