"""Settings from a YAML file, as text by key, and back. Knows no setting; refuses unknown ones with the nearest name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from protocol.settings import ConfigError, nearest


class _Yaml(yaml.SafeLoader):
    """Plain YAML, in which no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in seen if seen.count(key) > 1]:
            raise ConfigError(f"{twice[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


def find_file(named: str | None, usual: Sequence[str]) -> Path | None:
    """Return the file that was `named`, else the first of the `usual` ones that lies in the working folder.

    Raises `ConfigError` where the named one is not there.
    """
    if named is None:
        return next((path for path in map(Path, usual) if path.is_file()), None)
    path = Path(named).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {named}")
    return path


def read_file(path: Path, known: Sequence[str]) -> dict[str, str]:
    """Return what the file says, by key. Raises `ConfigError`."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path.name}: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path.name}: must hold settings, one 'name: value' on each line")
    written = {}
    for key, value in found.items():
        if key not in known:
            raise ConfigError(f"{path.name}: {key}: no such setting{nearest(str(key), known)}")
        try:
            if value is not None:
                written[key] = _as_text(value)
        except ValueError as error:
            raise ConfigError(f"{path.name}: {key}: {error}") from None
    return written


def _as_text(value: object) -> str:
    """Write a value of a YAML file as a flag has it. Raises `ValueError` for what a flag can't say."""
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value)
        case list():
            return ",".join(_as_text(item) for item in value)
        case dict():
            return ",".join(f"{_as_text(name)}={_as_text(item)}" for name, item in value.items())
        case _:
            raise ValueError("must be text, a number, true, false, a list or a mapping")


def yaml_value(value: object) -> object:
    """Return a value as a YAML file would have it."""
    match value:
        case Path():
            return str(value)
        case Mapping():
            return dict(value)
        case tuple():
            return [str(item) for item in value]
        case _:
            return value
