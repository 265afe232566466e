"""JSON schemas as pydantic and zod write them for their common types."""

import collections
import datetime
import decimal
import enum
import ipaddress
import json
import os
import pathlib
import re
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

NODE = pathlib.Path(__file__).parents[1] / "clients" / "node"


class Colour(enum.StrEnum):
    """A class of names."""

    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    """A class of numbers."""

    SMALL = 1
    LARGE = 2


class Cat(BaseModel):
    """A branch with a tag that is optional, as pydantic writes it."""

    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=0, le=9)] = 9


class Dog(BaseModel):
    """The other one."""

    kind: Literal["dog"] = "dog"
    good: bool = True


class Node(BaseModel):
    """A tree."""

    value: Annotated[int, Field(ge=0, le=9)]
    children: list["Node"] = []


class Whole(BaseModel):
    """Much of it in one class that is closed."""

    model_config = ConfigDict(extra="forbid")
    counts: dict[Colour, Annotated[int, Field(ge=0, le=9)]]
    tags: set[Colour]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    price: decimal.Decimal
    span: datetime.timedelta | None = None


Tagged = Annotated[Cat | Dog, Field(discriminator="kind")]
TYPES: dict[str, Any] = {
    "dict of enum": dict[Colour, int], "dict of str": dict[str, int], "dict of int": dict[int, str],
    "dict of literal": dict[Literal["a", "b"], Cat], "dict of uuid": dict[uuid.UUID, int],
    "dict of date": dict[datetime.date, int],
    "dict of short": dict[Annotated[str, StringConstraints(min_length=1, max_length=5)], int],
    "dict of pattern": dict[Annotated[str, StringConstraints(pattern="^[a-z]+$")], int],
    "dict of dicts": dict[str, list[dict[str, int]]], "defaultdict": collections.defaultdict[str, int],
    "counter": collections.Counter[str], "set": set[str], "frozenset": frozenset[int], "set of enum": set[Colour],
    "tagged union": Tagged, "list of tagged": list[Tagged], "union of models": Cat | Dog, "union": int | str,
    "tuple": tuple[int, str], "tuple of any length": tuple[int, ...], "list": list[Cat], "sequence": Sequence[int],
    "deque": collections.deque[int], "decimal": decimal.Decimal, "date": datetime.date, "time": datetime.time,
    "datetime": datetime.datetime, "timedelta": datetime.timedelta, "aware": pydantic.AwareDatetime,
    "bytes": bytes, "base64": pydantic.Base64Bytes, "base64url": pydantic.Base64UrlStr, "uuid": uuid.UUID,
    "uuid4": pydantic.UUID4, "path": pathlib.Path, "file": pydantic.FilePath, "folder": pydantic.DirectoryPath,
    "ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address, "network": ipaddress.IPv4Network,
    "any address": pydantic.IPvAnyAddress, "any network": pydantic.IPvAnyNetwork, "url": pydantic.AnyUrl,
    "http url": pydantic.HttpUrl, "secret": pydantic.SecretStr, "json": pydantic.Json[list[int]],
    "pattern": re.Pattern[str], "float": float, "int": int, "bool": bool, "none": None, "any": Any,
    "literal": Literal["a", 1, None], "enum": Colour, "int enum": Size, "bounds": Annotated[float, Field(ge=0, lt=1)],
    "multiple": Annotated[int, Field(gt=0, le=10, multiple_of=2)],
    "constrained": Annotated[str, StringConstraints(pattern=r"^\d{3}$")], "byte size": pydantic.ByteSize, "tree": Node,
    "optional": int | None, "whole": Whole,
}  # fmt: skip


def pydantic_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas of `TYPES`, for what is read and for what is written."""
    modes: tuple[Literal["validation", "serialization"], ...] = ("validation", "serialization")
    adapters = {name: TypeAdapter(kind) for name, kind in TYPES.items()}
    return {f"{name}, {mode}": one.json_schema(mode=mode) for name, one in adapters.items() for mode in modes}


def zod_schemas() -> dict[str, dict[str, Any]]:
    """Return zod's schemas; skip the test without node."""
    if shutil.which("node") is None or not (NODE / "node_modules" / "zod").exists():
        assert os.environ.get("CI") != "true", "node and zod are needed for this part of the suite"
        pytest.skip("node or zod is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["node", "schemas.mjs"], cwd=NODE, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    assert len(found) > 200
    return found
