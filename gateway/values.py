"""Kinds of value that only the gateway's settings have; see `protocol.values`."""

import ipaddress
import re

from protocol.values import switch, whole

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def word(text: str) -> str:
    """Read any text but none."""
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def names(text: str) -> tuple[str, ...]:
    """Read words with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(text: str) -> dict[str, str]:
    """Read `NAME=MODEL,...`."""
    found = {}
    for part in names(text):
        name, equals, target = part.partition("=")
        if not (name and equals and target):
            raise ValueError("must be NAME=MODEL,...")
        found[name.strip()] = target.strip()
    return found


def networks(text: str) -> tuple[Network, ...]:
    """Read addresses and networks, as in `127.0.0.1,10.0.0.0/8`."""
    try:
        return tuple(ipaddress.ip_network(part) for part in names(text))
    except ValueError:
        raise ValueError("must be addresses or networks, as in 127.0.0.1,10.0.0.0/8") from None


def domains(text: str) -> tuple[str, ...] | str:
    """Read `on`, `off`, or names of hosts, each of which stands for those below it, too."""
    if text.lower() in ("on", "off", "true", "false"):
        return "on" if switch(text) else "off"
    found = tuple(name.lower() for name in names(text))
    if not found or not all(re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+", name) for name in found):
        raise ValueError("must be on, off or domains, as in example.com,images.example.org")
    return found


def ports(text: str) -> tuple[int, ...]:
    """Read port numbers with commas between them."""
    try:
        return tuple(whole(1, 65535)(name) for name in names(text))
    except ValueError:
        raise ValueError("must be port numbers, as in 80,443") from None


def modules(text: str) -> tuple[str, ...]:
    """Read dotted names of Python modules."""
    found = names(text)
    if not all(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) for name in found):
        raise ValueError("must be modules, as in package.module")
    return found
