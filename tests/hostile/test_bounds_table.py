"""docs/bounds.md says what the code says: every bound is there with its value, and every test is there."""

import ast
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
OPERATORS = MappingProxyType(
    {ast.Mult: operator.mul, ast.Pow: operator.pow, ast.LShift: operator.lshift, ast.Add: operator.add}
)


class Row(NamedTuple):
    """A row of the table, as cells."""

    what: str
    bound: str
    where: str
    answer: str
    test: str


def rows() -> list[Row]:
    """All rows of all tables."""
    lines = (ROOT / "docs" / "bounds.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [Row(*row) for row in cells if row[0] != "what"]


ROWS = rows()


def places(row: Row) -> list[tuple[str, str]]:
    """Files and names where the bound is."""
    return re.findall(r"`([\w/]+\.py):([\w.]+)`", row.where)


def value(text: str) -> float:
    """Simple arithmetic, worked out. Raises `ValueError`."""

    def worked(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                found: float = OPERATORS[type(op)](worked(left), worked(right))
                return found
            case _:
                raise ValueError(ast.unparse(node))

    return worked(ast.parse(text, mode="eval").body)


def values(path: str, name: str) -> Iterator[Any]:
    """What a name stands for in a file: a constant, a class's field, or a part of what is assigned (see `_parts`)."""
    first, _, rest = name.partition(".")
    tree = ast.parse((ROOT / path).read_text())
    names = _names(tree)
    for node in tree.body:
        match node:
            case ast.ClassDef(name=found) | ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found) if (
                found == first
            ):
                yield from _fields(node, rest) if rest else [None]
            case (
                ast.Assign(targets=[ast.Name(id=found)], value=expression)
                | ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as expression)
            ) if found == first:
                yield from (_known(part, names) for part in (_parts(expression, rest) if rest else [expression]))
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=parts)):
                pairs = zip(targets, parts, strict=True)
                yield from (_known(part, names) for target, part in pairs if ast.unparse(target) == first)


def _names(tree: ast.Module) -> dict[str, ast.expr]:
    pairs = [(node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return {target.id: expression for target, expression in pairs if isinstance(target, ast.Name)}


def _parts(expression: ast.expr, name: str) -> Iterator[ast.expr]:
    """Keywords of that name, values under that key, and the element of a tuple with that number."""
    for node in ast.walk(expression):
        match node:
            case ast.keyword(arg=found, value=part) if found == name:
                yield part
            case ast.Dict(keys=keys, values=parts):
                pairs = zip(keys, parts, strict=True)
                yield from (part for key, part in pairs if isinstance(key, ast.Constant) and key.value == name)
    if isinstance(expression, ast.Tuple) and name.isdigit() and int(name) < len(expression.elts):
        yield expression.elts[int(name)]


def _fields(node: ast.AST, name: str) -> list[Any]:
    found = [part for part in ast.walk(node) if isinstance(part, ast.AnnAssign) and ast.unparse(part.target) == name]
    return [_known(part.value, {}) for part in found if part.value is not None]


def _known(expression: ast.expr, names: dict[str, ast.expr]) -> float | None:
    """The number; None where it is none."""
    text = ast.unparse(expression)
    for _ in range(3):
        text = re.sub(r"\b[A-Z][A-Z_]+\b", lambda found: _parenthesised(found[0], names), text)
    try:
        return value(text)
    except (ValueError, SyntaxError):
        return None


def _parenthesised(name: str, names: dict[str, ast.expr]) -> str:
    return f"({ast.unparse(names[name])})" if name in names else name


def objections(row: Row) -> list[str]:
    """What of a row is not so in the code."""
    told = re.search(r"`([^`]+)`", row.bound)
    found = []
    for path, name in places(row):
        known = list(values(path, name))
        if not known:
            found.append(f"{path} has no {name}")
        elif told is not None and value(told[1]) not in known and known != [None]:
            found.append(f"{path}: {name} is {known}, not {told[1]}")
    return found or ([] if places(row) else ["no place"])


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_bound_is_in_the_code_when_the_table_names_it(row: Row) -> None:
    """The name is in that file, and its value is the one that the table tells."""
    assert not objections(row)


@pytest.mark.parametrize(
    ("bound", "where"),
    [
        ("`2049`", "`gateway/schema/parts/bounds.py:MAX_MESSAGES`"),
        ("`9`", "`gateway/schema/parts/bounds.py:Choices.le`"),
        ("`31`", "`gateway/config.py:GatewayConfig.write_timeout_s`"),
        ("`5`", "`gateway/schema/parts/bounds.py:NOTHING`"),
        ("5", "`gateway/schema/parts/bounds.py:Choices.most`"),
        ("`5`", "`gateway/http/connection.py:DISCARDED.0`"),
        ("`5`", "`gateway/http/connection.py:DISCARDED.2`"),
        ("`5`", "`gateway/access/keys/key.py:MAX_LIMITS.rpm`"),
        ("`5`", "`worker/grammar/compiling/compilers.py:COMPILE_BYTES`"),
        ("5", "somewhere"),
    ],
)
def test_table_is_objected_to_when_it_is_wrong(bound: str, where: str) -> None:
    """A check that finds nothing in a wrong row would protect nothing."""
    assert objections(Row("", bound, where, "", ""))


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_test_is_there_when_the_table_names_it(row: Row) -> None:
    """Each row names a test that exists."""
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.test)
    assert found, row.test
    for path, name in found:
        tree = ast.parse((ROOT / path).read_text())
        tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in tests, f"{path} has no {name}"
