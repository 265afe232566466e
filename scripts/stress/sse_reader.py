"""Server-sent events as a careful client sees them: frames, comments, and how the stream ended."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Streamed:
    """A stream, read to its end. `whole`: ended by `[DONE]`; `error`: by an error frame; neither: cut off."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    comments: int = 0
    whole: bool = False
    error: dict[str, Any] | None = None
    rest: bytes = b""

    @property
    def well_formed(self) -> bool:
        """Ended in exactly one of the two legal ways, with no half frame behind."""
        return self.whole != (self.error is not None) and not self.rest

    def text(self, choice: int = 0) -> str:
        """Return the content of one choice."""
        pieces = [
            entry["delta"].get("content") or "" if "delta" in entry else entry["text"]
            for frame in self.frames
            for entry in frame["choices"]
            if entry["index"] == choice
        ]
        return "".join(pieces)

    def feed(self, event: bytes) -> None:
        """Take in one event, without the empty line that ends it."""
        assert not self.whole and self.error is None, f"an event after the end: {event!r}"
        if event.startswith(b":"):
            self.comments += 1
            return
        assert event.startswith(b"data: "), event
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            self.whole = True
            return
        frame = json.loads(data)
        if "error" in frame:
            self.error = frame["error"]
        else:
            self.frames.append(frame)


def events(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a body into events; what is left of a cut-off one comes last, without its empty line."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        yield from whole
    if rest:
        yield rest


def read_stream(body: bytes) -> Streamed:
    """Read a whole body."""
    streamed = Streamed()
    *whole, streamed.rest = body.split(b"\n\n")
    for event in whole:
        streamed.feed(event)
    return streamed
