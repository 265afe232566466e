"""One safetensors file: arrays of plain bits in, arrays out, or a word about what is wrong with it.

Written here and not by the safetensors package, which wants every array copied into bytes first. A checksum goes into
the metadata: after a power cut a file can have its right length and zeros in it.
"""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]
"""An array as unsigned integers of its own width: numpy knows no bfloat16."""

WIDTHS = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64"), 8),
    }
)
"""Bytes of a number, by what it is."""


class Tensor(msgspec.Struct, frozen=True, eq=False):
    """`dtype` is what the bits stand for, in the words of safetensors (`BF16`, `F32`, …)."""

    dtype: str
    bits: Bits


class Damaged(Exception):
    """The file is not what was once written."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a new file, mode 0600; returns its size. Raises `OSError`."""
    pieces: list[Bits] = []
    header: dict[str, Any] = {}
    at = crc = 0
    for name, tensor in tensors.items():
        piece = np.ascontiguousarray(tensor.bits)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.bits.shape,
            "data_offsets": (at, at + piece.nbytes),
        }
        at += piece.nbytes
        crc = zlib.crc32(_flat(piece), crc)
        pieces.append(piece)
    header["__metadata__"] = {**metadata, "crc32": f"{crc:08x}"}
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        for view in (memoryview(len(text).to_bytes(8, "little") + text), *map(_flat, pieces)):
            rest = view
            while rest:
                rest = rest[file.write(rest) :]
    return 8 + len(text) + at


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All arrays and the metadata of a file that `write` wrote. Raises `OSError`, `Damaged`."""
    data = np.fromfile(path, dtype=np.uint8)
    try:
        size = int.from_bytes(data[:8].tobytes(), "little")
        header = msgspec.json.decode(data[8 : 8 + size].tobytes(), type=dict[str, dict[str, Any]])
        body = data[8 + size :]
        metadata = header.pop("__metadata__")
        whole = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        if len(body) != whole or f"{zlib.crc32(body.data):08x}" != metadata["crc32"]:
            raise Damaged(f"{path.name} is cut or changed")
        return {name: _tensor(entry, body) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged(f"{path.name}: {error}") from None


def _tensor(entry: dict[str, Any], body: Bits) -> Tensor:
    start, end = entry["data_offsets"]
    dtype: str = entry["dtype"]
    bits = np.frombuffer(body[start:end].data, dtype=f"<u{WIDTHS[dtype]}").reshape(entry["shape"])
    return Tensor(dtype, bits)


def _flat(piece: Bits) -> memoryview:
    return piece.reshape(-1).view(np.uint8).data
