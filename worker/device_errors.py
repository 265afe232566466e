"""Errors of the device. After one, nothing that the process computes can be trusted: the process ends.

MLX raises `RuntimeError` for them, once, and computes on as if nothing was. They are told apart by how their text
begins: Metal's command buffers (`[METAL]`), allocations (`[metal::malloc]`, `[malloc]`), events (`[Event::…]`).
"""

_BEGINNINGS = ("[METAL]", "[metal::", "[malloc", "[Event")
_MEMORY = ("malloc", "Insufficient Memory", "OutOfMemory")


def is_device_error(error: BaseException) -> bool:
    """Return whether the device has failed, for whatever reason."""
    return isinstance(error, RuntimeError | MemoryError) and str(error).startswith(_BEGINNINGS)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device has failed for want of memory."""
    return is_device_error(error) and any(word in str(error) for word in _MEMORY)
