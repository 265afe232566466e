"""`POST /v1/completions`: one job per prompt, side by side, as one answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec
from aiohttp import hdrs, web

from gateway.bodies.body import answer, read
from gateway.context import GENERATION_STATS, POOL, REQUEST_ID, GenerationStats
from gateway.dispatch.jobs.stream import JobStream
from gateway.dispatch.stats import type_of
from gateway.http.openapi import Operation, mount
from gateway.http.sse import EventStream
from gateway.memory_account import SHARE
from gateway.schema.completion import CompletionRequest
from gateway.schema.parts.answers import Completion, TextChoice, usage_of
from gateway.serving.caller import count_job, model_of, payload_bytes, reserve, tenant
from gateway.serving.chunk_details import DetailedTextChunks, text_chunks
from gateway.serving.generation import ERRORS, closing_extras, timings_asked, usage_of_job
from gateway.serving.response_meta import ResponseMeta
from gateway.serving.text_chunks import pick_best, text_choice
from protocol.messages import Accepted, Delta, GenerateJob, Kind
from protocol.messages import Usage as JobUsage

if TYPE_CHECKING:
    from gateway.dispatch.state import ModelState

T = TypeVar("T")

SIDE_BY_SIDE = 16
"""Jobs of one request in the pool at once, so that the largest legal request fits the queue of an idle pool."""


async def create(request: web.Request) -> web.StreamResponse:
    """Continue one or several texts, whole or as a stream."""
    wanted = await read(request, CompletionRequest)
    model = model_of(request, wanted.model, Kind.CHAT)
    jobs = wanted.make_jobs(model.ready, request_id=request[REQUEST_ID], tenant=tenant(request))
    kind = type_of(images=False, streamed=bool(wanted.stream))
    request[GENERATION_STATS] = GenerationStats(request_type=kind, model=model.name)
    # All that is in it is in the jobs.
    wanted = msgspec.structs.replace(wanted, prompt="")
    request[SHARE].settle_bytes(sum(map(payload_bytes, jobs)))
    await reserve(request, model, *jobs)
    if wanted.stream:
        return await _stream(request, wanted, model, jobs)
    return await _whole(request, wanted, model, jobs)


async def _stream(
    request: web.Request, wanted: CompletionRequest, model: "ModelState", jobs: list[GenerateJob]
) -> web.StreamResponse:
    n = wanted.n or 1
    chunks = text_chunks(wanted, ResponseMeta.for_model(model, "cmpl"), choices=n * len(jobs))
    generated = request[GENERATION_STATS]
    async with EventStream(request) as events:

        async def relay(prompt: int, stream: JobStream, accepted: Accepted) -> JobUsage:
            await events.send_headers()
            if isinstance(chunks, DetailedTextChunks):
                chunks.begin_job(accepted, range(prompt * n, (prompt + 1) * n))
            while (deltas := await stream.next_deltas()) is not None:
                events.check_connection()
                generated.add_text(deltas, prompt * n)
                if frames := chunks.encode_deltas(deltas, prompt * n):
                    await events.send_frames(frames)
            return usage_of_job(stream)

        costs = await _run(request, model, jobs, relay)
        generated.tokens = sum(part.completion_tokens for part in costs)
        await events.end_stream(chunks.encode_closing(*closing_extras(wanted, costs)))
    return events.response


async def _whole(
    request: web.Request, wanted: CompletionRequest, model: "ModelState", jobs: list[GenerateJob]
) -> web.Response:
    async def collect(
        prompt: int, stream: JobStream, accepted: Accepted
    ) -> tuple[int, list[Delta], JobUsage, list[int]]:
        deltas, spent = await stream.collect_all(), usage_of_job(stream)
        if wanted.ranked:
            deltas = pick_best(deltas, n, prompt_tokens=spent.prompt_tokens if wanted.echo else 0)
        return prompt, deltas, spent, accepted.prompt

    n = wanted.n or 1
    results = await _run(request, model, jobs, collect)
    costs = [spent for _, _, spent, _ in results]
    for prompt, deltas, _, _ in results:
        request[GENERATION_STATS].add_text(deltas, prompt * n)
    request[GENERATION_STATS].tokens = sum(part.completion_tokens for part in costs)
    meta = ResponseMeta.for_model(model, "cmpl")
    return answer(
        Completion(
            id=meta.id,
            object="text_completion",
            created=meta.created,
            model=meta.model,
            system_fingerprint=meta.system_fingerprint,
            choices=[
                await _written(_choice(wanted, delta, prompt * n + delta.choice, ids))
                for prompt, deltas, _, ids in results
                for delta in deltas
            ],
            usage=usage_of(costs),
            timings=timings_asked(wanted, costs),
        )
    )


def _choice(wanted: CompletionRequest, delta: Delta, index: int, prompt: list[int]) -> TextChoice:
    choice = text_choice(delta, index, alternatives=wanted.logprobs)
    if not wanted.return_token_ids:
        return choice
    return msgspec.structs.replace(choice, token_ids=delta.tokens, prompt_token_ids=prompt)


async def _written(choice: TextChoice) -> TextChoice:
    """Encode a choice now where it has log-probabilities: with those of a long prompt it takes long."""
    if choice.logprobs is None:
        return choice
    await asyncio.sleep(0)
    return cast("TextChoice", msgspec.Raw(msgspec.json.encode(choice)))


async def _run(
    request: web.Request,
    model: "ModelState",
    jobs: list[GenerateJob],
    each: Callable[[int, JobStream, Accepted], Awaitable[T]],
) -> list[T]:
    """Run `each` on every job once it was accepted; results in the jobs' order. The first failure cancels the rest."""
    room = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(index: int, job: GenerateJob) -> T:
        async with room, request.app[POOL].run_job(model, job, share=request[SHARE]) as stream:
            count_job(request, stream)
            return await each(index, stream, await stream.wait_accepted())

    if len(jobs) == 1:
        return [await one(0, jobs[0])]
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(one(index, job)) for index, job in enumerate(jobs)]
        return [task.result() for task in tasks]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        # A task keeps its error, whose traceback leads back here: a circle that would keep the jobs' megabytes.
        tasks.clear()


OPERATIONS = (
    Operation(
        method=hdrs.METH_POST,
        path="/v1/completions",
        handler=create,
        summary="Continue one or several texts",
        tag="Completions",
        access=("chat",),
        body=CompletionRequest,
        example={"prompt": "Once upon a time", "max_tokens": 64},
        answer=Completion,
        chunk=Completion,
        errors=ERRORS,
    ),
)


def setup(app: web.Application) -> None:
    """Add the routes of this module."""
    mount(app, OPERATIONS)
