"""What an engine and its grammar processes say to each other, as msgpack over inherited sockets."""

from enum import IntEnum

import msgspec

from protocol.messages import GenerateJob
from worker.grammar.constraint import GrammarSpec


class Status(IntEnum):
    """How a followed grammar stands. `ENDED`: nothing may follow; `SLOW`: its masks take too long to compute."""

    OPEN = 0
    ENDED = 1
    REFUSED = 2
    SLOW = 3


class TokenTable(msgspec.Struct, frozen=True, array_like=True):
    """What a fork server needs besides the text of the tokenizer's `tokenizer.json`, which is in a file.

    `size` is the number of ids that masks cover, `eos` the ids that end an answer. `added` are names and ids, of which
    the answer, `Specials`, names those that grammars know as control tokens. `head` is what stands in the file besides
    its model, as the engine has it; `samples` are some ids with their bytes, by which a wrong file is known.
    """

    size: int
    eos: list[int]
    added: dict[str, int]
    head: bytes = b"{}"
    samples: list[tuple[int, bytes]] = []


class Specials(msgspec.Struct, frozen=True, array_like=True):
    """The fork server is ready, or `error` says why this tokenizer can't be used."""

    ids: list[int]
    error: str = ""


class Compile(msgspec.Struct, frozen=True, array_like=True):
    """Compile what a job's answers are held to, then follow it; answered by `Compiled`.

    `job` has only what its grammar depends on. `parser` is that of the model's tool calls, None where it has none.
    `loosened`: of tools that are not promised to be strict, take any object for the arguments. `limit_s` is the
    processor time that it may take, `limit_bytes` the memory that it may add.
    """

    job: GenerateJob
    parser: str | None
    limit_s: float
    limit_bytes: int
    loosened: bool = False


class Compiled(msgspec.Struct, frozen=True, array_like=True):
    """The `spec` (without its grammar; None: nothing is constrained), or what is wrong, for the caller who sent it.

    `spent_s` is processor time, `grown_bytes` how much larger the process has become.
    """

    spec: GrammarSpec | None = None
    code: str = ""
    message: str = ""
    param: str | None = None
    spent_s: float = 0.0
    grown_bytes: int = 0
    pid: int = 0


class Follow(msgspec.Struct, frozen=True, array_like=True):
    """Go on in `slot` from where it was, or, with `begins`, from the grammar's start behind `prefix`.

    `tokens` are taken, then the mask of what may follow is written to the slot's place in the shared memory.
    """

    slot: int
    tokens: list[int]
    begins: bool = False
    prefix: bytes = b""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step of several rows; answered by their `Status`es, in order. `closed` are slots that are no longer used."""

    follow: list[Follow]
    closed: list[int]
