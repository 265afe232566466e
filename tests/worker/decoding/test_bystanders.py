"""What a vision engine's other requests notice of images that are made to hurt: nothing to speak of."""

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostility.pictures import hostile_images, odd_images, scans

from protocol.errors import Code
from protocol.messages import Failed, TextPrompt, TokenizeJob, Tokens
from tests.support.picture_files import picture
from tests.support.vision_runs import look
from worker.config import WorkerConfig
from worker.engines.vision.engine import VisionEngine
from worker.process.preprocessor import Admitted, Preprocessor

pytestmark = [pytest.mark.mlx, pytest.mark.alone]

LONGER_S = 3.0
WAIT_S = 90.0


class Answers:
    """A reception in front of an engine; `came` holds what left it, by job, and when."""

    def __init__(self, engine: VisionEngine) -> None:
        self._out: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.came: dict[int, Any] = {}
        self.preprocessor = Preprocessor(
            prepare=engine.prepare,
            admit=lambda admit: self._out.put((admit.job, admit)),
            send=lambda _epoch, messages: [self._out.put((message.job, message)) for message in messages],  # type: ignore[union-attr]
        )
        self.preprocessor.start()

    def wait(self, job: int) -> Any:
        while job not in self.came:
            number, message = self._out.get(timeout=WAIT_S)
            self.came[number] = message
        return self.came[job]

    def text_s(self, job: int) -> float:
        """How long a text takes to be read."""
        began = time.perf_counter()
        self.preprocessor.take_job(1, TokenizeJob(job, 1, TextPrompt("What is this?")))
        assert isinstance(self.wait(job), Tokens)
        return time.perf_counter() - began


@pytest.fixture(scope="module")
def engine(model_folder: Callable[[str], Path]) -> VisionEngine:
    made = VisionEngine(WorkerConfig(model_path=str(model_folder("qwen2-vl")), served_name="m"))
    made.load()
    return made


def test_texts_wait_no_longer_when_images_are_made_to_hurt(engine: VisionEngine) -> None:
    """Images of eight tenants, hostile and merely large; texts meanwhile; then every image's own answer."""
    hostile, large = hostile_images(), odd_images()["jpeg of 30 large scans in three colours"]
    answers = Answers(engine)
    alone_s = max(answers.text_s(1000 + number) for number in range(20))
    files = [large, *hostile.values()]
    for number, file in enumerate(files):
        answers.preprocessor.take_job(1, look(number, [file], (0, "?"), tenant=f"t{number % 8}", max_tokens=1), [file])
    waits_s = []
    number = 2000
    while answers.preprocessor.waiting:
        waits_s.append(answers.text_s(number))
        number += 1
        time.sleep(0.01)
    assert len(waits_s) > 10
    assert max(waits_s) - alone_s <= LONGER_S
    assert isinstance(answers.wait(0), Admitted)
    for number, name in enumerate(hostile, 1):
        failed = answers.wait(number)
        assert isinstance(failed, Failed), name
        assert (failed.code, failed.param) == (Code.INVALID_REQUEST, "images[0]"), name


def test_image_work_ends_when_its_request_is_cancelled(engine: VisionEngine) -> None:
    """Sixteen large images of one tenant are given up at once: its next image is not behind them."""
    answers = Answers(engine)
    files = [scans(30 - number, components=3) for number in range(16)]
    turn: list[Any] = [*range(16), "?"]
    asked = look(1, files, turn, tenant="left", max_tokens=1)
    answers.preprocessor.take_job(1, asked, files)
    answers.text_s(2)
    assert answers.preprocessor.cancel_job(1, asked.job, asked.attempt)
    began = time.perf_counter()
    file = picture((64, 64))
    answers.preprocessor.take_job(1, look(3, [file], (0, "?"), tenant="left", max_tokens=1), [file])
    assert isinstance(answers.wait(3), Admitted)
    # All sixteen take ten times as long.
    assert time.perf_counter() - began < 15
    assert 1 not in answers.came
