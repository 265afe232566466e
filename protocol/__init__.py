"""The contract between gateway and workers: messages, codec, addresses, error codes.

Imports nothing but the standard library and msgspec, so that both sides can share it.
The prose specification is `docs/protocol.md`; a test compares it with these types.
"""

VERSION = 1
"""Wire version. Raised only when an old peer would misread a new message."""

RELEASE = "0.1.0"
"""Version of the whole project. The package reads it here."""
