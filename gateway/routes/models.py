"""`GET /v1/models` and `/v1/models/{id}`."""

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from gateway.access.gate import CALLER
from gateway.bodies.body import answer
from gateway.context import HTTP, POOL
from gateway.http.openapi import Operation, mount
from gateway.schema.errors import invalid
from gateway.schema.models import ModelCard, ModelList
from gateway.serving.caller import NEEDED, may_use, visible_model
from protocol.messages import Kind

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState


TYPES = MappingProxyType(
    {
        Kind.CHAT: ("llm", "text-generation"),
        Kind.VISION: ("vlm", "image-text-to-text"),
        Kind.EMBEDDING: ("embedding", "feature-extraction"),
    }
)
"""What others call the kinds."""
KINDS = MappingProxyType(
    {"llm": Kind.CHAT, "chat": Kind.CHAT, "vlm": Kind.VISION, "vision": Kind.VISION, "embedding": Kind.EMBEDDING}
)
"""By the names that a query may give them."""
SHOWN_CHARS = 32


async def list_models(request: web.Request) -> web.Response:
    """List what is served, or some kinds of it: `?type=llm,vlm`.

    Whoever may chat, or embed, sees the models that can do so: many clients offer whatever is listed for a chat.
    """
    wanted = _wanted_kinds(request)
    caller = request[CALLER]
    usable = {kind for kind in Kind if caller.has_permission(*NEEDED[kind])} or {*Kind}
    everything = [variant for model in request.app[POOL].models() for variant in model.variants]
    cards = [
        _visible_card(request, model)
        for model in everything
        if model.kind in usable & wanted and may_use(request, model)
    ]
    return answer(ModelList(object="list", data=cards))


async def get_model(request: web.Request) -> web.Response:
    """Describe one model, asked for by any name that a request may give it (with `/` raw or percent-encoded)."""
    return answer(_visible_card(request, visible_model(request, request.match_info["id"], None)))


def _wanted_kinds(request: web.Request) -> set[Kind]:
    asked = request.query.get("type", "")
    if not asked:
        return {*Kind}
    names = {name.strip().lower() for name in asked.split(",")}
    if unknown := names - KINDS.keys():
        shown = min(unknown)[:SHOWN_CHARS]
        raise invalid(f"'type' is one or more of {', '.join(KINDS)}; '{shown}' is none.", "type")
    return {KINDS[name] for name in names}


def _visible_card(request: web.Request, model: "ModelState") -> ModelCard:
    found = card(model, request.app[HTTP].tier)
    if model.base is not None and not may_use(request, model.base):
        # Who may use the adapter alone is not told what it belongs to.
        found = msgspec.structs.replace(found, parent=None)
    return found


def card(model: "ModelState", tier: str) -> ModelCard:
    """Return what the list says of a model."""
    ready, base = model.ready, model.base
    return ModelCard(
        id=model.name,
        object="model",
        created=model.created,
        owned_by="local-mlx",
        description=ready.description if ready else "",
        context_length=ready.context_length if ready else None,
        family=ready.family if ready else "",
        tags=ready.tags if ready else [],
        tier=tier,
        kind=model.kind.value,
        state=model.state,
        replicas=model.replicas,
        root=base.adapters[model.name].source if base else model.source,
        parent=base.name if base else None,
        capabilities=ready.capabilities if ready else [],
        type=TYPES[model.kind][0],
        task=TYPES[model.kind][1],
    )


OPERATIONS = (
    Operation(
        method=hdrs.METH_GET,
        path="/v1/models",
        handler=list_models,
        summary="List the served models",
        tag="Models",
        access=("models",),
        answer=ModelList,
        errors=("invalid_request",),
    ),
    Operation(
        method=hdrs.METH_GET,
        path="/v1/models/{id:.+}",
        handler=get_model,
        summary="Describe one model",
        tag="Models",
        access=("models",),
        answer=ModelCard,
        errors=("model_not_found", "model_not_ready"),
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
