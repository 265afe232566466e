"""What log lines never hold: ends of lines that are none, keys of any kind, half of a surrogate pair."""

import logging
import sys
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from gateway.access.keys.text import mint
from gateway.telemetry.events import Events
from gateway.telemetry.logs import JsonLines, LineBudget, Redaction, TextLines

MASTER = 'pear/harbour+velvet=é"71'
SEPARATORS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
TRICKS = "\u202e\u2066\u200b\ufeff\x1b[2J\x9b"


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("gateway.x", logging.INFO, __file__, 1, message, args, None)
    made.__dict__ |= extra
    return made


@pytest.mark.parametrize("form", [TextLines(), JsonLines()], ids=["text", "json"])
def test_record_is_one_line_whatever_takes_a_character_for_its_end(form: logging.Formatter) -> None:
    """Unicode's separators too; nothing that hides or turns text stays as it is."""
    line = form.format(record(f"a{SEPARATORS}b{TRICKS}c", fields={"x": SEPARATORS + TRICKS}))
    assert len(line.splitlines()) == 1
    assert not set(line) & set(SEPARATORS + TRICKS.replace("[2J", ""))


def test_json_says_what_was_logged_although_it_is_escaped() -> None:
    """Whoever reads it gets the very characters."""
    assert orjson.loads(JsonLines().format(record(SEPARATORS + TRICKS)))["message"] == SEPARATORS + TRICKS


@pytest.mark.parametrize("form", [TextLines(), JsonLines()], ids=["text", "json"])
def test_half_a_surrogate_pair_is_written_as_its_number(form: logging.Formatter) -> None:
    """A line that can't be encoded would be lost, with a traceback in its place."""
    line = form.format(record("a\udcffb", fields={"x": "\ud800"}))
    assert "dcff" in line
    line.encode()


@pytest.mark.parametrize("form", [TextLines, JsonLines], ids=["text", "json"])
@pytest.mark.parametrize(
    "spelled", [str, lambda key: quote(key, safe=""), quote, lambda key: orjson.dumps(key).decode()[1:-1], repr,
                lambda key: repr(key.encode()), str.upper],
    ids=["plain", "quoted", "half quoted", "JSON", "repr", "bytes", "upper case"],
)  # fmt: skip
def test_key_is_taken_out_of_every_part_of_a_record(form: Any, spelled: Any) -> None:
    """Message, arguments, fields, the text of an exception; a key of our form and the master key, however escaped."""
    _, key = mint()
    redact = Redaction(MASTER)
    for secret in (key, MASTER):
        text = spelled(secret)
        if secret == key and text != text.swapcase() and spelled is str.upper:
            continue  # no key any more
        try:
            raise ValueError(f"can't read {text}")
        except ValueError:
            error = sys.exc_info()
        line = form(redact).format(record("m %s %s", text, text, fields={"x": text}, exc_info=error))
        assert text not in line
        assert secret not in line
        assert secret[13:] not in line
        if line.startswith("{"):
            orjson.loads(line)


def test_event_holds_no_key() -> None:
    """They are shown over HTTP."""
    events = Events(Redaction(MASTER))
    events.handle(record(f"m {MASTER}"))
    assert [event.message for event in events.list_latest(5)] == ["m …"]


def test_short_secret_is_not_looked_for() -> None:
    """A development key `x` would take a letter out of every word."""
    assert Redaction("x", None, "")("an example") == "an example"


def test_budget_counts_what_is_left_out() -> None:
    """So many at once, then one in a while, which says how many there were between."""
    now = [0.0]
    budget = LineBudget(burst=2, period_s=10.0, clock=lambda: now[0])
    assert [budget.take_line() for _ in range(5)] == ["", "", None, None, None]
    now[0] = 10.0
    assert budget.take_line() == " (3 more of these were not logged)"
    assert budget.take_line() is None
