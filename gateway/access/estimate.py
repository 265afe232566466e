"""How many tokens a job may cost, before anyone knows: what a reservation is made of. Pure and cheap."""

from protocol.messages import ChatPrompt, EmbedJob, GenerateJob, Prompt, TextPrompt, TokenPrompt

ANSWER_TOKENS = 256
"""Reserved for an answer whose length the client left open; what it turns out to be is settled afterwards."""
IMAGE_TOKENS = 256


CONTINUED = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that go on with a character."""


def tokens_of_text(text: str) -> int:
    """Return the mean of words / 1.3 and characters / 4, rounded up."""
    return _mean(text.count(" "), len(text))


def _tokens_of_bytes(*texts: bytes) -> int:
    """Return the same of one text in UTF-8 that comes in parts: megabytes are not decoded to be measured."""
    return _mean(
        sum(text.count(b" ") for text in texts),
        sum(len(text if text.isascii() else text.translate(None, CONTINUED)) for text in texts),
    )


def _mean(blanks: int, characters: int) -> int:
    words = blanks + 1 if characters else 0
    return -int(-(words / 1.3 + characters / 4) / 2 // 1)


def tokens_of_job(job: GenerateJob | EmbedJob, context_length: int | None = None) -> int:
    """Return the tokens of the prompt, and of as much of an answer as the client and the model's context allow."""
    match job:
        case EmbedJob():
            return sum(map(tokens_of_text, job.texts)) + sum(map(len, job.tokens)) + IMAGE_TOKENS * len(job.images)
        case GenerateJob():
            answer = ANSWER_TOKENS if job.max_tokens is None else job.max_tokens
            prompt = tokens_of_prompt(job.prompt) + IMAGE_TOKENS * len(job.images)
            if context_length is not None:
                answer = min(answer, max(context_length - prompt, ANSWER_TOKENS))
            return prompt + answer * job.n


def tokens_of_prompt(prompt: Prompt) -> int:
    """Return the tokens of a conversation, with the tools that go with it, or of a text."""
    match prompt:
        case ChatPrompt(messages=messages, tools=tools):
            return _tokens_of_bytes(messages, tools or b"")
        case TextPrompt(text=text):
            return tokens_of_text(text)
        case TokenPrompt(tokens=tokens):
            return len(tokens)
