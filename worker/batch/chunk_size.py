"""How many prompt tokens the next prefill chunk may take, so that running streams hardly notice. Pure arithmetic."""

SMALLEST = 8
FIRST = 64
SHARE = 4.0
"""A step with a chunk in it may take this many times a plain decode step; the promise is that gaps stay below ten."""
SMOOTHING = 0.2


class ChunkSizer:
    """Adapts the chunk to what it was seen to cost. Sizes are powers of two, so that shapes repeat."""

    def __init__(self, largest: int, *, smallest: int = SMALLEST) -> None:
        self._smallest = smallest
        self._largest = largest
        self.chunk = min(FIRST, largest)
        self._decode_s: float | None = None

    def next_size(self, *, running: bool) -> int:
        """Tokens for the next chunk. With nobody running there is nobody to hold up."""
        return self.chunk if running else self._largest

    def record_step(self, seconds: float) -> None:
        """Note that a step without a chunk took this long."""
        if self._decode_s is None:
            self._decode_s = seconds
        # An outlier says more about the machine than about the model.
        seconds = min(seconds, 4 * self._decode_s)
        self._decode_s += SMOOTHING * (seconds - self._decode_s)

    def record_chunk(self, tokens: int, seconds: float) -> None:
        """Note that a step with a chunk of `tokens`, beside running rows, took this long."""
        if self._decode_s is None:
            return
        wanted = tokens * (SHARE - 1) * self._decode_s / max(seconds - self._decode_s, 1e-6)
        size = min(self._smallest, self._largest)
        while size * 2 <= min(wanted, 2 * self.chunk, self._largest):
            size *= 2
        # The end of a prompt, or a short one, costs more a token: it says little against a larger chunk, unless it was
        # too dear itself.
        if tokens >= self.chunk or wanted < tokens or (size > self.chunk and 2 * tokens >= self.chunk):
            self.chunk = size
