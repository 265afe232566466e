"""What the chat engine knows of the jobs it has taken. Plain records; the engine moves them."""

import msgspec

from protocol.messages import GenerateJob, TokenLogprob
from worker.batch.prompt import Prompt
from worker.batch.row import Row, RowSampling
from worker.batch.scene import Scene
from worker.grammar.constraint import Constraint
from worker.text.channels import ChannelText


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has passed every check: prompt as tokens, what it shows; sampling and text pipeline per choice."""

    job: GenerateJob
    prompt: list[int]
    limit: int
    texts: list[ChannelText]
    samplings: list[RowSampling]
    constraints: list[Constraint] | None
    echo: str
    """The prompt's text, where the answer begins with it."""
    scene: Scene | None = None


class Choice:
    """One answer of a job: its row in the batch and its text; `held` is what no delta has told yet."""

    __slots__ = ("finished", "held", "index", "job", "row", "text")

    def __init__(self, job: "Running", text: ChannelText, index: int) -> None:
        self.job = job
        self.index = index
        self.text = text
        self.row: Row
        self.finished = False
        self.held: tuple[list[int], list[TokenLogprob]] = ([], [])


class Running:
    """One job aboard; `open` counts the choices that have not finished, `echo` is what each begins with."""

    __slots__ = ("admitted_at", "choices", "echo", "first_at", "message", "open", "prompt")

    def __init__(self, message: GenerateJob, now: float, *, echo: str = "") -> None:
        self.message = message
        self.echo = echo
        self.choices: list[Choice] = []
        self.open = 0
        self.prompt: Prompt | None = None
        self.admitted_at = now
        self.first_at = 0.0
