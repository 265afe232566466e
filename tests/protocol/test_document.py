"""docs/protocol.md says what the types say: every message, every field, in order; and the other way round."""

import ast
import inspect
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest

import protocol
from protocol import codec, messages
from protocol.errors import Code
from protocol.messages import Kind, Message, State, Watch

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
MESSAGES = {
    name: kind
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}


def rows(text: str) -> list[list[str]]:
    """The cells of the first table in a text, heading and rule left out."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table, f"no table in {text[:80]!r}"
    lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table[0].splitlines()]
    return [[cell.strip().replace(r"\|", "|").strip("`") for cell in line] for line in lines[2:]]


def documented(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """(field, type, default) of each message that a document describes."""
    parts = re.split(r"^### `(\w+)`\n", text, flags=re.MULTILINE)
    return {
        name: [(field, kind, default) for field, kind, default, meaning in rows(body) if meaning]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def defined(kind: type[Message]) -> list[tuple[str, str, str]]:
    """The same of a type: names, order and defaults as msgspec has them, types as they are written."""
    [source] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(source, ast.ClassDef)
    written = {
        line.target.id: ast.unparse(line.annotation)
        for line in source.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return [(field.name, written[field.name], default_of(field)) for field in msgspec.structs.fields(kind)]


def default_of(field: Any) -> str:
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return repr(value).replace("'", '"')


def test_every_message_is_documented_and_nothing_else() -> None:
    """A message added or removed on one side alone is noticed."""
    assert sorted(documented(DOCUMENT)) == sorted(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_table_is_the_type(name: str) -> None:
    """Names, order, types and defaults of the fields are those of the type, and each field has a meaning."""
    assert documented(DOCUMENT)[name] == defined(MESSAGES[name])


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        ("| `attempt` | `int` |  | which attempt; another", "| `attempts` | `int` |  | which attempt; another"),
        ("| `grace_s` | `float` |  |", "| `grace_s` | `int` |  |"),
        ("| `reason` | `str` |  | for the log |", "| `reason` | `str` |  |  |"),
        ("| `n` | `int` | `1` |", "| `n` | `int` | `2` |"),
        (
            "| `gateway_pid` | `int` |  | for logs |\n",
            "| `gateway_pid` | `int` |  | for logs |\n| `x` | `int` |  | y |\n",
        ),
        ("| `retryable` | `bool` | `False` |", "| `retryable` | `bool` |  |"),
    ],
)
def test_comparison_notices_a_change(found: str, changed: str) -> None:
    """A document that differs in one cell differs from the types."""
    assert found in DOCUMENT
    other = documented(DOCUMENT.replace(found, changed))
    assert any(other[name] != defined(kind) for name, kind in MESSAGES.items())


@pytest.mark.parametrize(
    ("values", "heading"), [(State, "state"), (Watch, "watch"), (Kind, "kind"), (Code, "code")], ids=lambda x: str(x)
)
def test_enumeration_is_documented_in_order(values: type[StrEnum], heading: str) -> None:
    """The tables of states, watches, kinds and codes list exactly what there is."""
    _, _, table = DOCUMENT.partition(f"| {heading} | meaning |\n")
    assert [name for name, _ in rows(f"| {heading} | meaning |\n{table}")] == [value.value for value in values]


def test_unions_are_the_documents_sections() -> None:
    """Which way a message travels is where it is documented."""
    sections = dict(re.findall(r"^## Messages(?:: | )([a-z ]+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
    found = {title: set(re.findall(r"^### `(\w+)`", body, re.MULTILINE)) for title, body in sections.items()}
    assert found["to a worker"] == {kind.__name__ for kind in messages.ToWorker.__args__}
    assert found["to the gateway"] == {kind.__name__ for kind in messages.ToGateway.__args__}


def test_envelope_and_constants_are_documented() -> None:
    """Version, frame limit and the envelope's fields in the text are the code's."""
    assert f"Version {protocol.VERSION}." in DOCUMENT
    assert f"{codec.MAX_FRAME_BYTES // 2**20} MiB (`MAX_FRAME_BYTES`" in DOCUMENT
    _, _, frames = DOCUMENT.partition("## Frames")
    assert [row[0] for row in rows(frames)] == list(codec.Envelope.__struct_fields__)


def test_example_in_the_text_is_what_is_encoded() -> None:
    """The one message that the text spells out is spelled right."""
    spelled = re.search(r"`Cancel\(job=5, attempt=1\)` of epoch 7 is `(.*?)`", DOCUMENT)
    assert spelled
    encoded = msgspec.msgpack.decode(codec.encode([messages.Cancel(5, 1)], epoch=7))
    assert encoded == msgspec.json.decode(spelled[1])
