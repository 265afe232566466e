"""Answers that are messages (Harmony) as rules: thoughts are free, then come calls or the answer itself. Pure."""

from collections.abc import Sequence

from worker.grammar.call_rules import write_each_call
from worker.grammar.lark import LarkBuilder
from worker.grammar.tools import ToolCase
from worker.text.harmony import ASSISTANT, CHANNEL, CONSTRAIN, END, MESSAGE, START, THOUGHTS
from worker.text.tool_calls.formats import ToolFormat

NEXT = f"{END}{START}{ASSISTANT}"
"""Between two messages of an answer."""
PREAMBLE, FINAL = "commentary", "final"
"""The channels of what is said before calls, and of the answer."""
JSON_KINDS = frozenset({"json_object", "json_schema"})
"""Kinds of grammars whose message may say in its header that it is JSON."""


def write_call_messages(form: ToolFormat, tools: Sequence[ToolCase], builder: LarkBuilder, *, parallel: bool) -> None:
    """Write `calls`: one message or several, each a call. Raises what `write_calls` raises.

    What ends the last one ends the answer, too.
    """
    write_each_call(form, tools, builder)
    builder.lines.append("calls: one" + (f" ({builder.spell(NEXT)} one)*" if parallel else ""))


def write_answer(builder: LarkBuilder, kind: str | None, *, calls: bool, demanded: bool) -> None:
    """Write `start`: the whole answer behind `<|start|>assistant`.

    `kind` is that of the grammar `@answer`; with None the answer is free text, unless calls are demanded.
    """
    spell = builder.spell
    free = kind is None and not demanded
    lines = [f"thought: {spell(f'{CHANNEL}{THOUGHTS}{MESSAGE}')} TEXT {spell(NEXT)}", "TEXT: /(?s:.*)/"]
    if free:
        lines.append(f"preamble: {spell(f'{CHANNEL}{PREAMBLE}{MESSAGE}')} TEXT {spell(NEXT)}")
    ends = ["calls"] if calls else []
    if not demanded:
        ends.append("final")
        said = f'(" " {spell(f"{CONSTRAIN}json")})? ' if kind in JSON_KINDS else ""
        lines.append(f"final: {spell(CHANNEL + FINAL)} {said}{spell(MESSAGE)} {'TEXT' if free else '@answer'}")
    # Where something is demanded, one thought comes before it: a model at a loss would think for ever.
    before = "(thought | preamble)*" if free else "thought?"
    builder.lines[:0] = [f"start: {before} ({' | '.join(ends)})", *lines]
