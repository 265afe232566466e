"""What the fake engine answers to a body when nothing disturbs it, computed here and at once."""

import json
from typing import Any

from gateway.schema.chat import ChatCompletionRequest
from gateway.schema.decode import decode
from protocol.messages import ChatPrompt, Sampling
from worker.engines.fake import VOCAB_SIZE, WORDS, program_of, tokens_of


def fake_answer(body: dict[str, Any], choice: int = 0) -> str:
    """Return the text of one choice."""
    job = decode(json.dumps(body).encode(), ChatCompletionRequest).make_job(None, request_id="", tenant="")
    assert isinstance(job.prompt, ChatPrompt)
    assert isinstance(job.sampling, Sampling)
    limit = job.max_tokens or 256
    length = min(limit, int(program_of(job.prompt).get("tokens", limit)))
    seed = sum(tokens_of(job.prompt)) + choice
    return "".join(WORDS[(seed + at * 7) % VOCAB_SIZE % len(WORDS)] + " " for at in range(length))
