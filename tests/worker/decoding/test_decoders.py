"""Images decoded in processes that may be killed: what comes back, what is refused, who waits for whom."""

import gc
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostility.pictures import MOST_PIXELS, hostile_images, odd_images, png, scans
from PIL import Image

from protocol.errors import Code, JobError
from tests.support.picture_files import picture
from worker import image_files as images
from worker.decoding import process as process_module
from worker.decoding.decoders import Decoders
from worker.decoding.fitting import Fit
from worker.decoding.process import DecoderLostError, DecodingProcess, ImageRefusedError
from worker.decoding.wire import Decode

SMALL = picture((40, 24))
SLOW = scans(30, components=3)
"""Half a second and more of work, within all bounds."""
REFUSED_S = 1.0
WAIT_S = 60.0


def shape(pixels: Any) -> Any:
    return pixels.shape


@pytest.fixture
def decoders() -> Decoders:
    return Decoders()


@pytest.fixture
def process() -> Iterator[DecodingProcess]:
    made = DecodingProcess()
    yield made
    made.kill()


class Watched:
    """Sees every decoding begin; `ended` holds what each came to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Semaphore(0)
        self.processes: list[DecodingProcess] = []
        self.ended: list[BaseException | None] = []
        own = DecodingProcess.decode_image

        def decode(process: DecodingProcess, request: Decode, file: bytes) -> Any:
            self.processes.append(process)
            self.begun.release()
            try:
                found = own(process, request, file)
            except BaseException as error:
                self.ended.append(error)
                raise
            self.ended.append(None)
            return found

        monkeypatch.setattr(DecodingProcess, "decode_image", decode)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def colours() -> Image.Image:
    """Every pixel another colour, as far as there are enough."""
    random = np.random.default_rng(3)
    return Image.fromarray(random.integers(0, 256, (61, 47, 3), dtype=np.uint8))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def good() -> dict[str, bytes]:
    """Files of every format, and of every mode that it has."""
    turned = Image.Exif()
    turned[0x0112] = 6
    base = colours()
    clear = base.copy()
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    deep = Image.fromarray(np.random.default_rng(4).integers(0, 65_536, (61, 47), dtype=np.uint16))
    return {
        "png": saved(base, "PNG"),
        "png, transparent": saved(clear, "PNG"),
        "png, grey": saved(base.convert("L"), "PNG"),
        "png, grey, transparent": saved(clear.convert("LA"), "PNG"),
        "png, palette": saved(base.quantize(64), "PNG"),
        "png, palette, transparent": saved(base.quantize(64), "PNG", transparency=3),
        "png, colour that is transparent": saved(base, "PNG", transparency=base.getpixel((3, 3))),
        "png, one bit": saved(base.convert("1"), "PNG"),
        "png, 16 bits": saved(deep, "PNG"),
        "png, turned": saved(clear, "PNG", exif=turned),
        "jpeg": saved(base, "JPEG"),
        "jpeg, progressive": saved(base, "JPEG", progressive=True, quality=95),
        "jpeg, grey": saved(base.convert("L"), "JPEG"),
        "jpeg, cmyk": saved(base.convert("CMYK"), "JPEG"),
        "jpeg, turned": saved(base, "JPEG", exif=turned),
        "jpeg, with a profile": saved(base, "JPEG", icc_profile=bytes(200_000), comment=b"c" * 60_000),
        "mpo": saved(base, "MPO", save_all=True, append_images=[base.rotate(180)]),
        "webp": saved(base, "WEBP"),
        "webp, lossless": saved(base, "WEBP", lossless=True),
        "webp, transparent": saved(clear, "WEBP"),
        "webp, animated": saved(base, "WEBP", save_all=True, append_images=[base.rotate(180)]),
        "gif": saved(base.quantize(64), "GIF"),
        "gif, transparent": saved(base.quantize(64), "GIF", transparency=3),
        "gif, animated": saved(base, "GIF", save_all=True, append_images=[base.rotate(180)]),
    }


def test_good_images_come_back_bit_by_bit(decoders: Decoders) -> None:
    """All formats and modes: what the process sends is what decoding here makes, whole, reduced, and resized."""
    fit = Fit(int(Image.Resampling.BICUBIC), None, 28, 28 * 28, 28 * 28 * 2)
    for name, file in good().items():
        plain = images.decode(file, "p")
        sent = decoders.submit_image("a", file, "p", np.array).result(WAIT_S)
        assert np.array_equal(sent, np.asarray(plain)), name
        fitted = decoders.submit_image("a", file, "p", np.array, fit=fit).result(WAIT_S)
        height, width = fit.size(plain.height, plain.width, "p")
        assert np.array_equal(fitted, np.asarray(plain.resize((width, height), Image.Resampling.BICUBIC))), name
    large = saved(Image.effect_noise((1400, 700), 90), "PNG")
    low = decoders.submit_image("a", large, "p", np.array, low=True).result(WAIT_S)
    assert np.array_equal(low, np.asarray(images.decode(large, "p", low=True)))
    assert np.array_equal(decoders.decode_image(large, "p", low=True), low)


def test_sixteen_bits_become_their_upper_eight() -> None:
    """As they did when NumPy shifted them."""
    values = np.random.default_rng(4).integers(0, 65_536, (61, 47), dtype=np.uint16)
    decoded = np.asarray(images.decode(saved(Image.fromarray(values), "PNG"), "p"))
    assert np.array_equal(decoded, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def _processor_s(process: DecodingProcess) -> float:
    """Processor time of a process that runs, Linux only; of all that have ended where it does not."""
    if not process.alive:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="reads processor time from /proc")
def test_hostile_images_are_refused_within_a_second_of_processor_time() -> None:
    """Every kind, and the process that refused it goes on, or is gone at once."""
    process, costs = DecodingProcess(), dict[str, float]()
    for name, file in hostile_images().items():
        if not process.alive:
            process = DecodingProcess()
        before_s = _processor_s(process)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        with pytest.raises(ImageRefusedError):
            process.decode_image(Decode(), file)
            pytest.fail(f"{name} was decoded")
        after_s = _processor_s(process)
        if not process.alive:
            after_s -= ended.ru_utime + ended.ru_stime
        costs[name] = after_s - before_s
    process.kill()
    assert {name: cost for name, cost in costs.items() if cost > REFUSED_S} == {}


def test_odd_images_cost_little(process: DecodingProcess) -> None:
    """Decoded or refused, none of them ends the process: all are within its bounds."""
    for name, file in odd_images().items():
        try:
            process.decode_image(Decode(), file)
        except ImageRefusedError as error:
            assert "too long" not in str(error), name
        assert process.alive, name


def test_image_is_refused_when_its_processor_time_is_spent(decoders: Decoders) -> None:
    """By the system, in the middle of whatever the decoder does; the next image finds a fresh process."""
    file = hostile_images()["jpeg with a flood of hidden segments"]
    with pytest.raises(JobError, match="takes too long to decode") as refused:
        decoders.submit_image("a", file, "images[2]", shape).result(WAIT_S)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "images[2]")
    assert decoders.submit_image("a", SMALL, "p", shape).result(WAIT_S) == (24, 40, 3)


def test_image_is_refused_when_it_takes_too_much_memory() -> None:
    """The process may be gone or go on: the answer is the same, and nothing was held here."""
    process = DecodingProcess(memory_bytes=200 << 20)
    with pytest.raises(ImageRefusedError, match=r"too much memory|can't be decoded"):
        process.decode_image(Decode(), png(MOST_PIXELS, colour=6))
    process.kill()


def test_process_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses no processor time, so a clock on the wall ends it: no fault of the image."""
    monkeypatch.setattr(process_module, "WALL_S", 0.2)
    monkeypatch.setattr(process_module, "END_S", 0.1)
    process = DecodingProcess()
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DecoderLostError, match="no answer in time"):
        process.decode_image(Decode(), SMALL)
    assert not process.alive


def test_cancelled_image_is_given_up_at_once(decoders: Decoders, watched: Watched) -> None:
    """Its process is killed in the middle of it; images that wait are never begun; the next one is decoded."""
    first = decoders.submit_image("a", SLOW, "p", shape)
    second = decoders.submit_image("a", SLOW, "p", shape)
    assert watched.begun.acquire(timeout=WAIT_S)
    assert second.cancel()
    assert first.cancel()
    assert decoders.submit_image("a", SMALL, "p", shape).result(WAIT_S) == (24, 40, 3)
    assert [type(end).__name__ for end in watched.ended] == ["DecoderLostError", "NoneType"]
    assert not watched.processes[0].alive
    with pytest.raises(CancelledError):
        first.result(0)


def test_images_of_one_tenant_wait_for_each_other_and_for_nobody_elses(decoders: Decoders) -> None:
    """Another tenant's image is decoded while the first one's are."""
    slow = [decoders.submit_image("a", SLOW, "p", shape) for _ in range(5)]
    assert decoders.submit_image("b", SMALL, "p", shape).result(WAIT_S) == (24, 40, 3)
    assert sum(one.done() for one in slow) <= 1
    for one in slow:
        one.cancel()


def test_tenants_take_turns(decoders: Decoders, watched: Watched) -> None:
    """Where three share two processes, the one with a single image is not behind all of another's."""
    done: list[str] = []

    def noted(tenant: str) -> Callable[[Any], None]:
        return lambda _: done.append(tenant)

    asked = [decoders.submit_image(tenant, SLOW, "p", noted(tenant)) for tenant in ("a", "b")]
    asked += [decoders.submit_image(tenant, SMALL, "p", noted(tenant)) for tenant in "aaaabbbb"]
    asked.append(decoders.submit_image("c", SMALL, "p", noted("c")))
    assert not wait(asked, timeout=WAIT_S).not_done
    assert done.index("c") <= 3


@pytest.mark.parametrize("kills", [1, 2])
def test_image_is_tried_again_when_its_process_was_killed(decoders: Decoders, watched: Watched, kills: int) -> None:
    """Once: whoever kills it again is told that it was no fault of the file."""
    asked: Future[Any] = decoders.submit_image("a", SLOW, "p", shape)
    for number in range(kills):
        assert watched.begun.acquire(timeout=WAIT_S)
        os.kill(watched.processes[number].pid, signal.SIGKILL)
    if kills == 1:
        assert asked.result(WAIT_S) == (MOST_PIXELS[1], MOST_PIXELS[0], 3)
    else:
        with pytest.raises(JobError) as failed:
            asked.result(WAIT_S)
        assert failed.value.code == Code.ENGINE_ERROR


def test_processes_end_when_nobody_holds_their_decoders(watched: Watched) -> None:
    """An engine that is dropped leaves none behind."""
    decoders = Decoders()
    decoders.submit_image("a", SMALL, "p", shape).result(WAIT_S)
    [process] = watched.processes
    pid = process.pid
    watched.processes.clear()
    del decoders, process
    gc.collect()
    _await_end(pid)


def test_process_ends_with_its_engine() -> None:
    """However that ends: the process reads the end of its socket."""
    script = (
        "import os, signal\n"
        "from worker.decoding.process import DecodingProcess\n"
        "print(DecodingProcess().pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, timeout=WAIT_S)
    _await_end(int(ended.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="reads an environment from /proc")
def test_process_knows_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch, process: DecodingProcess) -> None:
    """No key of anybody's, nothing that is loaded in advance; and it stands back where the processor is wanted."""
    process.decode_image(Decode(), SMALL)
    environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    assert {line.partition(b"=")[0] for line in environment} <= {b"PYTHONPATH", b"LC_CTYPE", b""}
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 5


def _await_end(pid: int) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            os.waitpid(pid, os.WNOHANG)
        except ProcessLookupError:
            return
        except ChildProcessError:
            time.sleep(0.01)
    pytest.fail("it still runs")


def test_image_is_decoded_when_the_engine_holds_more_than_a_decoder_may() -> None:
    """A process inherits the peak of whoever started it: an engine's gigabytes are not the image's."""
    code = """
import sys
from worker.decoding.process import DecodingProcess
from worker.decoding.wire import Decode
held = b"1" * (700 << 20)
DecodingProcess(memory_bytes=600 << 20).decode_image(Decode(), sys.stdin.buffer.read())
"""
    done = subprocess.run([sys.executable, "-c", code], input=SMALL, capture_output=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
