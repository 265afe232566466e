"""What a job with images needs before the device sees it: besides what every job does, its pictures in their places."""

import importlib
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

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

    def __init__(self, seeing: LoadedVision) -> None:
        text = seeing.text
        super().__init__(text.tokenizer, vocab_size=text.vocab_size, context_length=text.context_length)
        self._model_type = seeing.model_type
        self._message_json: Callable[..., Any] = importlib.import_module("mlx_vlm.prompt_utils").get_message_json

    def _form(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._formed(message) for message in messages]

    def _formed(self, message: dict[str, Any]) -> dict[str, Any]:
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
        seeing: LoadedVision,
        vocabulary: Vocabulary,
        markers: Markers,
        grammars: Grammars,
        *,
        seen: Callable[[tuple[str, bytes]], bool],
    ) -> None:
        self._seeing = seeing
        super().__init__(seeing.text, vocabulary, markers, grammars)
        config = seeing.text.config
        self._image_token = int(config.get("image_token_id") or config["image_token_index"])
        self._mark = self._find_mark()
        self._darkroom = ImageProcessor(seeing.processor, mark=self._mark, image_token=self._image_token, seen=seen)

    def _make_prompter(self) -> Prompter:
        return VisionPrompter(self._seeing)

    def _find_mark(self) -> str:
        """What an image is in a rendered prompt of this family; the processor makes placeholders of it."""
        text = self._prompter.render_chat(PROBE)
        processor = self._seeing.processor
        for name in ("image_token", "boi_token"):
            mark = getattr(processor, name, None)
            if isinstance(mark, str) and mark in text:
                return mark
        raise EngineLoadError(f"vision models of type {self._seeing.model_type!r} are not supported")

    def make_probe(self) -> tuple[list[int], PromptImages]:
        """A prompt with a small picture, as any other would be prepared. Raises `JobError`."""
        data = io.BytesIO()
        PILImage.effect_noise(PROBE_SIZE, 64).save(data, "PNG")
        job = TokenizeJob(0, 0, PROBE, [Image(0, b"probe")])
        shot = _awaited(self._darkroom.plan_image(job.images[0], [data.getvalue()], tenant="", param="images[0]"))
        tokens, scene = self._read(job, [shot])
        if scene is None:
            raise EngineLoadError("a prompt with a picture came out without one")
        return tokens, scene

    def prepare_job(self, job: ModelJob, shown: Sequence[Any] = ()) -> Any:
        """The whole answer, or what the engine admits; of a job with images, whose files are `shown`, in pieces."""
        if isinstance(job, GenerateJob | TokenizeJob) and job.images:
            return self._in_pieces(job, shown)
        return super().prepare_job(job)

    def _in_pieces(self, job: GenerateJob | TokenizeJob, files: Sequence[bytes]) -> Iterator[Any]:
        """Image by image; what is yielded between is what there is to wait for, while others are prepared."""
        shots: list[ImageTask] = []
        for index, image in enumerate(job.images):
            shots.append(
                (yield from self._darkroom.plan_image(image, files, tenant=job.tenant, param=f"images[{index}]"))
            )
        yield from self._pieces(job, shots)

    def _read(
        self, job: GenerateJob | TokenizeJob, shots: Sequence[ImageTask]
    ) -> tuple[list[int], PromptImages | None]:
        if not shots:
            return super()._read(job, shots)
        if not isinstance(job.prompt, ChatPrompt):
            raise JobError(Code.INVALID_REQUEST, "Images belong into the messages of a chat.", "images[0]")
        pieces = self._prompter.render_chat(job.prompt).split(self._mark)
        if len(pieces) != len(shots) + 1:
            raise JobError(
                Code.INVALID_REQUEST,
                f"The model's chat template shows {len(pieces) - 1} of the request's {len(shots)} images.",
                "messages",
            )
        shown = [piece for pair in zip(pieces, (shot.print.text for shot in shots), strict=False) for piece in pair]
        tokens = self._prompter.encode_text("".join([*shown, pieces[-1]]), counted=isinstance(job, TokenizeJob))
        return tokens, PromptImages(self._place(shots, tokens))

    def _place(self, shots: Sequence[ImageTask], tokens: list[int]) -> list[Placeholder]:
        places = np.flatnonzero(np.asarray(tokens) == self._image_token)
        if len(places) != sum(shot.print.tokens for shot in shots):
            raise JobError(Code.INVALID_REQUEST, "The model's tokenizer gives these images no room.", "messages")
        pictures, taken = [], 0
        for shot in shots:
            own = places[taken : taken + shot.print.tokens]
            taken += shot.print.tokens
            pictures.append(
                Placeholder(
                    key=shot.key,
                    places=own,
                    span=tokens[own[0] : own[-1] + 1],
                    grid=shot.print.grid,
                    develop=shot.develop,
                    pixels=shot.pixels,
                )
            )
        return pictures


def _awaited(steps: Generator[Future[Any], None, ImageTask]) -> ImageTask:
    while True:
        try:
            next(steps).result()
        except StopIteration as end:
            shot: ImageTask = end.value
            return shot
