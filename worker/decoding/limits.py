"""What decoding one image may cost. The largest good files take a third of it."""

HEADER_S = 0.7
"""Processor time until an image's size is known."""
START_S = 0.3
MEGAPIXEL_S = 0.08
MEGABYTE_S = 0.02
WALL_S = 60.0
"""Until an answer is there, on a machine that gives the process hardly any time."""
MEMORY_BYTES = 1536 << 20
"""Of the process: 33 megapixels with transparency, which a WebP decoder holds several times, take 1.0 GB."""
NICE = 5
TOO_MUCH_MEMORY = 77
"""Exit status of a process that found itself beyond the bound."""


def budget_s(pixels: int, file_bytes: int) -> float:
    """Processor time that decoding may take, in seconds."""
    return START_S + pixels / 1e6 * MEGAPIXEL_S + file_bytes / 1e6 * MEGABYTE_S
