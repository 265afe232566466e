"""Peers of a gateway's socket, played by the test: a worker or supervisor with a real DEALER, in process or out of it.

Run as a program, it is a worker that registers, beats, and answers nothing else.
"""

import asyncio
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio

from protocol.address import endpoint
from protocol.codec import decode_to_worker, encode
from protocol.messages import (
    Accepted,
    Beat,
    Delta,
    Done,
    GenerateJob,
    Hello,
    State,
    ToGateway,
    ToWorker,
    Usage,
)
from tests.support.dispatch_rig import announcement, readiness

PATIENCE_S = 60.0


class Peer:
    """One DEALER, in the test's own loop. `epoch` is that of the last `Hello`."""

    def __init__(self, run_dir: Path, identity: str | None = None, *, immediate: bool = True, read_ahead: int = 1000):
        self.identity = identity or f"m/{uuid.uuid4().hex}"
        self.uid = self.identity.rpartition("/")[2]
        self.epoch = 0
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, self.identity.encode())
        self.socket.setsockopt(zmq.IMMEDIATE, int(immediate))
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, read_ahead)
        self.socket.connect(endpoint(run_dir))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self.socket.close(linger=0)
        self._context.term()

    async def send(self, *messages: ToGateway, epoch: int | None = None) -> None:
        """One envelope, in the epoch last heard of."""
        await self.send_raw(encode(messages, epoch=self.epoch if epoch is None else epoch))

    async def send_raw(self, *frames: bytes) -> None:
        """Any frames."""
        async with asyncio.timeout(PATIENCE_S):
            await self.socket.send_multipart(frames)

    async def receive(self) -> list[ToWorker]:
        """The messages of the next envelope that has any; probes have none."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                envelope = decode_to_worker(await self.socket.recv())
            if envelope.messages:
                if isinstance(envelope.messages[0], Hello):
                    self.epoch = envelope.epoch
                return envelope.messages

    async def greeted(self) -> None:
        """Speak first, as a stranger, and wait for the greeting."""
        await self.send(Beat(State.READY, 0, 0.0, False))
        while not isinstance((await self.receive())[0], Hello):
            pass

    async def register(self, model: str = "m", **changes: object) -> None:
        """Become a ready worker."""
        await self.greeted()
        await self.send(announcement(self.uid, model, **changes), readiness())

    async def take_job(self) -> GenerateJob:
        """The next job; accepted."""
        while True:
            for message in await self.receive():
                if isinstance(message, GenerateJob):
                    await self.send(Accepted(message.job, message.attempt, 3))
                    return message

    async def answer(self, job: GenerateJob, *words: str) -> None:
        """One envelope per word, as an engine would step, then the end."""
        for word in words:
            await self.send(Delta(job.job, job.attempt, 0, [1], word))
        await self.send(Done(job.job, job.attempt, Usage(3, len(words))))


def main(run_dir: str, uid: str, beat_s: str) -> None:
    """A worker process: connects, registers, beats; prints a line when it has registered, and one per message."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, f"m/{uid}".encode())
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint(Path(run_dir)))
    epoch, next_beat = 0, 0.0
    while True:
        if time.monotonic() >= next_beat:
            next_beat = time.monotonic() + float(beat_s)
            socket.send(encode([Beat(State.READY, 1, 0.0, False)], epoch=epoch))
        if not socket.poll(int(float(beat_s) * 1000)):
            continue
        envelope = decode_to_worker(socket.recv())
        for message in envelope.messages:
            print(type(message).__name__, flush=True)
            if isinstance(message, Hello):
                epoch = envelope.epoch
                socket.send(encode([announcement(uid), readiness()], epoch=epoch))


if __name__ == "__main__":
    main(*sys.argv[1:])
