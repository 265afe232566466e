"""Settings from a YAML file, as text by key. Knows no setting; refuses what it does not know, with the nearest name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gateway.settings import ConfigError, as_text, nearest


class _Yaml(yaml.SafeLoader):
    """Plain YAML, in which no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in seen if seen.count(key) > 1]:
            raise ConfigError(f"{twice[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


def find(named: str | None, usual: Sequence[str]) -> Path | None:
    """The file that was `named`, else the first of the `usual` ones that lies in the working folder.

    Raises `ConfigError` where the named one is not there.
    """
    if named is None:
        return next((path for path in map(Path, usual) if path.is_file()), None)
    path = Path(named).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {named}")
    return path


def read(path: Path, known: Sequence[str]) -> dict[str, str]:
    """What the file says. Raises `ConfigError`."""
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
                written[key] = as_text(value)
        except ValueError as error:
            raise ConfigError(f"{path.name}: {key}: {error}") from None
    return written
