"""`POST /v1/tokenize` and `/v1/detokenize`, `GET /v1/tokenizer_info`; all of them at the root, too."""

import msgspec
from aiohttp import hdrs, web

from gateway.access.estimate import tokens_of_prompt
from gateway.access.price import counting
from gateway.bodies.body import answer, read
from gateway.context import IGNORED, IMAGE_RESOLVER, POOL
from gateway.http.openapi import Operation, mount
from gateway.memory_account import SHARE
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.template_options import name_unread
from gateway.schema.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from gateway.serving.caller import model_of, payload_bytes, reserve_price, tenant, text_memory
from gateway.serving.generation import ERRORS, forget_urls, map_image_param, model_for
from protocol.messages import Text, Tokens

ACCESS = ("chat", "vision", "embed:text")


async def tokenize(request: web.Request) -> web.Response:
    """Count and name the tokens of a text or a conversation."""
    wanted = await read(request, TokenizeRequest)
    images = wanted.image_references
    pool = request.app[POOL]
    # Embedding models have tokens, too.
    model = model_for(request, wanted.model, images) if images else model_of(request, wanted.model, None)
    request[IGNORED].update(name_unread(wanted.chat_template_kwargs, model.ready))
    job, share = wanted.make_job(tenant=tenant(request)), request[SHARE]
    del wanted
    url_bytes = sum(text_memory(image.url) for image in images)
    share.settle_bytes(payload_bytes(job) + url_bytes)
    async with request.app[IMAGE_RESOLVER].resolve_images(images, share) as resolved:
        job = msgspec.structs.replace(job, images=resolved.images)
        names = forget_urls(images)
        await reserve_price(request, counting(tokens_of_prompt(job.prompt), len(job.images)))
        share.release_bytes(url_bytes)
        async with pool.run_job(model, job, resolved.buffers, share=share) as stream:
            with map_image_param(names):
                result = await stream.wait_result()
    if not isinstance(result, Tokens) or model.ready is None:
        raise ApiError("internal_error", detail="a tokenize job was not answered by tokens of a ready worker")
    return answer(
        TokenizeAnswer(tokens=result.tokens, count=len(result.tokens), max_model_len=model.ready.context_length)
    )


async def detokenize(request: web.Request) -> web.Response:
    """Turn tokens into text."""
    wanted = await read(request, DetokenizeRequest)
    pool = request.app[POOL]
    model = model_of(request, wanted.model, None)
    job = wanted.make_job(model.ready, tenant=tenant(request))
    await reserve_price(request, counting(len(job.tokens)))
    async with pool.run_job(model, job, share=request[SHARE]) as stream:
        result = await stream.wait_result()
    if not isinstance(result, Text):
        raise ApiError("internal_error", detail="a detokenize job was not answered by text")
    return answer(DetokenizeAnswer(prompt=result.text))


async def tokenizer_info(request: web.Request) -> web.Response:
    """Tell what the tokenizer of the model that `?model=` names says of itself; else of the default one."""
    model = model_of(request, request.query.get("model"), None)
    if model.ready is None:
        raise ApiError("model_not_ready")
    if not model.ready.tokenizer_info:
        raise invalid(f"The model '{model.name}' tells nothing of its tokenizer.", "model")
    return answer(msgspec.json.decode(model.ready.tokenizer_info, type=TokenizerInfo))


OPERATIONS = tuple(
    operation
    for prefix in ("/v1", "")
    for operation in (
        Operation(
            method=hdrs.METH_POST,
            path=f"{prefix}/tokenize",
            handler=tokenize,
            summary="Text or conversation to tokens",
            tag="Tokens",
            access=ACCESS,
            body=TokenizeRequest,
            example={"prompt": "Hello!"},
            answer=TokenizeAnswer,
            errors=ERRORS,
        ),
        Operation(
            method=hdrs.METH_POST,
            path=f"{prefix}/detokenize",
            handler=detokenize,
            summary="Tokens to text",
            tag="Tokens",
            access=ACCESS,
            body=DetokenizeRequest,
            example={"tokens": [1, 2, 3]},
            answer=DetokenizeAnswer,
            errors=ERRORS,
        ),
        Operation(
            method=hdrs.METH_GET,
            path=f"{prefix}/tokenizer_info",
            handler=tokenizer_info,
            summary="What a tokenizer's files say",
            tag="Tokens",
            access=ACCESS,
            answer=TokenizerInfo,
            errors=("invalid_request", "model_not_found", "model_not_ready"),
        ),
    )
)
"""Under both names: vLLM has them at the root."""


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
