"""Why a grammar can't be made, in words for whoever sent it: never the hints of a library to its own users. Pure."""

import re

MOST_CHARS = 300
_UNFIT = re.compile(r"Unsatisfiable schema: (.+)")
_POINTER = re.compile(r"Pointer '(.+?)' does not exist")
_KEYS = re.compile(r"Unimplemented keys: (\[.+?\])")
_EXPRESSION = re.compile(r"regex parse error:.*\berror: (.+)|lookarounds? not supported yet.*")
_HINT = re.compile(r"(?i)\b(enable|option|x-guidance|coerce|unimplemented|not supported yet)\b")


def name_refusal(said: str) -> str:
    """Return what to say for what the library said of a grammar."""
    said = " ".join(said.split())
    if found := _UNFIT.search(said):
        return f"no answer would fit it ({found[1][:MOST_CHARS]})"
    if found := _POINTER.search(said):
        return f"it names {found[1]!r}, which is not there"
    if found := _KEYS.search(said):
        return f"no grammar can say {found[1]}"
    if found := _EXPRESSION.search(said):
        return f"an expression in it can't be followed: {found[1] or 'it looks ahead or behind'}"[:MOST_CHARS]
    if _HINT.search(said):
        return "no grammar can say all that it asks for"
    return said[:MOST_CHARS]
