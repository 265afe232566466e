"""Kinds of value that only a worker's settings have; see `protocol.values`. The supervisor imports this."""

import re
from pathlib import Path

from protocol.messages import Kind
from protocol.values import choice, path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127})?")

REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


def bits(text: str) -> int:
    """Read 8 or 4; 0 for none."""
    return 0 if (chosen := choice("none", "8", "4")(text)) == "none" else int(chosen)


def kind(text: str) -> Kind:
    """Read what a model is for."""
    match text.lower():
        case "chat" | "lm":
            return Kind.CHAT
        case "vision" | "multimodal":
            return Kind.VISION
        case "embedding" | "embeddings":
            return Kind.EMBEDDING
        case _:
            raise ValueError("must be chat (or lm), vision (or multimodal), embedding (or embeddings)")


def name(text: str) -> str:
    """Read what clients may call a model."""
    if not NAME.fullmatch(text):
        raise ValueError("must be letters, digits and ._:@+- with at most one /, 128 characters a part at most")
    return text


def engine(text: str) -> str:
    """Read a class by module and name."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text):
        raise ValueError("must look like package.module:Class")
    return text


def location(text: str) -> str:
    """Read a path, with `~` for the home folder, or a hub id."""
    if not text.strip() or "\0" in text:
        raise ValueError("must be a path or a hub id")
    return str(Path(text).expanduser()) if text.startswith("~") else text


def revision(text: str) -> str:
    """Read a commit, tag or branch."""
    if not REVISION.fullmatch(text) or ".." in text:
        raise ValueError("must be a commit, a tag or a branch, of letters, digits and ._/- and at most 100 characters")
    return text


def adapters(text: str) -> dict[str, str]:
    """Read paths by the names they are served under."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, where = part.partition("=")
        if not equals or not where.strip() or not NAME.fullmatch(name):
            raise ValueError("must be name=path, the name as for --served-name, without commas in the path")
        if name in found:
            raise ValueError(f"must give {name} to one adapter only")
        found[name] = location(where)
    return found


def folder(text: str) -> Path:
    """Read a folder of this machine."""
    return path(text).absolute()
