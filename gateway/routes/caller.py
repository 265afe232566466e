"""What routes ask about who sent a request: which models are theirs, whose cache they share, what they may spend."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.access.estimate import tokens_of_job, tokens_of_text
from gateway.context import CALLER, POOL, TICKET
from gateway.dispatch.stream import JobFailed
from gateway.errors import ApiError
from protocol.messages import EmbedJob, GenerateJob, Kind

if TYPE_CHECKING:
    from gateway.dispatch.model import Model

_NEEDED = MappingProxyType(
    {Kind.CHAT: ("chat",), Kind.VISION: ("vision",), Kind.EMBEDDING: ("embed:text", "embed:image")}
)


def model_of(request: web.Request, name: str | None, kind: Kind) -> "Model":
    """The model for a request of that kind: the only way from a name to a model, so that no route forgets to ask.

    Who may use some models only, and names none, gets the first of them that will do.
    Raises `JobFailed` (see `Roster.resolve`) and `ApiError`: `model_not_allowed`, `insufficient_permissions`.
    """
    pool, caller = request.app[POOL], request[CALLER]
    model = pool.resolve(name, kind)
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


def allowed(request: web.Request, model: "Model") -> bool:
    """Whether the caller may know of a model."""
    return request[CALLER].may_use(model.name, model.source, *model.aliases)


def tenant(request: web.Request) -> str:
    """Whose prompts may share a cache: the key's; all share one where nobody is asked for a key."""
    return request[CALLER].tenant


def reserve(request: web.Request, *jobs: GenerateJob | EmbedJob) -> None:
    """Take from the caller's tokens what the jobs of this request may cost. Raises `ApiError` (429)."""
    ticket = request.get(TICKET)
    if ticket is not None and ticket.counts_tokens:
        ticket.reserve(sum(map(tokens_of_job, jobs)))


def reserve_inputs(request: web.Request, inputs: Sequence[str | tuple[int, ...]]) -> None:
    """The same for texts (or token ids) of which some may be known already. Raises `ApiError` (429)."""
    ticket = request.get(TICKET)
    if ticket is not None and ticket.counts_tokens:
        ticket.reserve(sum(tokens_of_text(one) if isinstance(one, str) else len(one) for one in inputs))
