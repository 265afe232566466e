"""The vision engine: an mlx-vlm model behind the same continuous batching as chat, text and image rows side by side."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocol.errors import Code
from protocol.messages import Failed, Ready, ToGateway
from worker.batch.encoder_cache import EncoderCache
from worker.batch.images import Placeholder
from worker.config import WorkerConfig
from worker.device_errors import is_device_error
from worker.engines.base import EngineLoadError, Gauges
from worker.engines.chat.engine import ChatEngine
from worker.engines.chat.preprocessing import ChatPreprocessor
from worker.engines.loading import LoadedModel
from worker.engines.vision.loading import LoadedVision, load_vision
from worker.engines.vision.model import VisualModel
from worker.engines.vision.preprocessing import VisionPreprocessor

log = logging.getLogger("worker")


class VisionEngine(ChatEngine):
    """See `worker.engines.base.Engine`."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(config, clock=clock)
        self._encoder_cache = EncoderCache(config.feature_cache_bytes)
        self._failed_images: list[Placeholder] = []
        self.loaded_vision: LoadedVision
        self._visual: VisualModel

    def _load(self) -> LoadedModel:
        self.loaded_vision = load_vision(self._config)
        self._visual = VisualModel(self.loaded_vision.text.model)
        return msgspec.structs.replace(self.loaded_vision.text, model=self._visual)

    def _make_preprocessor(self) -> ChatPreprocessor:
        name = self.loaded_vision.model_type
        try:
            found = VisionPreprocessor(
                self.loaded_vision,
                self.vocabulary,
                self.markers,
                self.grammars,
                is_encoded=self._encoder_cache.__contains__,
            )
            tokens, images = found.make_probe()
            same = self._visual.check_pieces(images, tokens)
        except Exception as error:
            if is_device_error(error):
                raise
            # Families differ in a hundred ways, and most are unknown here: what is served is what was seen to work.
            raise EngineLoadError(f"vision models of type {name!r} are not supported: {error}") from error
        if not same:
            raise EngineLoadError(f"vision models of type {name!r} are not supported: they can't be computed in pieces")
        return found

    def _image_encoder(self) -> Callable[[Placeholder], None]:
        return self._encode_image

    def _encode_image(self, placeholder: Placeholder) -> None:
        placeholder.features = self._encoder_cache.find_features(placeholder.key)
        if placeholder.features is None:
            try:
                placeholder.features = self._visual.encode_image(placeholder)
            except Exception as error:
                if is_device_error(error):
                    raise
                # No cache of any row has been touched: this image's job fails, and nothing else.
                log.exception("an image could not be encoded")
                self._failed_images.append(placeholder)
                return
            self._encoder_cache.store_features(placeholder.key, placeholder.features)
        placeholder.pixels = None

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """See `Engine.admit`."""
        if prepared.images is not None:
            self._visual.set_positions(prepared.images, prepared.prompt)
        return super().admit(prepared)

    def step(self) -> Sequence[ToGateway]:
        """See `Engine.step`."""
        messages = list(super().step())
        failed, self._failed_images = self._failed_images, []
        for running in list(self.running.values()) if failed else ():
            images, job = running.choices[0].row.images, running.message
            if images is not None and any(placeholder in failed for placeholder in images.placeholders):
                self.cancel(job.job)
                messages.append(Failed(job.job, job.attempt, Code.ENGINE_ERROR, "An image could not be encoded."))
        return messages

    def describe(self) -> Ready:
        """See `Engine.describe`."""
        ready = super().describe()
        return msgspec.structs.replace(
            ready,
            description=f"{ready.family.capitalize()} vision model running on MLX",
            tags=["vision" if tag == "chat" else tag for tag in ready.tags],
            capabilities=[*ready.capabilities, "vision"],
        )

    def forget(self) -> None:
        """Drop every prefix and all features of images that are kept."""
        super().forget()
        self._encoder_cache.clear()

    def gauges(self) -> Gauges:
        """See `Engine.gauges`."""
        features = self._encoder_cache
        return msgspec.structs.replace(
            super().gauges(),
            feature_bytes=features.held_bytes,
            feature_hits=features.hits,
            feature_lookups=features.lookups,
        )
