"""How much structure a JSON text holds, counted before it is parsed: a value takes up to a hundred times its text.

What is inside a string does not count. The text comes in slices, so that whoever counts can let others run in between.
"""

from typing import NamedTuple

import msgspec

SLICE_BYTES = 1 << 18
"""Counted in a millisecond, or three where it is nothing but quotes."""
VALUE_BYTES, ARRAY_BYTES, OBJECT_BYTES, KEY_BYTES = 48, 120, 240, 80
"""What each takes once it is parsed and converted, on a machine of 64 bits."""


class Bounds(NamedTuple):
    """Most values (lists and objects among them), and most lists and objects, that a text may hold."""

    values: int
    containers: int


class Structure(msgspec.Struct):
    """Counts of a text, or of what of it was fed so far."""

    values: int = 1
    arrays: int = 0
    objects: int = 0
    keys: int = 0
    _inside: bool = False
    _escape: bool = False

    def count_slice(self, piece: bytes) -> None:
        """Count the next piece of the text."""
        if self._escape:
            piece = b"\\" + piece
        # A backslash at the end is about the next piece's first character, unless it is itself escaped.
        self._escape = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
        if self._escape:
            piece = piece[:-1]
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[self._inside :: 2])
        self._inside ^= len(parts) % 2 == 0
        self._count(outside)

    def count_upper_bound(self, text: bytes) -> None:
        """Count a text as if nothing of it were inside a string: never too few, and cheap."""
        self._count(text)

    def add_counts(self, other: "Structure") -> None:
        """Count another text, too."""
        self.values += other.values
        self.arrays += other.arrays
        self.objects += other.objects
        self.keys += other.keys

    def find_excess(self, bounds: Bounds) -> str:
        """Say what there is too much of; empty: nothing."""
        if self.values > bounds.values:
            return f"more than {bounds.values} values"
        if self.arrays + self.objects > bounds.containers:
            return f"more than {bounds.containers} lists and objects"
        return ""

    @property
    def memory_bytes(self) -> int:
        """What the parsed text takes, besides the characters of its strings."""
        return (
            self.values * VALUE_BYTES + self.arrays * ARRAY_BYTES + self.objects * OBJECT_BYTES + self.keys * KEY_BYTES
        )

    def _count(self, outside: bytes) -> None:
        arrays, objects = outside.count(b"["), outside.count(b"{")
        self.arrays += arrays
        self.objects += objects
        # A value is the first of a container, or follows a comma.
        self.values += arrays + objects + outside.count(b",")
        self.keys += outside.count(b":")


def text_bytes(body: bytes) -> int:
    """Return the most memory that strings out of a body can take.

    One character beyond the BMP makes each character of its string take four bytes.
    """
    if body.isascii() and b"\\u" not in body:
        return len(body)
    wide = b"\\ud" in body or b"\\uD" in body or any(bytes([first]) in body for first in range(0xF0, 0xF5))
    # One more for the copy in UTF-8 that Python keeps beside a string once somebody asked for it.
    return len(body) * (5 if wide else 3)
