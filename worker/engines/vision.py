"""The vision engine: an mlx-vlm model behind the same continuous batching as chat, text and image rows side by side."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocol.messages import Ready, ToGateway
from worker.batch.features import FeatureCache
from worker.batch.scene import Picture
from worker.config import WorkerConfig
from worker.engines.base import Gauges
from worker.engines.chat import ChatEngine
from worker.engines.loading import Loaded
from worker.engines.preparation import Preparation
from worker.engines.vision_loading import Seeing, load_vision
from worker.engines.vision_preparation import VisionPreparation
from worker.engines.visual import VisualModel


class VisionEngine(ChatEngine):
    """See `worker.engines.base.Engine`."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(config, clock=clock)
        self._features = FeatureCache(config.feature_cache_bytes)
        self._seeing: Seeing
        self._visual: VisualModel

    def _load(self) -> Loaded:
        self._seeing = load_vision(self._config)
        self._visual = VisualModel(self._seeing.text.model)
        return msgspec.structs.replace(self._seeing.text, model=self._visual)

    def _make_preparation(self) -> Preparation:
        return VisionPreparation(self._seeing, self._vocabulary, self._markers, seen=self._features.__contains__)

    def _look(self, picture: Picture) -> None:
        picture.features = self._features.get(picture.key)
        if picture.features is None:
            picture.features = self._visual.look(picture)
            self._features.put(picture.key, picture.features)
        picture.pixels = None

    def admit(self, prepared: Any) -> Sequence[ToGateway]:
        """See `Engine.admit`."""
        if prepared.scene is not None:
            self._visual.locate(prepared.scene, prepared.prompt)
        return super().admit(prepared)

    def describe(self) -> Ready:
        """See `Engine.describe`."""
        ready = super().describe()
        return msgspec.structs.replace(
            ready,
            description=f"{ready.family.capitalize()} vision model running on MLX",
            tags=["vision" if tag == "chat" else tag for tag in ready.tags],
            capabilities=[*ready.capabilities, "vision"],
        )

    def gauges(self) -> Gauges:
        """See `Engine.gauges`."""
        features = self._features
        return msgspec.structs.replace(
            super().gauges(),
            feature_bytes=features.held_bytes,
            feature_hits=features.hits,
            feature_lookups=features.lookups,
        )
