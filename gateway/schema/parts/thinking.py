"""Whether and how long a model thinks, in the dialects of clients, and what they amount to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from gateway.schema.base import ContentPart
from gateway.schema.errors import invalid
from gateway.schema.parts.bounds import MAX_TOKENS, Effort

T = TypeVar("T")

ThinkingBudget = Annotated[
    int,
    Meta(
        ge=-1,
        le=MAX_TOKENS,
        description="Tokens of reasoning, after which the thought is closed and the answer begins. -1: no bound.",
    ),
]


class ThinkingOptions(ContentPart, frozen=True, kw_only=True):
    """Anthropic's and GLM's form: whether to think, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: ThinkingBudget | None = None
    clear_thinking: bool | None = None


class ReasoningOptions(ContentPart, frozen=True, kw_only=True):
    """OpenRouter's form. `max_tokens` bounds the thoughts alone; with `exclude` the answer does not tell them."""

    effort: Effort | None = None
    enabled: bool | None = None
    max_tokens: ThinkingBudget | None = None
    exclude: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """What the fields of one request say together; None: nothing."""

    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    clear: bool | None = None

    @property
    def template(self) -> dict[str, bool | int | float | str]:
        """What the chat template is told. Effort `none` turns thinking off, for templates that only know that."""
        found: dict[str, bool | int | float | str] = {}
        if self.effort is not None:
            found["reasoning_effort"] = self.effort
        if self.enabled is not None:
            found["enable_thinking"] = self.enabled
        elif self.effort == "none":
            found["enable_thinking"] = False
        if self.budget is not None:
            # Few templates tell the model; the pool keeps it in any case.
            found["thinking_budget"] = self.budget
        if self.clear is not None:
            found["clear_thinking"] = self.clear
        return found


def agree_on(values: Mapping[str, T | None]) -> T | None:
    """Return the one value of several fields that mean the same, by their names. Raises `ApiError`."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(set(given.values())) > 1:
        first, *others = given
        other = next(name for name in others if given[name] != given[first])
        raise invalid(f"'{first}' and '{other}' differ; give one of them.", first)
    return next(iter(given.values()), None)


def bounded(budget: int | None) -> int | None:
    """Return how many tokens that allows; None: any number."""
    return None if budget == -1 else budget
