"""The commands that the documents show, as they stand there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/operations.md", "docs/keys.md", "docs/models.md", "docs/api.md")


def blocks(page: str) -> list[str]:
    """The blocks of shell commands of a page, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, without their comments; what goes on behind a backslash is one."""
    joined = block.replace("\\\n", " ")
    found = (re.sub(r"\s{2,}#.*$", "", line) for line in joined.splitlines())
    return [re.sub(r"\s+", " ", line).strip() for line in found if line.strip()]


def block_with(page: str, command: str) -> str:
    """The block of a page that begins a line with `command`."""
    [found] = [block for block in blocks(page) if re.search(rf"^{re.escape(command)}", block, re.MULTILINE)]
    return found
