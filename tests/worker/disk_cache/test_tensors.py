"""Files of arrays: what was written is what is read, by others too, and what is broken is noticed."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from worker.disk_cache import tensors
from worker.disk_cache.tensors import Damaged, Tensor


def content() -> dict[str, Tensor]:
    random = np.random.default_rng(1)
    numbers = random.integers(0, 2**16, (1, 2, 9, 4), dtype=np.uint16)
    return {
        "0.keys": Tensor("BF16", numbers[:, :, 2:7]),
        "1.state": Tensor("F32", random.standard_normal((3, 5), dtype=np.float32).view(np.uint32)),
        "empty": Tensor("U8", np.zeros((0, 3), dtype=np.uint8)),
    }


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Bit by bit, slices of larger arrays included; the file is for its owner alone."""
    path = tmp_path / "a.safetensors"
    written = content()
    assert tensors.write(path, written, {"shape": "x"}) == path.stat().st_size
    found, metadata = tensors.read(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert metadata["shape"] == "x"
    assert list(found) == list(written)
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].bits.shape == tensor.bits.shape
        assert (found[name].bits == tensor.bits).all()


def test_file_is_one_that_others_read(tmp_path: Path) -> None:
    """It is safetensors: MLX's own reader finds the same numbers in it."""
    written = {name: tensor for name, tensor in content().items() if name != "empty"}
    tensors.write(tmp_path / "a.safetensors", written, {})
    found = mx.load(str(tmp_path / "a.safetensors"))
    assert isinstance(found, dict)
    assert found["0.keys"].dtype == mx.bfloat16
    assert (np.asarray(found["0.keys"].view(mx.uint16)) == written["0.keys"].bits).all()
    assert (np.asarray(found["1.state"]).view(np.uint32) == written["1.state"].bits).all()


@pytest.mark.parametrize("harm", ["empty", "header", "cut", "longer", "flipped", "zeros", "text"])
def test_damage_is_noticed(tmp_path: Path, harm: str) -> None:
    """Whatever a power cut or a bad disk leaves of a file."""
    path = tmp_path / "a.safetensors"
    tensors.write(path, content(), {})
    data = bytearray(path.read_bytes())
    match harm:
        case "empty":
            data = bytearray()
        case "header":
            data[30] ^= 1
        case "cut":
            data = data[:-1]
        case "longer":
            data += b"\0"
        case "flipped":
            data[-7] ^= 16
        case "zeros":
            data = bytearray(len(data))
        case "text":
            data = bytearray(b"\xff" * 8 + b"hello")
    path.write_bytes(data)
    with pytest.raises(Damaged):
        tensors.read(path)
