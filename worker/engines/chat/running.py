"""What the chat engine knows of the jobs it has taken. Plain records; the engine moves them."""

import msgspec

from protocol.messages import GenerateJob, TokenLogprob, Usage
from worker.batch.images import PromptImages
from worker.batch.prompt import Prompt
from worker.batch.row import Row, RowSampling
from worker.grammar.constraint import Constraint
from worker.text.harmony import ChoiceText


class PreparedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has passed every check: prompt as tokens, what it shows; sampling and text pipeline per choice."""

    job: GenerateJob
    prompt: list[int]
    limit: int
    texts: list[ChoiceText]
    samplings: list[RowSampling]
    constraints: list[Constraint] | None
    echo: str
    """The prompt's text, where the answer begins with it."""
    ends: frozenset[int] = frozenset()
    """Tokens that end a choice; they have no text."""
    images: PromptImages | None = None
    compile_s: float = 0.0
    """Processor time that went into its grammar."""


class RunningChoice:
    """One answer of a job: its row in the batch and its text; `held` is what no delta has told yet."""

    __slots__ = ("finished", "held", "index", "job", "row", "text")

    def __init__(self, job: "Running", text: ChoiceText, index: int) -> None:
        self.job = job
        self.index = index
        self.text = text
        self.row: Row
        self.finished = False
        self.held: tuple[list[int], list[TokenLogprob]] = ([], [])


class Running:
    """One job in flight; `open` counts the choices that have not finished, `echo` is what each begins with."""

    __slots__ = ("admitted_at", "choices", "compile_s", "echo", "ends", "first_at", "message", "open", "prompt")

    def __init__(
        self, message: GenerateJob, now: float, *, ends: frozenset[int], echo: str = "", compile_s: float = 0.0
    ) -> None:
        self.message = message
        self.ends = ends
        self.compile_s = compile_s
        self.echo = echo
        self.choices: list[RunningChoice] = []
        self.open = 0
        self.prompt: Prompt | None = None
        self.admitted_at = now
        self.first_at = 0.0

    def usage(self, now: float) -> Usage:
        """Return what it has cost up to now. Tokens are those of the whole job, seconds those of this attempt."""
        prompt_tokens = self.choices[0].row.prompt_size
        started = (self.prompt and self.prompt.started_at) or self.admitted_at
        first_at = self.first_at or now
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self._steps,
            # What is found of tokens that were delivered is no part of the prompt.
            cached_tokens=min(self.prompt.cached, prompt_tokens) if self.prompt else 0,
            reasoning_tokens=sum(choice.text.reasoning_tokens for choice in self.choices),
            wait_s=started - self.admitted_at,
            prefill_s=first_at - started,
            decode_s=now - first_at,
            stepped_tokens=self._computed + self._steps,
            compile_s=self.compile_s,
        )

    @property
    def _steps(self) -> int:
        """Of all choices."""
        return sum(choice.row.position for choice in self.choices)

    @property
    def _computed(self) -> int:
        """Tokens of the prompt that were computed up to now, not found in a cache."""
        size, prompt = self.choices[0].row.prompt_size, self.prompt
        if prompt is None:
            return size
        # The last one is computed by the first step.
        covered = size if prompt.covered >= size - 1 else prompt.covered
        return covered - min(prompt.cached, covered)
