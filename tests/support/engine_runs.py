"""Engines driven without a process around them: jobs in, messages out."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

import msgspec

from protocol.messages import ChatPrompt, Delta, Done, Failed, GenerateJob, Job, Prompt, Sampling, TextPrompt, Usage
from worker.engines.chat.engine import ChatEngine


class Outcome(msgspec.Struct):
    """All that came of one job, per choice."""

    text: dict[int, str] = {}
    reasoning: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    finish: dict[int, str] = {}
    deltas: list[Delta] = []
    usage: Usage | None = None
    failed: Failed | None = None


def run(
    engine: ChatEngine,
    jobs: Sequence[GenerateJob],
    *,
    files: Sequence[bytes] = (),
    between: Callable[[int], None] | None = None,
) -> dict[int, Outcome]:
    """Run jobs together to their end; `files` came with each of them, `between` is called after every step."""
    outcomes = {job.job: Outcome() for job in jobs}
    for job in jobs:
        for message in engine.admit(prepared(engine, job, files)):
            note(outcomes, message)
    steps = 0
    while engine.busy:
        for message in engine.step():
            note(outcomes, message)
        if between:
            between(steps)
        steps += 1
    return outcomes


def prepared(engine: ChatEngine, job: Job, files: Sequence[bytes] = ()) -> Any:
    """What reception would hand on: all pieces of a preparation, at once."""
    found = engine.prepare(job, files)
    if not isinstance(found, Iterator):
        return found
    for piece in found:
        if isinstance(piece, Future):
            wait([piece], timeout=60)
        elif piece is not None:
            return piece
    raise AssertionError("a preparation ended without a result")


def note(outcomes: dict[int, Outcome], message: Any) -> None:
    match message:
        case Delta():
            outcome = outcomes[message.job]
            outcome.deltas.append(message)
            outcome.text[message.choice] = outcome.text.get(message.choice, "") + message.text
            outcome.reasoning[message.choice] = outcome.reasoning.get(message.choice, "") + message.reasoning
            outcome.tokens.setdefault(message.choice, []).extend(message.tokens)
            if message.finish:
                assert message.choice not in outcome.finish
                outcome.finish[message.choice] = message.finish
        case Done():
            outcomes[message.job].usage = message.usage
        case Failed():
            outcomes[message.job].failed = message


def job(number: int, prompt: Prompt | str, *, sampling: dict[str, Any] | None = None, **fields: Any) -> GenerateJob:
    """A job with a greedy default."""
    return GenerateJob(
        job=number,
        attempt=0,
        request_id=f"r{number}",
        tenant=fields.pop("tenant", "tenant"),
        prompt=TextPrompt(prompt) if isinstance(prompt, str) else prompt,
        sampling=Sampling(**{"seed": number, "temperature": 0.0, **(sampling or {})}),
        **fields,
    )


def chat(*texts: str, tools: list[Any] | None = None, **template: Any) -> ChatPrompt:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    return ChatPrompt(msgspec.json.encode(messages), msgspec.json.encode(tools) if tools else None, template)
