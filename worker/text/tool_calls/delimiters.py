"""How models write arguments other than as JSON: the marks around each of them, by parser. Data and patterns alone.

Patterns are narrower than mlx-lm's parsers, which take much more for a call; what they do not know waits for those.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from worker.text.states import Edge, TextState
from worker.text.tool_calls import holdback as certainty

TEXT, TYPED, OTHER = "text", "typed", "other"
"""Kinds of `Slot`."""
CLOSE, ESCAPE, BREAK = "close", "escape", "break"
"""Targets of edges within a value: its end, a backslash, and what ends more than the value."""
ESCAPES: Mapping[str, str] = MappingProxyType({"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'})
"""Of Python, behind a backslash."""


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One way to write an argument.

    `opening` names its `key`, and `member` where what stands before that is no part of it. `kind` is whether the value
    is a text: always, by the tool's schema, or never. `state` ends it; there is none where `opening` holds all of the
    argument. Of what precedes the closing mark `cut` says what belongs to the value, `ended` what must remain,
    and `doubt` what is read otherwise.
    """

    opening: re.Pattern[str]
    closing: str = ""
    kind: str = TYPED
    state: TextState | None = None
    cut: certainty.Cut = certainty.stripped
    ended: re.Pattern[str] | None = None
    doubt: certainty.Doubt | None = None


class Delimiters(msgspec.Struct, frozen=True, kw_only=True):
    """A format.

    `head` is what stands before a call's arguments, `end` what ends it where others may follow in its block, `alone`
    what makes a call of a name, `{}`, and one argument between.
    """

    head: re.Pattern[str]
    slots: tuple[Slot, ...]
    alone: tuple[str, str]
    end: re.Pattern[str] | None = None


def _state(closing: str, *breaks: str, escape: bool = False) -> TextState:
    edges = [Edge(closing, CLOSE), *(Edge(text, BREAK) for text in breaks)]
    return TextState(closing, [*edges, Edge("\\", ESCAPE)] if escape else edges)


def _pairs(tag: str) -> Delimiters:
    key, value, close = f"<{tag}_key>", f"<{tag}_value>", f"</{tag}_value>"
    gap = r"(?:\\n|\s)*"
    return Delimiters(
        head=re.compile(rf"\s*(?P<name>[\w.:-]+)\s*(?={key})"),
        slots=(
            Slot(
                opening=re.compile(rf"{gap}{key}\s*(?P<key>[^\s<>]+)\s*</{key[1:]}{gap}{value}"),
                closing=close,
                state=_state(close),
            ),
        ),
        alone=("{}", ""),
    )


def _cdata_or_not() -> tuple[Slot, Slot]:
    opening = r"\s*<param\s+name\s*=\s*([\"']?)(?P<key>[^\s\"'<>]+)\1\s*>"
    mark, close = re.escape(certainty.CDATA), "</param>"
    begun = "|".join(re.escape(certainty.CDATA[:size]) for size in range(len(certainty.CDATA)))
    return (
        Slot(
            opening=re.compile(rf"{opening}\s*{mark}"),
            closing=close,
            state=_state(close),
            cut=certainty.cdata,
            ended=certainty.CDATA_END,
            doubt=certainty.null,
        ),
        Slot(
            opening=re.compile(rf"{opening}(?!\s*(?:{mark}|(?:{begun})\Z))"),
            closing=close,
            state=_state(close),
            doubt=certainty.null,
        ),
    )


def _quoted(quote: str) -> Slot:
    """A string of Python in one line. Three quotes are another one, and wait."""
    return Slot(
        opening=re.compile(rf"\s*[(,]\s*(?P<member>(?P<key>[^\W\d]\w*)\s*=\s*{quote})(?!{quote}|\Z)"),
        closing=quote,
        kind=TEXT,
        state=_state(quote, "\n", "\r", "\0", escape=True),
        cut=certainty.whole,
    )


_GLM = _pairs("arg")
MARKS = MappingProxyType(
    {
        "glm47": _GLM,
        "laguna": _GLM,
        "longcat": _pairs("longcat_arg"),
        "qwen3_coder": Delimiters(
            head=re.compile(r"\s*<function=(?P<name>[\w.:-]+)>"),
            slots=(
                Slot(
                    opening=re.compile(r"\s*<parameter=(?P<key>[^\s<>]+)>"),
                    closing="</parameter>",
                    state=_state("</parameter>"),
                    cut=certainty.lines,
                    doubt=certainty.null,
                ),
            ),
            alone=("<function={}>", "</function>"),
        ),
        "minimax_m2": Delimiters(
            head=re.compile(r'\s*<invoke name="(?P<name>[\w.:-]+)">'),
            slots=(
                Slot(
                    opening=re.compile(r'\s*<parameter name="(?P<key>[^\s"<>]+)">'),
                    closing="</parameter>",
                    state=_state("</parameter>", "</invoke>"),
                    doubt=certainty.null,
                ),
            ),
            alone=('<invoke name="{}">', "</invoke>"),
            end=re.compile(r"\s*</invoke>"),
        ),
        "minicpm5": Delimiters(
            head=re.compile(r"\s*([\"']?)(?P<name>[\w.:-]+)\1\s*>"), slots=_cdata_or_not(), alone=('"{}">', "")
        ),
        "muse_spark": Delimiters(
            head=re.compile(r'\s*<atem:invoke name="(?P<name>[\w.:-]+)">'),
            slots=(
                Slot(
                    opening=re.compile(r'\s*<atem:parameter\b[^>]*?\bname="(?P<key>[^"]+)"[^>]*?>'),
                    closing="</atem:parameter>",
                    state=_state("</atem:parameter>"),
                    doubt=certainty.json,
                ),
            ),
            alone=('<atem:invoke name="{}">', "</atem:invoke>"),
            end=re.compile(r"\s*</atem:invoke>"),
        ),
        "kimi_k3": Delimiters(
            head=re.compile(
                r'\s*<\|open\|>call tool="(?P<name>[\w.:-]+)"(?: index="\d+")?<\|sep\|>'
                r"(?=\s*<\|(?:open\|>argument|close\|>call))"
            ),
            slots=tuple(
                Slot(
                    opening=re.compile(rf'\s*<\|open\|>argument key="(?P<key>[^"&<>|]+)"{types}<\|sep\|>'),
                    closing="<|close|>argument<|sep|>",
                    kind=kind,
                    state=_state("<|close|>argument<|sep|>", "<|close|>call<|sep|>"),
                    cut=certainty.whole,
                )
                for kind, types in ((TEXT, '(?: type="string")?'), (OTHER, r' type="(?!string")\w+"'))
            ),
            alone=('<|open|>call tool="{}"<|sep|>', "<|close|>call<|sep|>"),
            end=re.compile(r"\s*<\|close\|>call<\|sep\|>"),
        ),
        "gemma4": Delimiters(
            head=re.compile(r"\s*call:(?P<name>[\w-]+)(?=\{)"),
            slots=(
                Slot(
                    opening=re.compile(r'[{,](?P<member>(?P<key>\w+):<\|"\|>)'),
                    closing='<|"|>',
                    kind=TEXT,
                    state=_state('<|"|>'),
                    cut=certainty.whole,
                ),
                Slot(opening=re.compile(r"[{,](?P<member>(?P<key>\w+):[^{}\[\],<:]+)(?=[,}])"), kind=OTHER),
            ),
            alone=("call:{}{", "}"),
            end=re.compile(r"\{?\}"),
        ),
        "pythonic": Delimiters(
            head=re.compile(r"\s*[\[,]\s*(?P<name>[^\W\d][\w.]*)(?=\()"),
            slots=(
                _quoted('"'),
                _quoted("'"),
                Slot(
                    opening=re.compile(
                        r"\s*[(,]\s*(?P<member>(?P<key>[^\W\d]\w*)\s*=\s*"
                        r"(?:True|False|None|true|false|null|\"\"|''|-?\d[\d.]*))(?=\s*[,)])"
                    ),
                    kind=OTHER,
                ),
            ),
            alone=("[{}(", ")]"),
            end=re.compile(r"\s*\(?\s*\)"),
        ),
    }
)
"""FunctionGemma is not among them: its parser ends a call at the first brace, be it within a string, so that nothing of
a string is certain before its call has been read."""
