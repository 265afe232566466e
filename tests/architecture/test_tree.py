"""Rules that take the whole tree to check: circles of imports, full folders, files that are named, scripts and tests.

Each rule has a small tree that it must object to.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

from tests.architecture.test_arrows import CODE_AS_DATA, FOLDERS, ROOT, imports

MAX_FOLDER_FILES = 16
ONE_FILE_A_FAMILY = ("gateway/routes", "gateway/schema")
"""Folders that grow with the families of endpoints; what these share lies elsewhere."""

_NAMED = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)}|scripts|tests|docs)/[\w./-]+\.(?:py|md|lua|json|txt)\b")


def module_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return what each module imports of the others, by dotted name; `sources` by path.

    An import counts wherever it stands: in a function, or for type checkers alone.
    """
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for _, name in imports(path, ast.parse(sources[path])):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {"", module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return every group of modules that reach each other."""
    reached = {module: _reached(graph, module) for module in graph}
    found: list[set[str]] = []
    for module in sorted(graph):
        if module in reached[module] and not any(module in group for group in found):
            found.append({other for other in reached[module] if module in reached[other]})
    return found


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def full_folders(paths: Iterable[str]) -> Iterator[str]:
    """Yield folders with more files beside each other than a reader takes in."""
    counts = Counter(str(PurePosixPath(path).parent) for path in paths)
    yield from (folder for folder, count in sorted(counts.items()) if count > MAX_FOLDER_FILES)


def missing_names(text: str, paths: frozenset[str]) -> list[str]:
    """Return files of the tree that a text names and that are not there."""
    return sorted({name for name in _NAMED.findall(text) if name not in paths})


def imports_of(source: str, unwanted: Iterable[str]) -> list[str]:
    """Return what of `unwanted` packages a file imports."""
    return [name for _, name in imports("scripts/a.py", ast.parse(source)) if name.partition(".")[0] in unwanted]


def tracked() -> frozenset[str]:
    """Return the files that git knows or would take, as far as they are there."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(path for path in listed.split("\n") if path and (ROOT / path).is_file())


def sources(*folders: str) -> dict[str, str]:
    """Return the text of every Python file in these folders, by path; also of scripts that have no suffix."""
    found = {}
    for path in sorted(tracked()):
        if path.startswith(tuple(f"{folder}/" for folder in folders)) and "." not in Path(path).stem:
            text = (ROOT / path).read_text(encoding="utf-8") if path.endswith(".py") or "." not in path else ""
            if path.endswith(".py") or re.match("#!.*python", text):
                found[path] = text
    return found


def test_imports_form_no_circle() -> None:
    """No module imports, through however many others, itself."""
    graph = module_graph(sources(*FOLDERS))
    assert len(graph) > 200
    assert [sorted(group) for group in circles(graph)] == []


def test_folder_is_not_full() -> None:
    """No folder of the packages has more files beside each other than `MAX_FOLDER_FILES`."""
    inside = [path for path in tracked() if path.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    beside = [path for path in inside if "/static/" not in path]
    assert sorted(set(full_folders(beside)) - {*ONE_FILE_A_FAMILY}) == []


@pytest.mark.parametrize("folder", [*FOLDERS, "scripts"])
def test_file_exists_when_code_names_it(folder: str) -> None:
    """No docstring, comment or string names a file of the tree that is not there."""
    paths = tracked()
    assert {path: names for path, text in sources(folder).items() if (names := missing_names(text, paths))} == {}


def test_scripts_import_no_tests() -> None:
    """Tests may use scripts, never the reverse."""
    scripts = sources("scripts")
    assert len(scripts) > 60
    assert {path: found for path, text in scripts.items() if (found := imports_of(text, ["tests"]))} == {}


def test_nothing_beside_the_packages_runs_data_either() -> None:
    """Tests and scripts import no pickle or its kin: hostile ones are written as bytes."""
    beside = sources("tests", "scripts", "examples")
    assert len(beside) > 250
    assert {path: found for path, text in beside.items() if (found := imports_of(text, CODE_AS_DATA))} == {}


@pytest.mark.parametrize(
    "tree",
    [
        {"gateway/a.py": "from gateway import b", "gateway/b.py": "import gateway.a"},
        {"gateway/a.py": "from gateway.b import B", "gateway/b.py": "if TYPE_CHECKING:\n    from gateway.a import A"},
        {"gateway/a.py": "from gateway.b import B", "gateway/b.py": "def f():\n    from .a import A"},
        {"a.py": "import b", "b.py": "import c", "c.py": "import a"},
        {"gateway/__init__.py": "from gateway.a import A", "gateway/a.py": "from gateway import VERSION"},
    ],
)
def test_circle_is_found_when_there_is_one(tree: dict[str, str]) -> None:
    """For types and in functions, too, and over any number of modules."""
    assert len(circles(module_graph(tree))) == 1


def test_circle_is_not_found_when_imports_only_meet() -> None:
    """Two ways to the same module are none, nor is the package that a module lies in."""
    tree = {
        "gateway/__init__.py": "",
        "gateway/a.py": "from gateway import b, c",
        "gateway/b.py": "import gateway.d",
        "gateway/c.py": "from gateway.d import D\nimport asyncio",
        "gateway/d.py": "",
    }
    assert circles(module_graph(tree)) == []


def test_folder_is_named_when_it_is_full() -> None:
    """One file more than allowed; files of its folders are not its own."""
    files = [f"worker/batch/{number}.py" for number in range(MAX_FOLDER_FILES)]
    assert list(full_folders([*files, "worker/batch/inner/a.py"])) == []
    assert list(full_folders([*files, "worker/batch/one_more.py"])) == ["worker/batch"]


def test_file_is_missed_when_it_is_named_and_not_there() -> None:
    """In prose and in strings; addresses and other folders' files are none of ours."""
    text = "see worker/memory.py and `gateway/app.py`; https://example.org/docs/a.md, /tmp/worker/a.py"
    assert missing_names(text, frozenset({"gateway/app.py"})) == ["worker/memory.py"]


@pytest.mark.parametrize("source", ["import tests", "def f():\n    from tests.support.crowd import x"])
def test_import_of_tests_is_found_when_a_script_has_one(source: str) -> None:
    """Wherever it stands."""
    assert imports_of(source, ["tests"])
