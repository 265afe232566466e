"""What routes ask about who sent a request: which models are theirs, whose cache they share, what they may spend."""

from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.access.estimate import IMAGE_TOKENS, tokens_of_job, tokens_of_text
from gateway.access.gate import CALLER, TICKET
from gateway.context import POOL
from gateway.dispatch.stream import JobFailed
from gateway.errors import ApiError
from gateway.vectors import Key
from protocol.messages import EmbedJob, GenerateJob, Kind

if TYPE_CHECKING:
    from gateway.dispatch.model import Model

_NEEDED = MappingProxyType(
    {Kind.CHAT: ("chat",), Kind.VISION: ("vision",), Kind.EMBEDDING: ("embed:text", "embed:image")}
)


def model_of(request: web.Request, name: str | None, kind: Kind | None, capability: str = "") -> "Model":
    """The model for a request of that kind: the only way from a name to a model, so that no route forgets to ask.

    Who may use some models only, and names none, gets the first of them that will do. A `kind` of None: any; of those
    that nobody named, one with the `capability` is preferred.
    Raises `JobFailed` (see `Roster.resolve`) and `ApiError`: `model_not_allowed`, `insufficient_permissions`.
    """
    pool, caller = request.app[POOL], request[CALLER]
    model = pool.resolve(name, kind, capability)
    if name is None and not allowed(request, model):
        for own in sorted(caller.models):
            try:
                model = pool.resolve(own, kind)
                break
            except JobFailed:
                continue
    if not allowed(request, model):
        raise ApiError("model_not_allowed", f"The API key does not allow the use of the model '{model.name}'.", "model")
    if not caller.may(*_NEEDED[model.kind]):
        wanted = " or ".join(f"'{permission}'" for permission in _NEEDED[model.kind])
        raise ApiError("insufficient_permissions", f"The model '{model.name}' asks for the permission {wanted}.")
    return model


def shown(request: web.Request, name: str | None, kind: Kind | None) -> "Model":
    """The model that a caller wants to know of. Raises as `Pool.resolve`; what is not theirs is not there."""
    model = request.app[POOL].resolve(name, kind)
    if not allowed(request, model):
        raise ApiError("model_not_found", f"The model {(name or model.name)[:100]!r} does not exist.", "model")
    return model


def allowed(request: web.Request, model: "Model") -> bool:
    """Whether the caller may know of a model."""
    return request[CALLER].may_use(model.name, model.source, *model.aliases)


def tenant(request: web.Request) -> str:
    """Whose prompts may share a cache: the key's; all share one where nobody is asked for a key."""
    return request[CALLER].tenant


async def reserve(request: web.Request, *jobs: GenerateJob | EmbedJob) -> None:
    """Take from the caller's tokens what the jobs of this request may cost. Raises `ApiError` (429)."""
    ticket = request.get(TICKET)
    if ticket is not None and ticket.counts_tokens:
        await ticket.reserve(sum(map(tokens_of_job, jobs)))


async def reserve_inputs(request: web.Request, inputs: Iterable[Key]) -> None:
    """The same for texts, token ids and digests of images, known already or not. Raises `ApiError` (429)."""
    ticket = request.get(TICKET)
    if ticket is not None and ticket.counts_tokens:
        await ticket.reserve(sum(map(_tokens, inputs)))


def _tokens(one: Key) -> int:
    match one:
        case str():
            return tokens_of_text(one)
        case bytes():
            return IMAGE_TOKENS
        case _:
            return len(one)
