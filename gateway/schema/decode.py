"""From bytes to a checked request: orjson parses, msgspec types, the request checks itself.

Whatever the client sent, nothing but `ApiError` leaves here. Each step holds the event loop: 10 µs in all for an
ordinary body, up to 0.1 s each for the largest one whose structure is within the bounds of its kind. An error costs the
same whatever the size of the value that it is about.
"""

import gc
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import orjson

from gateway.schema.base import Request
from gateway.schema.errors import ApiError, invalid, unsupported

R = TypeVar("R", bound=Request)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LARGE_BYTES = 256 * 1024
_SHOWN_CHARS = 512
_PLACE_CHARS = 512
"""More than the longest place of a value in a request: names of fields, numbers, and `[...]` for keys."""

_MEDIA = MappingProxyType(
    {
        "image_url": "Images are only accepted in messages of the roles 'user' and 'tool'.",
        "input_audio": "Audio is not supported by any model of this pool.",
        "video_url": "Video is not supported by any model of this pool.",
        "file": "Files are not supported by any model of this pool.",
        "custom": "Custom tools are not supported by this server; use tools of type 'function'.",
    }
)
"""Parts that OpenAI-style clients send and that are refused by name."""

_TYPE_NAMES = MappingProxyType(
    {"float": "number", "int": "integer", "str": "string", "bool": "boolean", "array": "list"}
)


def decode(
    body: bytes, kind: type[R], *, beside: Mapping[str, Any] | None = None, ignored: set[str] | None = None
) -> R:
    """Read a JSON body as `kind`. Raises `ApiError` with the field at fault as `param`.

    `beside` holds fields that were given elsewhere; the body wins. `ignored` gets the names of what changes nothing.
    """
    return check(parse(body), kind, beside=beside, ignored=ignored)


def check(
    raw: dict[str, Any],
    kind: type[R],
    *,
    beside: Mapping[str, Any] | None = None,
    strict: bool = True,
    ignored: set[str] | None = None,
) -> R:
    """Convert a body's fields to `kind` and check them. Raises `ApiError`. Not `strict`: numbers may be text."""
    request = convert(raw, kind, beside=beside, strict=strict, ignored=ignored)
    request.check_values()
    return request


def convert(
    raw: dict[str, Any],
    kind: type[R],
    *,
    beside: Mapping[str, Any] | None = None,
    strict: bool = True,
    ignored: set[str] | None = None,
) -> R:
    """Convert a body's fields to `kind`, without its own `check_values`. Raises `ApiError`."""
    given = {name: value for name, value in raw.items() if value is not None}
    raw = kind.read_dialect(given, set() if ignored is None else ignored)
    _check_names(raw, kind.__struct_encode_fields__)
    if beside:
        raw = {**beside, **raw}
    try:
        kind.refuse_unsupported(raw)
        try:
            return msgspec.convert(raw, kind, strict=strict)
        except msgspec.ValidationError:
            # To JSON Schema 16.0 is an integer; clients that keep every number as a double write it so.
            return msgspec.convert(_whole_numbers(raw), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except RecursionError:
        raise invalid("The body is nested too deeply.", None) from None


def read_option(text: str, kind: Any, where: str) -> Any:
    """Parse a field that was given as text, in a header or a query. Raises `ApiError` with `where` as `param`."""
    try:
        text.encode()
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(_explain(f"{error} - at `$.{where}`").message, where) from None
    except ValueError:  # more digits than Python reads, or bytes that are no UTF-8
        raise invalid(f"Invalid value for '{where}'.", where) from None


def parse(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises `ApiError`.

    orjson refuses NaN, infinities, lone surrogates and more than 1,024 levels with an error of its own.
    """
    # Some clients on Windows begin a body with a byte order mark.
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        raw = orjson.loads(body) if len(body) < _LARGE_BYTES else _without_collector(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The body is not valid JSON: {_clip(str(error))}.", None) from None
    if not isinstance(raw, dict):
        raise invalid("The body must be a JSON object.", None)
    return raw


def _without_collector(body: bytes) -> Any:
    """Parse with the garbage collector off: it would walk the growing result over and over, three times the work."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        if was_on:
            gc.enable()


def _check_names(raw: dict[str, Any], fields: tuple[str, ...]) -> None:
    """Refuse the first name that is none of the fields. Raises `ApiError`."""
    for name in raw:
        if name not in fields:
            shown = _clip(name)
            raise ApiError("unsupported_parameter", f"Unsupported parameter: '{shown}'.", shown)


def _whole_numbers(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a body's fields, those as integers that are floats without a fraction (and exact)."""

    def whole(value: Any) -> Any:
        exact = isinstance(value, float) and abs(value) < 2**53 and value.is_integer()
        return int(value) if exact else value

    return {name: whole(value) for name, value in raw.items()}


def depth(value: Any, limit: int) -> int:
    """Count how deep containers are nested in `value`, itself included; stops counting above `limit`."""
    level, found = [value], 0
    while found <= limit:
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return found
        found += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return found


def _explain(text: str) -> ApiError:
    """Turn msgspec's message into a sentence and a `param` in the style of OpenAI's.

    The message holds the value, which may have megabytes, and ends with its place: only its two ends are looked at.
    """
    text, where = _ends(text)
    found = re.search(r"\$\.?(?P<path>[^`]*)", where)
    path = found["path"].replace("[...]", "") if found else ""
    if match := re.fullmatch(r"Object missing required field `(.*)`", text, re.DOTALL):
        param = _join(path, match[1])
        return invalid(f"Missing required parameter: '{param}'.", param)
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL):
        param = _join(path, _clip(match[1]))
        return ApiError("unsupported_parameter", f"Unsupported parameter: '{param}'.", param)
    if text.startswith("Expected `null`"):
        return unsupported(path)
    if match := re.fullmatch(r"Invalid (?:enum )?value '?(.*?)'?", text, re.DOTALL):
        if path.endswith(".type") and match[1] in _MEDIA:
            return ApiError("unsupported_parameter", _MEDIA[match[1]], f"{path.removesuffix('.type')}.{match[1]}")
        return invalid(f"Invalid value for '{path}': '{_clip(match[1])}'.", path or None)
    return invalid(f"Invalid value for '{path or 'body'}': {_wording(text)}.", path or None)


def _ends(text: str) -> tuple[str, str]:
    """Return the beginning of a message, and the place at its end."""
    tail = text[-_PLACE_CHARS:]
    at = tail.rfind(" - at `")
    end = len(text) - len(tail) + at if at >= 0 else len(text)
    # What closes a value that is cut off here closes it all the same.
    head = text[:end] if end <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + text[end - 1]
    return head, tail[at:] if at >= 0 else ""


def _wording(text: str) -> str:
    """Say it in words: "expected a string of length <= 3" for "Expected `str` of length <= 3"."""
    text = text.replace(" | null`", "`")
    text = re.sub(r"`([^`]+)`", lambda found: _names(found[1]), text)
    return _clip(text[:1].lower() + text[1:])


def _names(types: str) -> str:
    return " or ".join(_TYPE_NAMES.get(name, name) for name in types.split(" | "))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _clip(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
