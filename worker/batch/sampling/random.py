"""Random numbers that depend on a row's seed, choice and position, and on nothing else.

So a sampled answer is the same alone and in a crowd, on any replica, and when it is resumed in the middle.
"""

import numpy as np
from numpy.typing import NDArray

# splitmix64's constants and finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def row_key(seed: int, choice: int) -> int:
    """Return the 64-bit key of one row; any integer is a legal seed."""
    # Arrays, since those wrap around silently; numpy warns where scalars do.
    base, number = np.array([[seed & 0xFFFFFFFFFFFFFFFF], [choice]], dtype=np.uint64)
    return int(_mix(_mix(base + _GAMMA) + number * _GAMMA)[0])


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float32]:
    """One draw in [0, 1) per row, shape `[rows]`; 24 bits, so exact in float32."""
    bits = _mix(keys + (positions + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
