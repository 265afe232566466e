"""The way out to peers."""

from collections.abc import Sequence
from typing import Protocol


class Transport(Protocol):
    """What sends frames: the socket, or what stands for it in tests."""

    def send_frame(self, identity: bytes, frame: bytes, buffers: Sequence[bytes] = ()) -> bool:
        """Send a frame, with raw buffers behind it, without waiting.

        Return False if the peer can't take it; it is then reported as gone.
        """
