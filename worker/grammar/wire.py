"""What an engine and its grammar processes say to each other, as msgpack over inherited sockets."""

from enum import IntEnum

import msgspec


class Status(IntEnum):
    """How a followed grammar stands. `ENDED`: nothing may follow; `SLOW`: its masks take too long to compute."""

    OPEN = 0
    ENDED = 1
    REFUSED = 2
    SLOW = 3


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """A tokenizer (the text of its `tokenizer.json`), the number of ids that masks cover, the ids that end an answer.

    `asked` are ids of which the answer, `Specials`, names those that grammars know as control tokens.
    """

    tokenizer: str
    size: int
    eos: list[int]
    asked: list[int]


class Specials(msgspec.Struct, frozen=True, array_like=True):
    """The process is ready, or `error` says why this tokenizer can't be used."""

    ids: list[int]
    error: str = ""


class Compile(msgspec.Struct, frozen=True, array_like=True):
    """Compile a grammar and keep it; answered by `Compiled`."""

    grammar: str


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """`error` is empty, or what is wrong with the grammar, for the caller who sent it."""

    error: str = ""


class Follow(msgspec.Struct, frozen=True, array_like=True):
    """Go on in `slot`: with `grammar`, from its start behind `prefix`; else from where it was.

    `tokens` are taken, then the mask of what may follow is written to the slot's place in the shared memory.
    """

    slot: int
    tokens: list[int]
    grammar: str | None = None
    prefix: bytes = b""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step of several rows; answered by their `Status`es, in order. `closed` are slots that are no longer used."""

    follow: list[Follow]
    closed: list[int]
