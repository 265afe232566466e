"""`GET /v1/models` and `/v1/models/{id}`."""

from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs, web

from gateway.bodies.body import answer
from gateway.context import HTTP, POOL
from gateway.http.openapi import Operation, mount
from gateway.schema.models import ModelCard, ModelList
from gateway.serving.caller import may_use, visible_model

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState


async def list_models(request: web.Request) -> web.Response:
    """List what is served."""
    everything = [variant for model in request.app[POOL].models() for variant in model.variants]
    cards = [_visible_card(request, model) for model in everything if may_use(request, model)]
    return answer(ModelList(object="list", data=cards))


async def get_model(request: web.Request) -> web.Response:
    """Describe one model, asked for by any name that a request may give it (with `/` raw or percent-encoded)."""
    return answer(_visible_card(request, visible_model(request, request.match_info["id"], None)))


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
