"""From the name that a client wrote to a model; pure. A name is a key to look up, never a path."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from gateway.dispatch.state import AdapterView, ModelState
from protocol.messages import Kind

SERVES: Mapping[Kind | None, tuple[Kind, ...]] = MappingProxyType(
    {
        None: (Kind.CHAT, Kind.VISION, Kind.EMBEDDING),
        Kind.CHAT: (Kind.CHAT, Kind.VISION),
        Kind.VISION: (Kind.VISION,),
        Kind.EMBEDDING: (Kind.EMBEDDING,),
    }
)
"""Which kinds of model can answer what a request needs, the one meant for it first. None: any kind will do."""

OPENAI_EMBEDDING_NAMES = frozenset({"text-embedding-ada-002", "text-embedding-3-small", "text-embedding-3-large"})
"""What clients of OpenAI ask for by default: the default embedding model, unless an alias says otherwise."""


KIND_NAMES = frozenset(kind.value for kind in Kind)
"""What the demo models are called, too: who asks for `chat` goes on being served when a real model takes the place."""


def default_of(models: Iterable[ModelState], kind: Kind | None, capability: str = "") -> ModelState | None:
    """Return the model for requests that name none: the best kind, of those not out of order, the oldest.

    One that is known to have the `capability` comes before those that may not.
    """
    serving = [model for model in models if model.kind in SERVES[kind]]
    order = SERVES[kind].index

    def rank(model: ModelState) -> tuple[object, ...]:
        able = not capability or (model.ready is not None and capability in model.ready.capabilities)
        return not able, order(model.kind), not model.may_become_ready, model.created, model.name

    return min(serving, key=rank, default=None)


def everybody(_model: ModelState) -> bool:
    """Who may use all models."""
    return True


def named(
    models: Iterable[ModelState],
    name: str,
    kind: Kind | None,
    capability: str = "",
    usable: Callable[[ModelState], bool] = everybody,
) -> ModelState | None:
    """Look `name` up: served name, adapter, alias, hub id or its last part, OpenAI's name, family, kind.

    Ids and families count only if one model has them. Models that are not `usable` do not count at all: what a name
    leads to must not tell of them.

    A served name or an alias is found whatever its kind, so that the caller can say what is wrong with it.
    """
    known = sorted(models, key=lambda model: model.name)
    for model in known:
        if model.name == name and usable(model):
            return model
    for model in known:
        for adapter, about in model.adapters.items():
            if (name == adapter or name in about.aliases) and usable(view := AdapterView(model, adapter)):
                return view
    known = [model for model in known if usable(model)]
    for model in known:
        if name in model.aliases:
            return model
    by_source = [model for model in known if name in _origins(model)]
    if len(by_source) == 1:
        return by_source[0]
    if kind in (None, Kind.EMBEDDING) and name in OPENAI_EMBEDDING_NAMES:
        return default_of(known, Kind.EMBEDDING, capability)
    family = [model for model in known if model.kind in SERVES[kind] and name.casefold() in _families(model)]
    if len(family) == 1:
        return family[0]
    return default_of(known, Kind(name), capability) if name in KIND_NAMES else None


def _origins(model: ModelState) -> tuple[str, ...]:
    """Return a model's hub id and the last part of it, also where that is its served name."""
    return model.source, model.source.rpartition("/")[2], model.name.rpartition("/")[2]


def _families(model: ModelState) -> set[str]:
    """Return `gemma3_text` and `gemma` for the one and the other way in which people call it."""
    if model.ready is None:
        return set()
    family = model.ready.family.casefold()
    return {family, re.split(r"[^a-z]", family, maxsplit=1)[0]} - {""}
