"""What a job with images needs before the device sees it: besides what every job does, its images in their places."""

import importlib
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import numpy as np
from PIL import Image as PILImage

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob, Image, ModelJob, TokenizeJob
from worker.batch.images import Placeholder, PromptImages
from worker.engines.base import EngineLoadError
from worker.engines.chat.preprocessing import ChatPreprocessor
from worker.engines.chat.prompts import Prompter
from worker.engines.vision.image_processor import ImageProcessor, ImageTask
from worker.engines.vision.loading import LoadedVision
from worker.engines.vocabulary import Vocabulary
from worker.grammar.grammars import Grammars
from worker.text.markers import Markers

PROBE = ChatPrompt(b'[{"role":"user","content":[{"type":"text","text":"What is this?"},{"type":"image"}]}]')
PROBE_SIZE = (96, 64)


class VisionPrompter(Prompter):
    """Renders conversations in the form that mlx-vlm has for the family."""

    sees_images: ClassVar[bool] = True

    def __init__(self, loaded: LoadedVision) -> None:
        # First, because the template is tried out with messages in this form.
        self._model_type = loaded.model_type
        self._message_json: Callable[..., Any] = importlib.import_module("mlx_vlm.prompt_utils").get_message_json
        text = loaded.text
        super().__init__(text.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length)

    def _format_messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._format_message(message) for message in messages]

    def _format_message(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "tool" or "tool_calls" in message:
            return message
        content = message["content"]
        # Images are counted where they stand; a number would add as many again.
        shows = isinstance(content, list)
        try:
            formed = self._message_json(self._model_type, content, message["role"], skip_image_token=not shows)
        except ValueError as error:
            raise JobError(Code.INVALID_REQUEST, f"This model can't take these messages: {error}", "messages") from None
        return {**message, **formed}


class VisionPreprocessor(ChatPreprocessor):
    """Prepares jobs for one loaded vision model."""

    def __init__(
        self,
        loaded: LoadedVision,
        vocabulary: Vocabulary,
        markers: Markers,
        grammars: Grammars,
        *,
        is_encoded: Callable[[tuple[str, bytes]], bool],
    ) -> None:
        self.loaded_vision = loaded
        super().__init__(loaded.text, vocabulary, markers, grammars)
        config = loaded.text.config
        self._image_token = int(config.get("image_token_id") or config["image_token_index"])
        self._mark = self._find_mark()
        self._image_processor = ImageProcessor(
            loaded.processor, mark=self._mark, image_token=self._image_token, is_encoded=is_encoded
        )

    def _make_prompter(self) -> Prompter:
        return VisionPrompter(self.loaded_vision)

    def _find_mark(self) -> str:
        """Return what an image is in a rendered prompt of this family; the processor makes placeholders of it."""
        text = self.prompter.render_chat(PROBE)
        processor = self.loaded_vision.processor
        for name in ("image_token", "boi_token"):
            mark = getattr(processor, name, None)
            if isinstance(mark, str) and mark in text:
                return mark
        raise EngineLoadError(f"vision models of type {self.loaded_vision.model_type!r} are not supported")

    def make_probe(self) -> tuple[list[int], PromptImages]:
        """Return a prompt with a small image, as any other would be prepared. Raises `JobError`."""
        data = io.BytesIO()
        PILImage.effect_noise(PROBE_SIZE, 64).save(data, "PNG")
        job = TokenizeJob(0, 0, PROBE, [Image(0, b"probe")])
        task = _awaited(
            self._image_processor.plan_image(job.images[0], [data.getvalue()], tenant="", param="images[0]")
        )
        tokens, images = self._read_prompt(job, [task])
        if images is None:
            raise EngineLoadError("a prompt with an image came out without one")
        return tokens, images

    def prepare_job(self, job: ModelJob, shown: Sequence[Any] = ()) -> Any:
        """Return the whole answer, or what the engine admits; in pieces for a job with images.

        `shown` are the files of its images.
        """
        if isinstance(job, GenerateJob | TokenizeJob) and job.images:
            return self._in_pieces(job, shown)
        return super().prepare_job(job)

    def _in_pieces(self, job: GenerateJob | TokenizeJob, files: Sequence[bytes]) -> Iterator[Any]:
        """Image by image; what is yielded between is what there is to wait for, while others are prepared."""
        tasks: list[ImageTask] = []
        for index, image in enumerate(job.images):
            tasks.append(
                (yield from self._image_processor.plan_image(image, files, tenant=job.tenant, param=f"images[{index}]"))
            )
        yield from self._pieces(job, tasks)

    def _read_prompt(
        self, job: GenerateJob | TokenizeJob, tasks: Sequence[ImageTask]
    ) -> tuple[list[int], PromptImages | None]:
        if not tasks:
            return super()._read_prompt(job, tasks)
        if not isinstance(job.prompt, ChatPrompt):
            raise JobError(Code.INVALID_REQUEST, "Images belong into the messages of a chat.", "images[0]")
        pieces = self.prompter.render_chat(job.prompt).split(self._mark)
        if len(pieces) != len(tasks) + 1:
            raise JobError(
                Code.INVALID_REQUEST,
                f"The model's chat template shows {len(pieces) - 1} of the request's {len(tasks)} images.",
                "messages",
            )
        shown = [piece for pair in zip(pieces, (task.processed.text for task in tasks), strict=False) for piece in pair]
        tokens = self.prompter.encode_text("".join([*shown, pieces[-1]]), counted=isinstance(job, TokenizeJob))
        return tokens, PromptImages(self._make_placeholders(tasks, tokens))

    def _make_placeholders(self, tasks: Sequence[ImageTask], tokens: list[int]) -> list[Placeholder]:
        places = np.flatnonzero(np.asarray(tokens) == self._image_token)
        if len(places) != sum(task.processed.tokens for task in tasks):
            raise JobError(Code.INVALID_REQUEST, "The model's tokenizer gives these images no room.", "messages")
        placeholders, taken = [], 0
        for task in tasks:
            own = places[taken : taken + task.processed.tokens]
            taken += task.processed.tokens
            placeholders.append(
                Placeholder(
                    key=task.key,
                    places=own,
                    span=tokens[own[0] : own[-1] + 1],
                    grid=task.processed.grid,
                    make_pixels=task.make_pixels,
                    pixels=task.pixels,
                )
            )
        return placeholders


def _awaited(steps: Generator[Future[Any], None, ImageTask]) -> ImageTask:
    while True:
        try:
            next(steps).result()
        except StopIteration as end:
            task: ImageTask = end.value
            return task
