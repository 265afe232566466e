"""What a setting is and how its text is read. Pure: no file, no environment, no setting of its own."""

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from protocol.values import switch

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SECRET = "********"  # noqa: S105 - what is shown in the place of one


class ConfigError(Exception):
    """A setting that can't be used. One line: which setting, what is allowed."""


class Setting(msgspec.Struct, frozen=True):
    """One row of the table of settings.

    `key` is its name in the file; the flag and the first environment variable follow from it. `field` is its name in
    the configuration object, which has the unit. `aliases` are further variables, looked at in order. A `secret` has
    no flag (any user of the machine can read those) and is never shown.
    """

    key: str
    parse: Callable[[str], Any]
    help: str
    field: str = ""
    aliases: tuple[str, ...] = ()
    secret: bool = False

    @property
    def name(self) -> str:
        """The field of the configuration object."""
        return self.field or self.key

    @property
    def flag(self) -> str | None:
        """`--keep-alive` for `keep_alive`."""
        return None if self.secret else "--" + self.key.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Names in the environment; the first one set wins."""
        return (f"POOL_{self.key.upper()}", *self.aliases)

    def read_value(self, text: str, where: str) -> Any:
        """The value that `text` means. Raises `ConfigError` that says `where` it stands."""
        try:
            return self.parse(text)
        except ValueError as error:
            shown = "" if self.secret else f", not {text!r}"
            raise ConfigError(f"{where}: {error}{shown}") from None


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence that refuses `name`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def as_text(value: object) -> str:
    """A value from a YAML file, written as it would be in a flag. Raises `ValueError` for what a flag can't say."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list():
            return ",".join(as_text(item) for item in value)
        case dict():
            return ",".join(f"{as_text(name)}={as_text(item)}" for name, item in value.items())
        case _:
            raise ValueError("must be text, a number, true, false, a list or a mapping")


def show(value: object) -> object:
    """A value as a YAML file would have it."""
    match value:
        case Path():
            return str(value)
        case Mapping():
            return dict(value)
        case tuple():
            return [str(item) for item in value]
        case _:
            return value


# -- Kinds of value: each a function from text, raising `ValueError` with what is allowed


def word(text: str) -> str:
    """Any text but none."""
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def choice(*allowed: str, also: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """One of some words; `also` holds other words for them."""

    def parse(text: str) -> str:
        found = (also or {}).get(text.lower(), text.lower())
        if found not in allowed:
            raise ValueError(f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")
        return found

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}", text.replace("_", "")) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def path(text: str) -> Path:
    """A path, with `~` for the home folder."""
    if not text.strip() or "\0" in text:
        raise ValueError("must be a path")
    return Path(text).expanduser()


def names(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(text: str) -> dict[str, str]:
    """`NAME=MODEL,...`."""
    found = {}
    for part in names(text):
        name, equals, target = part.partition("=")
        if not (name and equals and target):
            raise ValueError("must be NAME=MODEL,...")
        found[name.strip()] = target.strip()
    return found


def networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks, as in `127.0.0.1,10.0.0.0/8`."""
    try:
        return tuple(ipaddress.ip_network(part) for part in names(text))
    except ValueError:
        raise ValueError("must be addresses or networks, as in 127.0.0.1,10.0.0.0/8") from None


def domains(text: str) -> tuple[str, ...] | str:
    """`on`, `off`, or names of hosts, each of which stands for those below it, too."""
    if text.lower() in ("on", "off", "true", "false"):
        return "on" if switch(text) else "off"
    found = tuple(name.lower() for name in names(text))
    if not found or not all(re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+", name) for name in found):
        raise ValueError("must be on, off or domains, as in example.com,images.example.org")
    return found


def ports(text: str) -> tuple[int, ...]:
    """Port numbers with commas between them."""
    try:
        return tuple(whole(1, 65535)(name) for name in names(text))
    except ValueError:
        raise ValueError("must be port numbers, as in 80,443") from None


def modules(text: str) -> tuple[str, ...]:
    """Dotted names of Python modules."""
    found = names(text)
    if not all(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) for name in found):
        raise ValueError("must be modules, as in package.module")
    return found
