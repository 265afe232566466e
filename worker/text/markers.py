"""What a model's tokenizer says about its own output format: pure data, read once per model.

Never looks at generated text; `channels` does that.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from worker.text.tool_calls.formats import FORMATS, parser_name

NORMAL = "normal"
REASONING = "reasoning"
TOOL = "tool"


class Markers(msgspec.Struct, frozen=True, kw_only=True):
    """State → [(marker text, next state)], plus the markers by role.

    Text in state `normal` is content, in `reasoning` reasoning, in `tool` the inside of a tool call block;
    text in any other state (a response format's headers) is never shown. `Markers()` is plain text.
    A `tool_end` of `""` means that a block runs to the end of the output. `kept_start`: what begins a block is part
    of its call. `controls` are the tokens that structure an answer, by id, in a format whose markers are tokens and no
    texts (`worker.text.harmony`).
    """

    transitions: dict[str, list[tuple[str, str]]] = {}
    controls: dict[int, str] = {}
    initial: str = NORMAL
    think_start: str | None = None
    think_end: str | None = None
    tool_start: str | None = None
    tool_end: str | None = None
    kept_start: bool = False


class FormatTokenizer(Protocol):
    """The attributes of mlx-lm's `TokenizerWrapper` that describe a model's output format."""

    @property
    def has_thinking(self) -> bool: ...  # noqa: D102
    @property
    def think_start(self) -> str | None: ...  # noqa: D102
    @property
    def think_end(self) -> str | None: ...  # noqa: D102
    @property
    def has_tool_calling(self) -> bool: ...  # noqa: D102
    @property
    def tool_call_start(self) -> str | None: ...  # noqa: D102
    @property
    def tool_call_end(self) -> str | None: ...  # noqa: D102
    @property
    def structural_markers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def response_transitions(self) -> Mapping[str, Sequence[tuple[str, str]]]: ...  # noqa: D102
    @property
    def response_initial_state(self) -> str | None: ...  # noqa: D102


class PromptTokenizer(Protocol):
    """The attributes of mlx-lm's `TokenizerWrapper` that find an open think block in a prompt."""

    @property
    def think_start_tokens(self) -> Sequence[int] | None: ...  # noqa: D102
    @property
    def eos_token_ids(self) -> Collection[int]: ...  # noqa: D102
    def rfind_think_start(self, tokens: Sequence[int], start: int | None = None) -> int: ...  # noqa: D102
    def rfind_think_end(self, tokens: Sequence[int], start: int | None = None) -> int: ...  # noqa: D102


def markers_of(tokenizer: FormatTokenizer) -> Markers:
    """Read the markers as `mlx_lm.generate.make_text_state_machine` does."""
    transitions: dict[str, list[tuple[str, str]]] = {}
    think_start = tokenizer.think_start if tokenizer.has_thinking else None
    think_end = tokenizer.think_end if tokenizer.has_thinking else None
    tool_start = tokenizer.tool_call_start if tokenizer.has_tool_calling else None
    tool_end = (tokenizer.tool_call_end or "") if tokenizer.has_tool_calling else None
    response = tokenizer.response_transitions
    if think_start and think_end:
        transitions[NORMAL] = [(think_start, REASONING)]
        transitions[REASONING] = [(think_end, NORMAL)]
    form = FORMATS.get(parser_name(tokenizer)) if tool_start else None
    begins = form.begins if form is not None else ""
    if tool_start:
        # A response format with tool states of its own decides where calls start.
        if not any(target == TOOL for edges in response.values() for _, target in edges):
            transitions.setdefault(NORMAL, []).append((begins or tool_start, TOOL))
        if REASONING in transitions:
            transitions[REASONING].append((begins or tool_start, TOOL))
        transitions[TOOL] = [(tool_end, NORMAL)] if tool_end else []
    for marker in (*tokenizer.structural_markers, *(form.dropped if form is not None else ())):
        transitions.setdefault(NORMAL, []).append((marker, NORMAL))
    for state, edges in response.items():
        transitions.setdefault(state, []).extend(edges)
    return Markers(
        transitions=transitions,
        initial=tokenizer.response_initial_state or NORMAL,
        think_start=think_start,
        think_end=think_end,
        tool_start=tool_start,
        tool_end=tool_end,
        kept_start=bool(begins),
    )


def initial_state(markers: Markers, tokenizer: PromptTokenizer, prompt: Sequence[int]) -> str:
    """Return the state that generation behind `prompt` (token ids) starts in.

    Reasoning, where the template left a think block open. mlx-lm takes any unclosed marker for that; here one that
    an end of turn follows does not count, or a user who writes `<think>` would turn every answer into reasoning.
    """
    start_tokens = tokenizer.think_start_tokens
    # The membership test runs in C: a long prompt without the marker costs no Python loop.
    if markers.initial != NORMAL or not start_tokens or start_tokens[0] not in prompt:
        return markers.initial
    start = tokenizer.rfind_think_start(prompt)
    if start < 0 or tokenizer.rfind_think_end(prompt, start=start) >= 0:
        return markers.initial
    ends = tokenizer.eos_token_ids
    return markers.initial if any(token in ends for token in prompt[start:]) else REASONING
