"""`GET /v1/models`."""

from typing import Literal

from gateway.schema.base import Answer


class ModelCard(Answer, frozen=True, kw_only=True):
    """One served model. `context_length` is null until a worker of it has been ready once.

    `root` is what it was loaded from: a hub id, or the last part of a path. `parent` is set for LoRA adapters: the
    model that they adapt. `capabilities` says what it does, and what its chat template takes as it comes.
    model that they adapt. `type` (`llm`, `vlm`, `embedding`) is what LM Studio calls kinds, `task` what the hub does.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    description: str
    context_length: int | None
    family: str
    tags: list[str]
    tier: str
    kind: str
    state: str
    replicas: int
    root: str
    parent: str | None
    capabilities: list[str]
    type: str
    task: str


class ModelList(Answer, frozen=True, kw_only=True):
    """All served models."""

    object: Literal["list"]
    data: list[ModelCard]
