"""From the inputs of a job to token ids: prompts, tokenizer, limits. No MLX: it runs on the reception thread."""

from typing import Any

from tokenizers import Tokenizer

from protocol.errors import Code, JobError
from protocol.messages import EmbedJob
from worker.batch.texts import Text
from worker.engines.sentence_files import INPUT_TYPES, SentenceFiles

UNKNOWN_LIMIT = 512
"""For a model that says nothing about its longest text."""
SLICE = 64
"""Texts that are tokenised between two looks at their lengths: what can't be computed fails early."""


class Sentences:
    """Tokenises for one model. `limit` is the most tokens of one text."""

    def __init__(self, tokenizer: Tokenizer, files: SentenceFiles, *, asked: int | None) -> None:
        # A tokenizer file may come with truncation and padding of its own: silence about either would be a lie.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._files = files
        trained = _trained(files.config)
        self.limit = min(trained, asked or files.max_tokens or trained)
        self._ending = _ending(tokenizer)
        self._longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)

    def texts(self, job: EmbedJob, *, vocab_size: int) -> list[Text]:
        """The inputs of a job, in order. Raises `JobError`."""
        if job.tokens:
            return self._ids(job, vocab_size)
        prompt = self._prompt(job)
        skip = 0
        if prompt and not self._files.include_prompt:
            # Without the special tokens behind it, which stand behind the text.
            skip = len(self._encode([prompt])[0]) - self._ending
        found: list[Text] = []
        for start in range(0, len(job.texts), SLICE):
            part = job.texts[start : start + SLICE]
            if job.max_tokens_per_text is None:
                self._refuse_endless(part, start, len(job.texts))
            for at, tokens in enumerate(self._encode([prompt + text for text in part]), start):
                found.append(Text(job.job, at, self._fit(tokens, at, job), skip))
        return found

    def _prompt(self, job: EmbedJob) -> str:
        if job.input_type is not None and job.input_type not in INPUT_TYPES:
            raise JobError(Code.INVALID_REQUEST, f"'input_type' is one of {', '.join(INPUT_TYPES)}.", "input_type")
        try:
            return self._files.prompt(name=job.prompt_name, input_type=job.input_type)
        except KeyError:
            names = ", ".join(self._files.prompts) or "none"
            raise JobError(
                Code.INVALID_REQUEST, f"This model has no such prompt; there are: {names}.", "prompt_name"
            ) from None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._files.lower_case:
            texts = [text.lower() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)]

    def _ids(self, job: EmbedJob, vocab_size: int) -> list[Text]:
        if job.prompt_name is not None or (job.input_type is not None and self._prompt(job)):
            param = "input_type" if job.prompt_name is None else "prompt_name"
            raise JobError(Code.INVALID_REQUEST, "A prompt can't be put before token ids.", param)
        found = []
        for at, tokens in enumerate(job.tokens):
            if not tokens or any(not 0 <= token < vocab_size for token in tokens):
                message = f"Token ids of this model are 0 to {vocab_size - 1}, at least one per input."
                raise JobError(Code.INVALID_REQUEST, message, _where(at, len(job.tokens)))
            found.append(Text(job.job, at, self._fit(tokens, at, job)))
        return found

    def _fit(self, tokens: list[int], at: int, job: EmbedJob) -> list[int]:
        """The tokens, cut where that was asked for; special tokens at the end survive a cut. Raises `JobError`."""
        wanted = job.max_tokens_per_text
        limit = self.limit if wanted is None else min(wanted, self.limit)
        if len(tokens) <= limit:
            return tokens
        if wanted is None:
            raise _too_long(f"{len(tokens)} tokens", self.limit, _where(at, len(job.texts) + len(job.tokens)))
        ending = 0 if job.tokens or limit <= self._ending else self._ending
        return [*tokens[: limit - ending], *tokens[len(tokens) - ending :]]

    def _refuse_endless(self, texts: list[str], start: int, count: int) -> None:
        """Refuse what can't possibly fit before seconds go into tokenising it. White space may vanish, so it is out."""
        most = self.limit * self._longest_token
        for at, text in enumerate(texts, start):
            if len(text) > most and len(dense := "".join(text.split())) > most:
                raise _too_long(f"at least {len(dense) // self._longest_token} tokens", self.limit, _where(at, count))


def _ending(tokenizer: Tokenizer) -> int:
    """How many special tokens stand behind a text: models that pool the last token were trained on those."""
    special = tokenizer.encode("a", add_special_tokens=True).special_tokens_mask
    return special[::-1].index(0) if 0 in special else 0


def _too_long(what: str, limit: int, where: str) -> JobError:
    message = f"'{where}' has {what}; this model takes {limit} (or cuts at 'max_tokens_per_text', where that is given)."
    return JobError(Code.CONTEXT_LENGTH, message, where)


def _where(at: int, count: int) -> str:
    return "input" if count == 1 else f"input[{at}]"


def _trained(config: dict[str, Any]) -> int:
    limit = int(config.get("max_position_embeddings") or UNKNOWN_LIMIT)
    # RoBERTa's positions begin behind the padding id.
    return limit - int(config.get("pad_token_id") or 0) - 1 if "roberta" in str(config["model_type"]) else limit
