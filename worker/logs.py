"""How a worker's lines look: time, level, what happens. On stderr, where honcho puts its prefix before them."""

import logging
import sys

FORMAT = "%(asctime)s | %(levelname)s | %(message)s"


def configure(level: str) -> None:
    """Set up this process's log. `level` is a name as in `--log-level`."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=FORMAT, datefmt="%Y-%m-%d %H:%M:%S")
