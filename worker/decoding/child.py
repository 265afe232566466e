"""A decoding process: image files in, plain RGB out. Knows Pillow and nothing else of the pool.

It is expendable. Files come from strangers, and some take seconds, or gigabytes, or break the decoder: the process
ends then, by limits that the system enforces, and nothing is lost but the one image.
"""

import os
import resource
import signal
import socket
import sys
import threading
import warnings

import msgspec
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from protocol.errors import JobError
from worker import image_files as images
from worker.decoding.limits import HEADER_S, TOO_MUCH_MEMORY, budget_s
from worker.decoding.wire import Decode, Decoded, fill, receive, send

_PLUGINS = (GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)
"""Imported here, so that Pillow never imports those of its other formats."""
OPEN_FILES = 16
WATCH_S = 0.02


def _limit_processor_time(seconds: float) -> None:
    """End this process, wherever it is, after so many seconds of its own processor time from now; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _decode(request: Decode, file: bytes) -> tuple[Decoded, bytes]:
    _limit_processor_time(HEADER_S)
    try:
        image = images.decode(
            file,
            "",
            low=request.low,
            sized=lambda width, height: _limit_processor_time(budget_s(width * height, len(file))),
        )
        if request.fit is not None:
            height, width = request.fit.size(image.height, image.width, "")
            image = image.resize((width, height), Image.Resampling(request.fit.resample))
        pixels = image.tobytes()
    except JobError as error:
        return Decoded(error=error.message), b""
    except MemoryError:
        return Decoded(error="The image takes too much memory to decode."), b""
    finally:
        _limit_processor_time(0)
    return Decoded(image.width, image.height), pixels


def _watch_memory(at_work: threading.Event, most_bytes: int) -> None:
    """End the process when it holds too much, where the system enforces no bound (macOS).

    Not on Linux: there a process starts with the peak of the one that it was forked from, an engine's gigabytes.
    """
    pause = threading.Event()
    while at_work.wait():
        # Bytes on macOS.
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most_bytes:
            os._exit(TOO_MUCH_MEMORY)
        pause.wait(WATCH_S)


def main() -> None:
    """Entry of the process: its socket's file descriptor, its niceness, the bytes that it may hold.

    Ends when the other end of the socket is closed.
    """
    fd, nice, most_bytes = map(int, sys.argv[1:])
    os.nice(nice)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    at_work = threading.Event()
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    else:
        threading.Thread(target=_watch_memory, args=(at_work, most_bytes), name="memory", daemon=True).start()
    # An interrupt at a terminal is for the engine, whose end is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=fd)
    try:
        while True:
            head, size_bytes = receive(connection, images.MAX_FILE_BYTES)
            file = bytearray(size_bytes)
            fill(connection, memoryview(file))
            at_work.set()
            answer, pixels = _decode(msgspec.msgpack.decode(head, type=Decode), bytes(file))
            at_work.clear()
            send(connection, answer, pixels)
            del file, pixels
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
