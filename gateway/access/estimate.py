"""How many tokens a job may cost, before anyone knows: what a reservation is made of. Pure and cheap."""

from protocol.messages import ChatPrompt, EmbedJob, GenerateJob, Prompt, TextPrompt, TokenPrompt

ANSWER_TOKENS = 256
"""Reserved for an answer whose length the client left open; what it turns out to be is settled afterwards."""
IMAGE_TOKENS = 256


def tokens_of_text(text: str) -> int:
    """The mean of words / 1.3 and characters / 4, rounded up."""
    words = text.count(" ") + 1 if text else 0
    return -int(-(words / 1.3 + len(text) / 4) / 2 // 1)


def tokens_of_job(job: GenerateJob | EmbedJob) -> int:
    """Prompt, and as much of an answer as the client allows."""
    match job:
        case EmbedJob():
            return sum(map(tokens_of_text, job.texts)) + sum(map(len, job.tokens)) + IMAGE_TOKENS * len(job.images)
        case GenerateJob():
            answer = ANSWER_TOKENS if job.max_tokens is None else job.max_tokens
            return tokens_of_prompt(job.prompt) + IMAGE_TOKENS * len(job.images) + answer * job.n


def tokens_of_prompt(prompt: Prompt) -> int:
    """Of a conversation, with the tools that go with it, or of a text."""
    match prompt:
        case ChatPrompt(messages=messages, tools=tools):
            return tokens_of_text((messages + (tools or b"")).decode())
        case TextPrompt(text=text):
            return tokens_of_text(text)
        case TokenPrompt(tokens=tokens):
            return len(tokens)
