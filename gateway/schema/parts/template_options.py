"""Scalars that a request hands to the model's chat template, by the template's own names."""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.schema.base import ContentPart
from gateway.schema.errors import ApiError, invalid
from gateway.schema.parts.bounds import Effort
from gateway.schema.parts.thinking import ThinkingBudget
from protocol.messages import Ready
from protocol.template_names import is_reserved

MAX_OPTIONS = 32
OptionText = Annotated[str, Meta(max_length=4096)]
OptionNumber = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TemplateKwargs = Annotated[
    dict[str, bool | OptionNumber | float | OptionText | None],
    Meta(description="Scalars for the model's chat template, by its own names, such as `enable_thinking`."),
]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_SHOWN_CHARS = 64


class TemplateOptions(ContentPart, frozen=True, kw_only=True):
    """Those that mean the same for every model."""

    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: ThinkingBudget | None = None


SWITCHES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})
"""Any of these makes a template think or not: what a request says by one of them reaches it."""


def check_options(kwargs: TemplateKwargs | None) -> None:
    """Check names, and values of those that the pool knows. Raises `ApiError`."""
    if kwargs is None:
        return
    if len(kwargs) > MAX_OPTIONS:
        raise invalid(
            f"'chat_template_kwargs' has {len(kwargs)} names; at most {MAX_OPTIONS} are allowed.",
            "chat_template_kwargs",
        )
    for name in kwargs:
        where = f"chat_template_kwargs.{name[:_SHOWN_CHARS]}"
        if is_reserved(name):
            raise ApiError("unsupported_parameter", f"Unsupported parameter: '{where}'.", where)
        if not _NAME.fullmatch(name):
            raise invalid(f"Invalid name '{where}': a letter, then up to 63 letters, digits and '_'.", where)
    read_known(kwargs)


def read_known(kwargs: TemplateKwargs | None) -> TemplateOptions:
    """Return the options that the pool knows. Raises `ApiError`."""
    known = {name: value for name, value in (kwargs or {}).items() if name in TemplateOptions.__struct_fields__}
    try:
        return msgspec.convert(known, TemplateOptions)
    except msgspec.ValidationError as error:
        found = re.search(r"\$\.(\w+)", str(error))
        where = f"chat_template_kwargs.{found[1]}" if found else "chat_template_kwargs"
        raise invalid(f"Invalid value for '{where}'.", where) from None


def given_options(kwargs: TemplateKwargs | None) -> dict[str, bool | int | float | str]:
    """Return what is given, by name."""
    return {name: value for name, value in (kwargs or {}).items() if value is not None}


def name_unread(kwargs: TemplateKwargs | None, ready: Ready | None) -> set[str]:
    """Return the parameters that change nothing, since the model's template does not read them."""
    if ready is None or ready.template_names is None:
        return set()
    names = set(ready.template_names)
    return {f"chat_template_kwargs.{name}" for name in given_options(kwargs) if not _is_read(name, names)}


def reads_switches(ready: Ready | None) -> bool:
    """Return whether the model's template may read any of what turns thinking on or off."""
    return ready is None or ready.template_names is None or bool(SWITCHES.intersection(ready.template_names))


def _is_read(name: str, names: set[str]) -> bool:
    # A budget is kept by the pool, whatever the template makes of it.
    return name in names or name == "thinking_budget" or (name in SWITCHES and bool(SWITCHES & names))
