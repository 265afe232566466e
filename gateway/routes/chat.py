"""`POST /v1/chat/completions`."""

import asyncio
from typing import cast

import msgspec
from aiohttp import hdrs, web

from gateway.bodies.body import answer, read
from gateway.context import GENERATION_STATS, IGNORED, IMAGE_RESOLVER, POOL, REQUEST_ID, GenerationStats
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.stats import type_of
from gateway.http.openapi import Operation, mount
from gateway.http.sse import EventStream
from gateway.memory_account import SHARE
from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.parts.answers import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    LogprobBody,
    ToolCallBody,
    usage_of,
)
from gateway.serving.caller import count_job, payload_bytes, reserve, tenant, text_memory
from gateway.serving.chat_chunks import ChatChunks
from gateway.serving.chunk_details import chat_chunks
from gateway.serving.generation import (
    ERRORS,
    closing_extras,
    forget_urls,
    map_image_param,
    model_for,
    timings_asked,
    usage_of_job,
)
from gateway.serving.response_meta import ResponseMeta, finish_of, logprob_of
from protocol.messages import Delta
from protocol.messages import TokenLogprob as JobLogprob

LARGE_BYTES = 1 << 20
SLICE_TOKENS = 128
"""Tokens whose log-probabilities are written between two turns of the event loop."""


async def create(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, whole or as a stream."""
    wanted = await read(request, ChatCompletionRequest)
    images = wanted.image_references
    pool = request.app[POOL]
    model = model_for(request, wanted.model, images)
    kind = type_of(images=bool(images), streamed=bool(wanted.stream))
    request[GENERATION_STATS] = GenerationStats(request_type=kind, model=model.name)
    request[IGNORED].update(wanted.list_unread(model.ready))
    job = wanted.make_job(model.ready, request_id=request[REQUEST_ID], tenant=tenant(request))
    # All that is in them is in the job; only images are still needed, as text, until they are collected.
    wanted, share = msgspec.structs.replace(wanted, messages=[], tools=None), request[SHARE]
    url_bytes = sum(text_memory(image.url) for image in images)
    share.settle_bytes(payload_bytes(job) + url_bytes)
    if share.held_bytes > LARGE_BYTES:
        # Making the job of megabytes took tens of milliseconds, and sending it will.
        await asyncio.sleep(0)
    async with request.app[IMAGE_RESOLVER].resolve_images(images, share) as resolved:
        job = msgspec.structs.replace(job, images=resolved.images)
        await reserve(request, model, job)
        names = forget_urls(images)
        share.release_bytes(url_bytes)
        async with pool.run_job(model, job, resolved.buffers, cache_key=wanted.prompt_cache_key, share=share) as stream:
            count_job(request, stream)
            with map_image_param(names):
                accepted = await stream.wait_accepted()
            meta = ResponseMeta.for_model(model, "chatcmpl")
            if wanted.stream:
                return await _stream(request, wanted, chat_chunks(wanted, meta, accepted), stream)
            return await _whole(request, wanted, meta, stream, prompt=accepted.prompt)


async def _stream(
    request: web.Request, wanted: ChatCompletionRequest, chunks: ChatChunks, stream: JobStream
) -> web.StreamResponse:
    generated = request[GENERATION_STATS]
    async with EventStream(request) as events:
        await events.send_headers()
        await events.send_frames(chunks.encode_opening())
        while (deltas := await stream.next_deltas()) is not None:
            events.check_connection()
            generated.add_text(deltas)
            if frames := chunks.encode_deltas(deltas):
                await events.send_frames(frames)
        spent = usage_of_job(stream)
        generated.tokens = spent.completion_tokens
        await events.end_stream(chunks.encode_closing(*closing_extras(wanted, [spent])))
    return events.response


async def _whole(
    request: web.Request, wanted: ChatCompletionRequest, meta: ResponseMeta, stream: JobStream, *, prompt: list[int]
) -> web.Response:
    deltas = await stream.collect_all()
    spent = usage_of_job(stream)
    request[GENERATION_STATS].add_text(deltas)
    request[GENERATION_STATS].tokens = spent.completion_tokens
    return answer(
        ChatCompletion(
            id=meta.id,
            object="chat.completion",
            created=meta.created,
            model=meta.model,
            system_fingerprint=meta.system_fingerprint,
            choices=[await _choice(delta, wanted) for delta in deltas],
            usage=usage_of([spent]),
            timings=timings_asked(wanted, [spent]),
            prompt_token_ids=prompt if wanted.return_token_ids else None,
        )
    )


async def _choice(delta: Delta, wanted: ChatCompletionRequest) -> ChatChoice:
    calls = [
        ToolCallBody(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in delta.calls
    ]
    reasoning = delta.reasoning if wanted.tells_reasoning else ""
    message = ChatMessage(
        role="assistant",
        content=None if calls and not delta.text else delta.text,
        reasoning_content=reasoning or None,
        reasoning=reasoning or None,
        tool_calls=calls or None,
    )
    found = ChatLogprobs(content=await _written(delta.logprobs)) if wanted.logprobs else None
    return ChatChoice(
        index=delta.choice,
        message=message,
        logprobs=found,
        finish_reason=finish_of(delta),
        token_ids=delta.tokens if wanted.return_token_ids else msgspec.UNSET,
    )


async def _written(tokens: list[JobLogprob]) -> list[LogprobBody]:
    """Encode each token's entry now: with 20 alternatives each, thousands of them take long."""
    written: list[msgspec.Raw] = []
    for start in range(0, len(tokens), SLICE_TOKENS):
        written += [
            msgspec.Raw(msgspec.json.encode(logprob_of(token))) for token in tokens[start : start + SLICE_TOKENS]
        ]
        if start:
            await asyncio.sleep(0)
    return cast("list[LogprobBody]", written)


OPERATIONS = (
    Operation(
        method=hdrs.METH_POST,
        path="/v1/chat/completions",
        handler=create,
        summary="Answer a conversation",
        tag="Chat",
        access=("chat", "vision"),
        body=ChatCompletionRequest,
        example={"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64},
        answer=ChatCompletion,
        chunk=ChatCompletionChunk,
        errors=ERRORS,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
