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
        self._features = EncoderCache(config.feature_cache_bytes)
        self._unseeable: list[Placeholder] = []
        self._seeing: LoadedVision
        self._visual: VisualModel

    def _load(self) -> LoadedModel:
        self._seeing = load_vision(self._config)
        self._visual = VisualModel(self._seeing.text.model)
        return msgspec.structs.replace(self._seeing.text, model=self._visual)

    def _make_preparation(self) -> ChatPreprocessor:
        name = self._seeing.model_type
        try:
            found = VisionPreprocessor(
                self._seeing, self._vocabulary, self._markers, self._grammars, seen=self._features.__contains__
            )
            tokens, scene = found.make_probe()
            same = self._visual.check_pieces(scene, tokens)
        except Exception as error:
            # Families differ in a hundred ways, and most are unknown here: what is served is what was seen to work.
            raise EngineLoadError(f"vision models of type {name!r} are not supported: {error}") from error
        if not same:
            raise EngineLoadError(f"vision models of type {name!r} are not supported: they can't be computed in pieces")
        return found

    def _eyes(self) -> Callable[[Placeholder], None]:
        return self._look

    def _look(self, picture: Placeholder) -> None:
        picture.features = self._features.find_features(picture.key)
        if picture.features is None:
            try:
                picture.features = self._visual.encode_image(picture)
            except Exception:
                # No cache of any row has been touched: this picture's job fails, and nothing else.
                log.exception("an image could not be looked at")
                self._unseeable.append(picture)
                return
            self._features.store_features(picture.key, picture.features)
        picture.pixels = None

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """See `Engine.admit`."""
        if prepared.scene is not None:
            self._visual.set_positions(prepared.scene, prepared.prompt)
        return super().admit(prepared)

    def step(self) -> Sequence[ToGateway]:
        """See `Engine.step`."""
        messages = list(super().step())
        unseeable, self._unseeable = self._unseeable, []
        for running in list(self._running.values()) if unseeable else ():
            scene, job = running.choices[0].row.scene, running.message
            if scene is not None and any(picture in unseeable for picture in scene.pictures):
                self.cancel(job.job)
                messages.append(Failed(job.job, job.attempt, Code.ENGINE_ERROR, "An image could not be looked at."))
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
        self._features.clear()

    def gauges(self) -> Gauges:
        """See `Engine.gauges`."""
        features = self._features
        return msgspec.structs.replace(
            super().gauges(),
            feature_bytes=features.held_bytes,
            feature_hits=features.hits,
            feature_lookups=features.lookups,
        )
