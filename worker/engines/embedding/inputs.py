"""From the inputs of a job to token ids and images: prompts, tokenizer, limits. For the preprocessor's thread."""

import logging
import string
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
from tokenizers import Tokenizer

from protocol import messages
from protocol.errors import Code, JobError, context_message
from protocol.messages import ChatPrompt, DetokenizeJob, EmbedJob, TextPrompt, TokenizeJob, TokenPrompt
from worker.engines.aside import Aside
from worker.engines.context import promised_tokens
from worker.engines.embedding.model_files import INPUT_TYPES, EmbeddingFiles
from worker.engines.embedding.queue import QueuedImage, QueuedText
from worker.engines.tokenizing import (
    CHARACTERS_PER_TOKEN,
    MOST_COUNTED_TOKENS,
    TokenCoder,
    check_characters,
    ids_within,
)

log = logging.getLogger("worker")

UNKNOWN_LIMIT = 512
"""For a model that says nothing about its longest text."""
SIGLIP_LIMIT = 64
"""SigLIP's, whose published configs leave out what is the default."""
PIECE_CHARACTERS = 16_384
PIECE_TEXTS = 64
"""What is tokenised in one piece: milliseconds, in which no other job is, and what can't be computed fails early."""
SHORTEST_BEGINNING = 4096
BEGINNING_CHARACTERS = 6
"""For each token that is kept, and at least: what is tokenised first of a long text."""
LONGEST_BEGINNING = 262_144
"""Characters of one text that are read at least: a word of any length may be one unknown token, white space none."""
SETTLED_CHARACTERS = 256
"""A token so far before the end of a beginning does not depend on what follows it: words, runs of marks and characters
that normalisation joins are shorter, or both beginnings that are compared end within the same one."""


class InputForm(msgspec.Struct, frozen=True, kw_only=True):
    """How a model wants its inputs, apart from what its tokenizer does.

    `before` and `behind` (which begins with a control token) stand around every input, `{prompt}` in `before` for the
    prompt of the request, `prompt` for where it brings none. `image` is the text that an image has in it, `image_token`
    the id in that text which is there once for every piece of the image, `control` ids that no text of a request may
    bring along. `least` is the length that shorter texts are filled up to. `canonical` prepares a text before all else.
    """

    before: str = "{prompt}"
    behind: str = ""
    prompt: str = ""
    image: str = ""
    image_token: int | None = None
    control: frozenset[int] = frozenset()
    least: int = 0
    canonical: Callable[[str], str] | None = None


def unpunctuated(text: str) -> str:
    """As the texts were that SigLIP was trained on: lower case, no punctuation, single blanks."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


QWEN2_VL_FORM = InputForm(
    before="<|im_start|>system\n{prompt}<|im_end|>\n<|im_start|>user\n",
    behind="<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    prompt="You are a helpful assistant.",
    image="<|vision_start|><|image_pad|><|vision_end|>",
)
"""Published with Ops-MM-embedding-v1 and GME-Qwen2-VL; the last token's state is the vector."""


class EmbeddingInputs:
    """Prepares the inputs of one model. `limit` is the most tokens of one text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        files: EmbeddingFiles,
        *,
        asked: int | None,
        truncates: bool = False,
        form: InputForm | None = None,
        read_image: Callable[[str, bytes, str], Future[QueuedImage]] | None = None,
    ) -> None:
        """`read_image` reads a tenant's image file, for a model that takes images.

        One that `truncates` cuts texts over its limit, where a job does not say otherwise.
        """
        # A tokenizer file may come with truncation and padding of its own: silence about either would be a lie.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._files = files
        self._truncates = truncates
        self._form = form or InputForm()
        self._read_image = read_image
        trained = _trained(files.config)
        self.limit = min(trained, asked or files.max_tokens or trained)
        if asked and asked > trained:
            log.warning("--context-length %d: this embedding model takes %d tokens, and no more", asked, trained)
        self._coder = TokenCoder(tokenizer)
        self._aside = Aside()
        self._ending = _ending(tokenizer) + len(self._coder.encode_text(self._form.behind, special=False))
        self._longest_token = max((len(token) for token in tokenizer.get_vocab()), default=1)

    def prepare_texts(
        self, job: EmbedJob, buffers: Sequence[bytes], *, vocab_size: int
    ) -> Iterator[list[QueuedText] | Future[Any]]:
        """Yield the inputs of a job in order, in pieces that take some milliseconds each. Raises `JobError`.

        A `Future` between them is what there is to wait for before the next one.
        """
        if job.images:
            return self._shown(job, buffers)
        if job.tokens:
            return self._ids(job, vocab_size)
        return self._written(job)

    def _written(self, job: EmbedJob) -> Iterator[list[QueuedText] | Future[Any]]:
        before = self._before(job)
        skip = 0
        if before and not self._files.include_prompt:
            # Without the special tokens behind it, which stand behind the text.
            skip = len(self._encode([self._lowered(before)])[0]) - self._ending
        for start, part in _pieces(job.texts):
            if not self._cuts(job):
                self._refuse_endless(part, start, len(job.texts))
            if len(part[0]) > PIECE_CHARACTERS:
                tokens = [(yield from self._read_long(part[0], partial(self._formed, before), start, job))]
            else:
                tokens = self._encode([self._formed(before, text) for text in part])
            yield [
                QueuedText(
                    job.job, at, self._fit(self._checked(ids, 0, at, job), at, job), skip, None, self._form.least
                )
                for at, ids in enumerate(tokens, start)
            ]

    def _formed(self, before: str, text: str) -> str:
        """Return a text, or its beginning, as the tokenizer gets it."""
        return self._lowered(f"{before}{self._own(text)}{self._form.behind}")

    def _lowered(self, text: str) -> str:
        return text.lower() if self._files.lower_case else text

    def _read_long(
        self, text: str, form: Callable[[str], str], at: int, job: EmbedJob
    ) -> Generator[Future[Any], None, list[int]]:
        """Tokens of a long text: all of them, or of a beginning with more than are kept of it. Raises `JobError`.

        Those that are kept are the whole text's: they lie before a place where two beginnings of different length
        agree, and far enough before the end of the shorter one.
        """
        limit = min(job.max_tokens_per_text or self.limit, self.limit)
        size = max(SHORTEST_BEGINNING, BEGINNING_CHARACTERS * limit)
        most = max(LONGEST_BEGINNING, CHARACTERS_PER_TOKEN * self.limit)
        known: list[int] = []
        while size < min(len(text), most):
            ids, settled = yield from self._aside.run_aside(
                job.tenant, partial(self._read_beginning, form, text[:size], limit)
            )
            if settled and ids[: limit + 1] == known:
                return ids
            known = ids[: limit + 1] if settled else []
            size *= 2
        if len(text) > most:
            where = _where(at, max(len(job.texts), len(job.images)))
            excess = f"'{where}' has {len(text)} characters, but few tokens in the first {most}; no more are read"
            raise JobError(Code.CONTEXT_LENGTH, context_message(self.limit, excess), where)
        return (yield from self._aside.run_aside(job.tenant, lambda: self._coder.encode_text(form(text), special=True)))

    def _read_beginning(self, form: Callable[[str], str], text: str, limit: int) -> tuple[list[int], bool]:
        """Tokens of the beginning of a text, and whether one more than `limit` of them depend on nothing behind it."""
        formed = form(text)
        found = self._coder.encode_placed(formed)
        ids: list[int] = found.ids
        if len(ids) <= limit + 1 + self._ending:
            return ids, False
        # White space at the end may all belong to a token that follows it.
        end = len(formed.removesuffix(self._lowered(self._form.behind)).rstrip())
        place: tuple[int, int] | None = found.token_to_chars(limit)
        return ids, place is not None and end - place[1] >= SETTLED_CHARACTERS

    def _shown(self, job: EmbedJob, buffers: Sequence[bytes]) -> Iterator[list[QueuedText] | Future[Any]]:
        """Images, each with a text or without."""
        if self._read_image is None:
            raise JobError(Code.INVALID_REQUEST, "This model embeds texts; it takes no images.", "input")
        if job.tokens or (job.texts and len(job.texts) != len(job.images)):
            raise JobError(Code.INVALID_REQUEST, "Beside images there are as many texts as images, or none.", "input")
        before = self._before(job)
        for at, image in enumerate(job.images):
            if not 0 <= image.buffer < len(buffers):
                raise JobError(Code.INVALID_REQUEST, "The file of an image did not come with its request.", "image")
            pending = self._read_image(job.tenant, buffers[image.buffer], _where(at, len(job.images), "image"))
            yield pending
            decoded = pending.result()
            text = job.texts[at] if job.texts else ""
            form = partial(self._formed, f"{before}{self._form.image}")
            ids: list[int] = []
            if len(text) > PIECE_CHARACTERS or self._own(text) or self._form.image:
                if len(text) > PIECE_CHARACTERS:
                    ids = yield from self._read_long(text, form, at, job)
                else:
                    [ids] = self._encode([form(text)])
                ids = self._filled(self._checked(ids, 1 if self._form.image else 0, at, job), decoded)
                ids = self._fit(ids, at, job)
            yield [QueuedText(job.job, at, ids, 0, decoded, self._form.least)]

    def _own(self, text: str) -> str:
        return self._form.canonical(text) if self._form.canonical else text

    def _checked(self, ids: list[int], images: int, at: int, job: EmbedJob) -> list[int]:
        """Refuse texts that spell out the tokens of an image."""
        control = self._form.control
        if control and sum(token in control for token in ids) != images * len(control):
            where = _where(at, len(job.texts) or len(job.images))
            raise JobError(Code.INVALID_REQUEST, f"'{where}' holds a control token of images.", where)
        return ids

    def _filled(self, ids: list[int], image: QueuedImage) -> list[int]:
        """With the token of the image as often as the image has pieces for the language model."""
        if self._form.image_token is None:
            return ids
        at = ids.index(self._form.image_token)
        return [*ids[:at], *[self._form.image_token] * (image.patches // 4), *ids[at + 1 :]]

    def _before(self, job: EmbedJob) -> str:
        # By hand: a prompt may hold braces.
        return self._form.before.replace("{prompt}", self._prompt(job) or self._form.prompt)

    def answer_job(
        self, job: TokenizeJob | DetokenizeJob, *, vocab_size: int
    ) -> Iterator[messages.Tokens | messages.Text | Future[Any]]:
        """Tokens of a text as it would be embedded (without any prompt), or text of tokens. Raises `JobError`.

        What there is to wait for comes before it, where that takes long.
        """
        if isinstance(job, DetokenizeJob):
            self._coder.check_count(len(job.tokens), self.limit, "tokens")
            _check_ids(job.tokens, vocab_size, "tokens")
            if len(job.tokens) > PIECE_CHARACTERS:
                decoded = yield from self._aside.run_aside(job.tenant, lambda: self._coder.decode_tokens(job.tokens))
            else:
                decoded = self._coder.decode_tokens(job.tokens)
            yield messages.Text(job.job, job.attempt, decoded)
            return
        match job.prompt:
            case TextPrompt(text=text, add_special_tokens=special):
                check_characters(text, self.limit, "prompt", "the prompt")
                if len(text) > PIECE_CHARACTERS:
                    tokens = yield from self._aside.run_aside(job.tenant, lambda: self._counted(text, special=special))
                else:
                    tokens = self._counted(text, special=special)
            case TokenPrompt(tokens=tokens):
                self._coder.check_count(len(tokens), self.limit, "prompt")
                _check_ids(tokens, vocab_size, "prompt")
            case ChatPrompt():
                raise JobError(Code.INVALID_REQUEST, "This model has no chat template: use 'prompt'.", "messages")
        yield messages.Tokens(job.job, job.attempt, tokens)

    def _counted(self, text: str, *, special: bool) -> list[int]:
        most = max(self.limit, MOST_COUNTED_TOKENS)
        text = self._lowered(text)
        if least := self._coder.least_tokens(text, most):
            message = f"The prompt has at least {least} tokens, more than are counted."
            raise JobError(Code.CONTEXT_LENGTH, message, "prompt")
        return self._coder.encode_text(text, special=special)

    def _prompt(self, job: EmbedJob) -> str:
        if job.input_type is not None and job.input_type not in INPUT_TYPES:
            raise JobError(Code.INVALID_REQUEST, f"'input_type' is one of {', '.join(INPUT_TYPES)}.", "input_type")
        try:
            return self._files.find_prompt(name=job.prompt_name, input_type=job.input_type)
        except KeyError:
            names = ", ".join(self._files.prompts) or "none"
            raise JobError(
                Code.INVALID_REQUEST, f"This model has no such prompt; there are: {names}.", "prompt_name"
            ) from None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._coder.encode_all(texts, special=True)

    def _ids(self, job: EmbedJob, vocab_size: int) -> Iterator[list[QueuedText]]:
        if job.prompt_name is not None or (job.input_type is not None and self._prompt(job)):
            param = "input_type" if job.prompt_name is None else "prompt_name"
            raise JobError(Code.INVALID_REQUEST, "A prompt can't be put before token ids.", param)
        for at, tokens in enumerate(job.tokens):
            where = _where(at, len(job.tokens))
            if not tokens:
                raise JobError(Code.INVALID_REQUEST, f"'{where}' has no tokens.", where)
            _check_ids(tokens, vocab_size, where)
            yield [QueuedText(job.job, at, self._fit(tokens, at, job), 0, None, self._form.least)]

    def _cuts(self, job: EmbedJob) -> bool:
        """Return whether longer texts of a job are cut, not refused."""
        if job.max_tokens_per_text is not None:
            return True
        return self._truncates if job.truncate is None else job.truncate

    def _fit(self, tokens: list[int], at: int, job: EmbedJob) -> list[int]:
        """Return the tokens, cut where that was asked for.

        Special tokens at the end survive a cut. Raises `JobError`.
        """
        wanted = job.max_tokens_per_text
        limit = self.limit if wanted is None else min(wanted, self.limit)
        if len(tokens) <= limit:
            return tokens
        if not self._cuts(job):
            count = max(len(job.texts) + len(job.tokens), len(job.images))
            raise _too_long(f"{len(tokens)} tokens", self.limit, _where(at, count))
        ending = 0 if job.tokens or limit <= self._ending else self._ending
        if self._form.image_token in tokens[limit - ending : len(tokens) - ending]:
            where = _where(at, len(job.images), "image")
            message = context_message(self.limit, f"'{where}' takes {len(tokens)} tokens with its text")
            raise JobError(Code.CONTEXT_LENGTH, message, where)
        return [*tokens[: limit - ending], *tokens[len(tokens) - ending :]]

    def _refuse_endless(self, texts: list[str], start: int, count: int) -> None:
        """Refuse what can't possibly fit before seconds go into tokenising it. White space may vanish, so it is out."""
        most = self.limit * self._longest_token
        for at, text in enumerate(texts, start):
            if len(text) <= most:
                continue
            dense = 0
            for part in range(0, len(text), PIECE_CHARACTERS):
                dense += sum(map(len, text[part : part + PIECE_CHARACTERS].split()))
                if dense > most:
                    raise _too_long(f"at least {dense // self._longest_token} tokens", self.limit, _where(at, count))


def _pieces(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """`texts` in order, cut where a piece is full; each with the place of its first. A long text has its own."""
    start = characters = 0
    for at, text in enumerate(texts):
        if at > start and (at - start == PIECE_TEXTS or characters + len(text) > PIECE_CHARACTERS):
            yield start, texts[start:at]
            start, characters = at, 0
        characters += len(text)
    yield start, texts[start:]


def _ending(tokenizer: Tokenizer) -> int:
    """Return how many special tokens stand behind a text: models that pool the last token were trained on those."""
    special = tokenizer.encode("a", add_special_tokens=True).special_tokens_mask
    return special[::-1].index(0) if 0 in special else 0


def _check_ids(tokens: list[int], vocab_size: int, where: str) -> None:
    if not ids_within(tokens, vocab_size):
        message = f"'{where}' has a token that is none of this model's: they are 0 to {vocab_size - 1}."
        raise JobError(Code.INVALID_REQUEST, message, where)


def _too_long(what: str, limit: int, where: str) -> JobError:
    excess = f"'{where}' has {what} ('truncate' would cut it)"
    return JobError(Code.CONTEXT_LENGTH, context_message(limit, excess), where)


def _where(at: int, count: int, name: str = "input") -> str:
    return name if count == 1 else f"{name}[{at}]"


def _trained(config: dict[str, Any]) -> int:
    unsaid = SIGLIP_LIMIT if config["model_type"] == "siglip" else UNKNOWN_LIMIT
    limit = promised_tokens(config) or unsaid
    # RoBERTa's positions begin behind the padding id.
    return limit - int(config.get("pad_token_id") or 0) - 1 if "roberta" in str(config["model_type"]) else limit
