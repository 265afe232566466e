"""Which variables of an environment are secrets, and the ban on core dumps. Nothing here reads an environment.

Who starts a pool (a shell, honcho) gives all its processes one environment, the gateway's keys included. Processes that
run models need none of them, and what stands in a process's first environment can be read as long as it lives.
"""

import contextlib
import re
import resource
from collections.abc import Mapping
from pathlib import Path

_SECRET = re.compile(r"(^|_)(API_?KEYS?|KEYS?|TOKEN|SECRETS?|PASSWORD|PASSWD|PASS|CREDENTIALS?|HEADERS)(_|$)")
_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^@\s]+@")
_ALWAYS = frozenset({"POOL_RATE_LIMIT_STORAGE"})
_HUB = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")


def without_secrets(environment: Mapping[str, str], *, hub: bool) -> dict[str, str]:
    """Return an environment without keys, tokens, passwords, and addresses that hold a password.

    With `hub`, what is needed to fetch models from the hub stays: its token, and proxies.
    """
    return {name: value for name, value in environment.items() if not _is_secret(name.upper(), value, hub=hub)}


def _is_secret(name: str, value: str, *, hub: bool) -> bool:
    if hub and name.startswith(_HUB):
        return False
    if name in _ALWAYS or _SECRET.search(name):
        return True
    return _WITH_PASSWORD.search(value) is not None and not (hub and name.endswith("_PROXY"))


def forbid_core_dumps() -> None:
    """Have no crash of this process, or of one it starts, write its memory to a file: it holds keys and prompts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Linux hands a dump to a program, if one is set up for that, whatever the limit: then there is nothing in it.
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0")
