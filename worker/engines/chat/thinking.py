"""Bounds of what the answers of a model may think, for each row of a job."""

from collections.abc import Sequence
from typing import Any

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, GenerateJob
from worker.grammar.constraint import Constraint, free_constraint
from worker.grammar.message_thoughts import MessageThoughts
from worker.grammar.thoughts import ThoughtLimit
from worker.text.harmony import ASSISTANT, CHANNEL, END, MESSAGE, START, open_message
from worker.text.markers import Markers

FINAL = "final"


class ThoughtLimiter:
    """For one model. `raws` are the bytes of each token id; None: they are not known."""

    def __init__(self, tokenizer: Any, markers: Markers, raws: Sequence[bytes] | None) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._raws = raws

    def limit_rows(
        self, job: GenerateJob, prompt: list[int], *, state: str, limit: int, constraints: list[Constraint] | None
    ) -> list[Constraint] | None:
        """Return the constraints of a job's choices, which keep thoughts short, too, brought behind `delivered`.

        `state` is the one of the text that the prompt leaves the answer in, `limit` the most tokens of the answer.
        Raises `JobError`.
        """
        budget = thinking_budget(job, limit)
        closing = self._closing(job) if budget is not None and isinstance(job.prompt, ChatPrompt) else []
        if budget is None or not closing:
            return constraints
        if self._raws is None:
            raise JobError(Code.UNSUPPORTED, "The thoughts of this model can't be limited.", "thinking_budget")
        made = []
        for choice in range(job.n):
            thoughts = self._start(budget, prompt, state, closing, self._raws)
            for token in job.delivered[choice] if job.delivered else ():
                thoughts.take_token(token)
            made.append(free_constraint(thoughts) if constraints is None else constraints[choice])
            made[-1].thoughts = thoughts
        return made

    def _start(
        self, budget: int, prompt: list[int], state: str, closing: Sequence[int], raws: Sequence[bytes]
    ) -> ThoughtLimit | MessageThoughts:
        controls = self._markers.controls
        if controls:
            opened = open_message(controls, prompt)
            return MessageThoughts(budget, controls=controls, opened=opened, closing=closing, raws=raws)
        return ThoughtLimit(budget, markers=self._markers, state=state, closing=closing, raws=raws)

    def _closing(self, job: GenerateJob) -> list[int]:
        """Return the tokens that end a thought; empty where the model has none."""
        if not self._markers.controls:
            return [*(self._tokenizer.think_end_tokens or ())]
        ids = {name: token for token, name in self._markers.controls.items()}

        def spell(text: str) -> list[int]:
            return [*self._tokenizer.encode(text, add_special_tokens=False)]

        closing = [ids[END], ids[START], *spell(ASSISTANT)]
        offered = isinstance(job.prompt, ChatPrompt) and job.prompt.tools
        if job.constrained or offered:
            # What comes next is a call or the answer: the grammar says so, or the model chooses.
            return closing
        return [*closing, ids[CHANNEL], *spell(FINAL), ids[MESSAGE]]


def thinking_budget(job: GenerateJob, limit: int) -> int | None:
    """Return how many tokens an answer of `limit` may think; None: as many as it likes.

    Where an answer must have some form, there has to be room for it behind the thought.
    """
    if job.grammar is None and job.tool_choice != "required":
        return job.thinking_budget
    if job.thinking_budget is None:
        return limit // 2
    return min(job.thinking_budget, limit - limit // 4)
