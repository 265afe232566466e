"""Settings of a program: flags over environment over file over defaults. Both programs read theirs with this.

No setting stands here, and no file or environment is read here. It must stay light: supervisors import it.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NoReturn

import msgspec

from protocol import RELEASE
from protocol.values import switch


class ConfigError(Exception):
    """A setting that can't be used. One line: which setting, what is allowed."""


class Setting(msgspec.Struct, frozen=True):
    """One row of a table of settings.

    `key` is its name in a file; its flag and its first variable follow from that. `field` is its name in the
    configuration object, which has the unit. `aliases` are further keys, as good as the first. `more_variables` are
    looked at last, in order. A `secret` has no flag (any user of the machine can read those) and is never shown. One
    that `repeats` has a flag in the singular, which may be given more than once; elsewhere, commas do that.
    """

    key: str
    parse: Callable[[str], Any]
    help: str
    field: str = ""
    aliases: tuple[str, ...] = ()
    more_variables: tuple[str, ...] = ()
    secret: bool = False
    repeats: bool = False

    @property
    def name(self) -> str:
        """The field of the configuration object."""
        return self.field or self.key

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in a file."""
        return (self.key, *self.aliases)

    @property
    def flags(self) -> tuple[str, ...]:
        """`--log-level` for `log_level`; none of a secret."""
        keys = () if self.secret else self.keys
        return tuple("--" + (key.removesuffix("s") if self.repeats else key).replace("_", "-") for key in keys)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names in the environment; the first one set wins."""
        return (*(f"POOL_{key.upper()}" for key in self.keys), *self.more_variables)


class SettingsSource(msgspec.Struct, frozen=True):
    """One place where settings stand: the texts there by name, and the names of a setting there."""

    texts: Mapping[str, str | None]
    names: Callable[[Setting], tuple[str, ...]]
    file_name: str = ""

    def read_value(self, setting: Setting) -> tuple[Any, str] | None:
        """Return the value that stands here, and where it does; None without any. Raises `ConfigError`."""
        given = [name for name in self.names(setting) if self.texts.get(name) is not None]
        if not given:
            return None
        value = self._parse(setting, given[0])
        for name in given[1:]:
            if name not in setting.more_variables and self._parse(setting, name) != value:
                both = f"{given[0]} and {name}"
                raise ConfigError(f"{self._place(both)}: are one setting, and say different things; give one of them")
        return value, self.file_name or given[0]

    def _parse(self, setting: Setting, name: str) -> Any:
        text = str(self.texts[name])
        try:
            return setting.parse(text)
        except ValueError as error:
            shown = "" if setting.secret else f", not {text!r}"
            raise ConfigError(f"{self._place(name)}: {error}{shown}") from None

    def _place(self, name: str) -> str:
        return f"{self.file_name}: {name}" if self.file_name else name


def from_flags(given: Mapping[str, str | None]) -> SettingsSource:
    """Return a command line as a source; see `SettingsParser.read_flags`."""
    return SettingsSource(given, attrgetter("flags"))


def from_environment(environment: Mapping[str, str]) -> SettingsSource:
    """Return an environment as a source. A variable that is empty is not set."""
    return SettingsSource({name: text for name, text in environment.items() if text}, attrgetter("variables"))


def from_file(file_name: str, written: Mapping[str, str]) -> SettingsSource:
    """Return what a file says, by key, as a source."""
    return SettingsSource(written, attrgetter("keys"), file_name)


def read_settings(
    settings: Iterable[Setting], sources: Sequence[SettingsSource]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what was given: values by field, and where each came from by key. The first source that has one wins.

    Raises `ConfigError`.
    """
    values, origins = {}, {}
    for setting in settings:
        found = next((found for source in sources if (found := source.read_value(setting)) is not None), None)
        if found is not None:
            values[setting.name], origins[setting.key] = found
    return values, origins


class SettingsParser(argparse.ArgumentParser):
    """A command line with a flag for each setting. What is wrong with it raises `ConfigError`."""

    def __init__(self, *, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"mlx-pool {RELEASE}")

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`; see argparse."""
        raise ConfigError(message.removeprefix("argument "))

    def read_flags(self, settings: Sequence[Setting], argv: Sequence[str]) -> dict[str, str | None]:
        """Return what was given, by flag, None for what was not. `--help` exits. Raises `ConfigError`."""
        for setting in settings:
            self._add_setting(setting)
        known, unknown = self.parse_known_args(list(argv))
        if unknown:
            near = nearest(unknown[0].partition("=")[0], [flag for setting in settings for flag in setting.flags])
            raise ConfigError(f"{unknown[0]}: no such flag{near or '; see --help'}")
        return {flag: ",".join(text) if isinstance(text, list) else text for flag, text in vars(known).items()}

    def _add_setting(self, setting: Setting) -> None:
        same = f" (or {', '.join(setting.flags[1:])})" if setting.aliases else ""
        words = f"{setting.help}{same} [{', '.join(setting.variables)}]"
        for flag in setting.flags:
            option = self.add_argument(
                flag,
                dest=flag,
                action="append" if setting.repeats else "store",
                metavar="VALUE",
                help=words if flag == setting.flags[0] else argparse.SUPPRESS,
            )
            if setting.parse is switch:
                option.nargs, option.const = "?", "true"


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of a sentence that refuses `name`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
