"""Text to token ids and back, for all engines. Other threads run meanwhile; how long a text may be is said here.

Of the tokenizers library only the calls for batches let go of the interpreter: `Tokenizer.encode` and `decode` hold it
for a second per two million characters, in which an engine neither steps nor beats.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

from protocol.errors import Code, JobError, context_message

LEAST_CHARACTERS = 1_000_000
"""So many characters are read for any model, however little it takes; what they cost is bounded, not useful."""
CHARACTERS_PER_TOKEN = 16
"""The most that a text may have for each token that a model takes. Ordinary text has 3 to 5, indented code up to 8."""
MOST_COUNTED_TOKENS = 262_144
"""Tokens of one text that are named or read at most, for a model that takes fewer: bounds memory, not use."""
WINDOW_CHARACTERS = 16_384
"""What is tokenised at a time where tokens are only counted."""
CUT_TOKENS = 256
"""A cut through a text adds fewer tokens than this: at most two words that are one unknown token each when whole."""
UNSEEN_BYTES_PER_TOKEN = 4
"""A text with fewer bytes for each token that is allowed is tokenised at once: a count would cost as much."""
CHECKED_IDS = 65_536
"""Ids that are looked at in one call."""


def most_characters(tokens: int) -> int:
    """Characters that are read for a model, or of a text, of at most so many tokens."""
    return max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * tokens)


def ids_within(ids: Sequence[int], size: int) -> bool:
    """Return whether all ids are of a vocabulary of that size."""
    for start in range(0, len(ids), CHECKED_IDS):
        part = ids[start : start + CHECKED_IDS]
        if min(part) < 0 or max(part) >= size:
            return False
    return True


class TokenCoder:
    """Encodes and decodes with one tokenizer: the tokenizers library's, transformers', or mlx-lm's wrapper of that."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = tokenizer if isinstance(tokenizer, Tokenizer) else _plain_backend(tokenizer)
        self._cleans = self._backend is not None and cleans_spaces(tokenizer)

    def encode_text(self, text: str, *, special: bool) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text."""
        return self.encode_all([text], special=special)[0]

    def encode_all(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Token ids of each text."""
        backend = self._ready_backend()
        if backend is None:
            # Slow tokenizers, and those that change a text first: Python, or libraries that let others run.
            return [[*self._tokenizer.encode(text, add_special_tokens=special)] for text in texts]
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=special)]

    def encode_placed(self, text: str) -> Encoding:
        """Tokens with their places in the text, special ones around it. For the tokenizers library's own alone."""
        backend = self._ready_backend()
        if backend is None:
            raise TypeError("only the tokenizers library tells where tokens are")
        return backend.encode_batch([text], add_special_tokens=True)[0]

    def decode_tokens(self, ids: list[int]) -> str:
        """Text of token ids, special ones included."""
        backend = self._backend
        if backend is None:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
            return text
        [text] = backend.decode_batch([ids], skip_special_tokens=False)
        return self._tokenizer.clean_up_tokenization(text) if self._cleans else text

    def least_tokens(self, text: str, most: int) -> int:
        """Return how many tokens a text has at least, if that is more than `most`; else 0.

        It costs no more than `most` tokens do, however long the text. 0 says only that tokenising is affordable.
        """
        if len(text) <= WINDOW_CHARACTERS or _utf8_bytes(text) <= UNSEEN_BYTES_PER_TOKEN * most:
            return 0
        least = 0
        for start in range(0, len(text), WINDOW_CHARACTERS):
            found = self.encode_text(text[start : start + WINDOW_CHARACTERS], special=False)
            least += max(0, len(found) - CUT_TOKENS)
            if least > most:
                return least
        return 0

    def check_count(self, count: int, most: int, param: str) -> None:
        """Refuse to read more token ids than are read of any text."""
        if count > (bound := max(most, MOST_COUNTED_TOKENS)):
            raise JobError(
                Code.CONTEXT_LENGTH, f"'{param}' has {count} tokens; at most {bound} are read at a time.", param
            )

    def _ready_backend(self) -> Tokenizer | None:
        backend = self._backend
        # A tokenizer file, or a call of a processor that shares this one, may leave them on.
        if backend is not None and backend.truncation is not None:
            backend.no_truncation()
        if backend is not None and backend.padding is not None:
            backend.no_padding()
        return backend


def check_characters(text: str, most_tokens: int, param: str, what: str) -> None:
    """Refuse a text of more characters than are read for so many tokens. Raises `JobError`."""
    if len(text) > (most := most_characters(most_tokens)):
        message = context_message(most_tokens, f"{what} has {len(text)} characters, and at most {most} are read")
        raise JobError(Code.CONTEXT_LENGTH, message, param)


def token_names(backend: Tokenizer) -> list[str | None]:
    """Return the name of each token id; None where there is no such token.

    One by one: to ask for all of a large vocabulary at once holds the interpreter for a quarter of a second.
    """
    left = backend.get_vocab_size(with_added_tokens=True)
    most = 2 * left + max(backend.get_added_tokens_decoder(), default=0) + 1
    names: list[str | None] = []
    for number in range(most):
        if left == 0:
            break
        name = backend.id_to_token(number)
        left -= name is not None
        names.append(name)
    return names


def longest_name(tokenizer: Any) -> int:
    """Return how many letters the longest token has."""
    backend = plain_decoder(tokenizer)
    names = tokenizer.get_vocab() if backend is None else token_names(backend)
    return max((len(name) for name in names if name is not None), default=1)


def plain_decoder(tokenizer: Any) -> Tokenizer | None:
    """Return the tokenizers library's part of a tokenizer whose text is that part's, but for spaces that it cleans."""
    # Here, because embedding engines live without it.
    from transformers import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    tokenizer = _bare(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend):
        return None
    kind = type(tokenizer)
    plain = kind.decode is PreTrainedTokenizerBase.decode and kind._decode is TokenizersBackend._decode
    plain = plain and kind.clean_up_tokenization is PreTrainedTokenizerBase.clean_up_tokenization
    return tokenizer.backend_tokenizer if plain else None


def cleans_spaces(tokenizer: Any) -> bool:
    """Return whether a tokenizer takes spaces before punctuation out of what it decodes; of BPE it says so in vain."""
    tokenizer = _bare(tokenizer)
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    anyway = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(anyway) or type(tokenizer.backend_tokenizer.model).__name__ != "BPE"


def _plain_backend(tokenizer: Any) -> Tokenizer | None:
    """Return the tokenizers library's part of a tokenizer that does nothing besides it."""
    from transformers import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    backend = plain_decoder(tokenizer)
    tokenizer = _bare(tokenizer)
    kind = type(tokenizer)
    if backend is None or tokenizer.split_special_tokens:
        return None
    plain = kind.encode is PreTrainedTokenizerBase.encode and kind._encode_plus is TokenizersBackend._encode_plus
    return backend if plain else None


def _bare(tokenizer: Any) -> Any:
    """Return transformers' tokenizer, which mlx-lm wraps."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(tokenizer, "_tokenizer", tokenizer)
    return own if isinstance(own, PreTrainedTokenizerBase) else tokenizer


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
