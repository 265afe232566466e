"""What routes ask about who sent a request: which models are theirs, whose cache they share, what they may spend."""

import contextlib
from collections.abc import Iterable
from difflib import get_close_matches
from sys import getsizeof
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.access.estimate import IMAGE_TOKENS, tokens_of_job, tokens_of_text
from gateway.access.gate import CALLER, QUOTA, WORK
from gateway.context import GENERATION_STATS, POOL
from gateway.dispatch.jobs.stream import JobStream
from gateway.embedding_cache import CacheKey
from gateway.job_failure import JobFailed
from gateway.schema.errors import ApiError
from protocol.messages import ChatPrompt, GenerateJob, Kind, TextPrompt, TokenizeJob, TokenPrompt

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

LISTED = 20
"""Names of models that a refusal lists."""
TOKEN_BYTES = 40
"""A number of Python's, and its place in a list."""
NEEDED = MappingProxyType(
    {Kind.CHAT: ("chat",), Kind.VISION: ("vision",), Kind.EMBEDDING: ("embed:text", "embed:image")}
)


def model_of(request: web.Request, name: str | None, kind: Kind | None, capability: str = "") -> "ModelState":
    """Return the model for a request of that kind: the only way from a name to a model; no route forgets to ask.

    Who may use some models only is told of no others: names are looked up among theirs, and all that leads to none of
    those is refused in the same words, whether it is served or not. Who names none gets the default one of theirs.
    A `kind` of None: any; of those that nobody named, one with the `capability` is preferred.
    Raises `JobFailed` (see `Roster.resolve`) and `ApiError`: `model_not_allowed`, `insufficient_permissions`.
    """
    caller = request[CALLER]
    try:
        model = _resolve(request, name, kind, capability)
    except JobFailed as failure:
        if name is not None and caller.models and name not in caller.models and failure.code == "model_not_found":
            message = f"The API key does not allow the use of the model {name[:100]!r}.{_list_names(request, name)}"
            raise ApiError("model_not_allowed", message, "model") from None
        if name is not None and failure.code == "model_not_found":
            failure.message += _list_names(request, name)
        raise
    if not caller.has_permission(*NEEDED[model.kind]):
        wanted = " or ".join(f"'{permission}'" for permission in NEEDED[model.kind])
        raise ApiError("insufficient_permissions", f"The model '{model.name}' asks for the permission {wanted}.")
    return model


def _list_names(request: web.Request, name: str) -> str:
    """Return the nearest name and what the caller may use, for one who may list models and named none that exists."""
    if not request[CALLER].has_permission("models", "admin"):
        return ""
    everything = [variant for model in request.app[POOL].models() for variant in model.variants]
    own = [model for model in everything if may_use(request, model)]
    # All names by which a model can be asked for; the shortest part of a hub id is what people mistype.
    spellings = {
        spelling.casefold(): model.name
        for model in own
        for spelling in (model.source.rpartition("/")[2], model.name.rpartition("/")[2], *model.aliases, model.name)
    }
    near = get_close_matches(name[:100].casefold(), spellings, n=1)
    hint = f" Did you mean {spellings[near[0]]!r}?" if near else ""
    names = ", ".join(model.name for model in own[:LISTED]) + (f" and {len(own) - LISTED} more" * (len(own) > LISTED))
    return f"{hint} Served here: {names}." if own else hint


def visible_model(request: web.Request, name: str | None, kind: Kind | None) -> "ModelState":
    """Return the model that a caller wants to know of. Raises as `Pool.resolve`; what is not theirs is not there."""
    try:
        return _resolve(request, name, kind)
    except JobFailed as failure:
        if name is not None and failure.code == "model_not_found":
            failure.message += _list_names(request, name)
        raise


def _resolve(request: web.Request, name: str | None, kind: Kind | None, capability: str = "") -> "ModelState":
    pool, caller = request.app[POOL], request[CALLER]
    if not caller.models:
        return pool.find_model(name, kind, capability)

    def usable(model: "ModelState") -> bool:
        return may_use(request, model)

    try:
        return pool.find_model(name, kind, capability, usable=usable)
    except JobFailed:
        # A model is nobody's default with one of its adapters, unless they have nothing else.
        for own in sorted(caller.models) if name is None else ():
            with contextlib.suppress(JobFailed):
                return pool.find_model(own, kind, usable=usable)
        raise


def may_use(request: web.Request, model: "ModelState") -> bool:
    """Return whether the caller may use a model: by its served name or an alias of that, not by its origin.

    A model with one of its adapters is another model than without: neither opens the other.
    """
    return request[CALLER].may_use_model(model.name, *model.aliases)


def tenant(request: web.Request) -> str:
    """Return whose prompts may share a cache: the key's; all share one where nobody is asked for a key."""
    return request[CALLER].tenant


def count_job(request: web.Request, stream: JobStream) -> None:
    """Charge a job's work to its caller, and name it in the request's line of the log."""
    if (generated := request.get(GENERATION_STATS)) is not None:
        generated.streams.append(stream)
    if (work := request.get(WORK)) is not None:
        work.streams.append(stream)


def charge(request: web.Request, tokens: int) -> None:
    """Charge work that is no job, or whose job counts no tokens, to its caller."""
    if (work := request.get(WORK)) is not None:
        work.extra += tokens


async def reserve_price(request: web.Request, tokens: int) -> None:
    """Take a price from the caller's tokens, and charge it. Raises `ApiError` (429)."""
    quota = request.get(QUOTA)
    if quota is not None and quota.counts_tokens:
        await quota.reserve_tokens(tokens)
    charge(request, tokens)


async def reserve(request: web.Request, model: "ModelState", *jobs: GenerateJob) -> None:
    """Take from the caller's tokens what the jobs of this request may cost. Raises `ApiError` (429)."""
    quota = request.get(QUOTA)
    if quota is not None and quota.counts_tokens:
        most = model.ready.context_length if model.ready is not None else None
        await quota.reserve_tokens(sum(tokens_of_job(job, most) for job in jobs))


async def reserve_inputs(request: web.Request, inputs: Iterable[CacheKey]) -> None:
    """Reserve texts, token ids and digests of images, known already or not. Raises `ApiError` (429)."""
    quota = request.get(QUOTA)
    if quota is not None and quota.counts_tokens:
        await quota.reserve_tokens(sum(map(_tokens, inputs)))


def payload_bytes(job: GenerateJob | TokenizeJob) -> int:
    """Return what the prompt of a job takes in memory until its worker has done."""
    match job.prompt:
        case ChatPrompt(messages=messages, tools=tools):
            return len(messages) + len(tools or b"")
        case TextPrompt(text=text):
            return text_memory(text)
        case TokenPrompt(tokens=tokens):
            return len(tokens) * TOKEN_BYTES


def text_memory(text: str) -> int:
    """Return what a text takes in memory, with the UTF-8 that Python keeps beside it once it was sent."""
    return getsizeof(text) * (1 if text.isascii() else 2)


def _tokens(one: CacheKey) -> int:
    match one:
        case str():
            return tokens_of_text(one)
        case bytes():
            return IMAGE_TOKENS
        case _:
            return len(one)
