"""The shape of the project, enforced: who may import whom, who may read what, how large things may grow.

Each rule reads one file's syntax tree and names what breaks it; each has a snippet that it must object to.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("gateway", "worker", "protocol")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

MLX = ("mlx", "mlx_lm", "mlx_vlm", "mlx_embeddings")
HEAVY = (*MLX, "transformers", "tokenizers", "torch", "numpy")
KEPT_APART = (
    ("gateway/dispatch/", ("aiohttp", "gateway.http", "gateway.routes")),
    ("gateway/http/", ("gateway.dispatch", "gateway.routes", "gateway.serving")),
    ("gateway/routes/", ("zmq", "gateway.dispatch.link")),
    ("gateway/serving/", ("zmq", "gateway.dispatch.link", "gateway.routes")),
    ("gateway/schema/", ("aiohttp", "zmq", "gateway.http", "gateway.routes", "gateway.bodies", "gateway.serving")),
    ("gateway/media/", ("PIL", "numpy", "os", "pathlib", "shutil", "tempfile", "gateway.dispatch", "gateway.routes")),
    ("gateway/access/", ("gateway.routes",)),
    ("worker/batch/", ("worker.text", "worker.engines", "worker.process")),
    (
        "worker/text/",
        (
            "worker.batch",
            "worker.engines",
            "worker.grammar",
            "worker.process",
            "zmq",
            "threading",
            "socket",
            "os",
            "pathlib",
        ),
    ),
    ("worker/disk_cache/", ("worker.batch", "worker.engines", "worker.process")),
    ("worker/decoding/", ("worker.batch", "worker.engines", "worker.process")),
    ("worker/grammar/", ("worker.batch", "worker.engines", "worker.process")),
    ("worker/supervisor/", ("worker.batch", "worker.engines", "worker.process.loop", "worker.process.main")),
    ("worker/engines/", ("zmq", "worker.process", "worker.supervisor")),
    ("", ("tests", "scripts", "benchmarks", "hostility", "models", "stress", "training", "vocabularies")),
)
"""Folders, and what no file in them imports, in functions and for types neither."""
ZMQ_FILES = ("gateway/dispatch/link.py", "worker/gateway_socket.py")
CODE_AS_DATA = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle")
MUTABLE_TYPES = (
    "list",
    "dict",
    "set",
    "bytearray",
    "defaultdict",
    "deque",
    "OrderedDict",
    "Counter",
    "ChainMap",
    "Queue",
    "SimpleQueue",
    "LifoQueue",
    "PriorityQueue",
    "WeakValueDictionary",
    "WeakKeyDictionary",
    "WeakSet",
    "Lock",
    "RLock",
    "Condition",
    "Event",
    "Semaphore",
    "local",
    "count",
    "cycle",
)

Rule = Callable[[str, ast.Module], Iterator[str]]


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module that is imported, as (line, dotted name), wherever in the file."""
    package = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            # `from a import b` may import the module a.b.
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def _called(node: ast.Call) -> str:
    function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _top(name: str) -> str:
    return name.partition(".")[0]


def protocol_is_light(path: str, tree: ast.Module) -> Iterator[str]:
    """protocol/ imports the standard library and msgspec."""
    if path.startswith("protocol/"):
        for line, name in imports(path, tree):
            if _top(name) not in (*sys.stdlib_module_names, "msgspec", "protocol"):
                yield f"{line}: imports {name}"


def gateway_knows_no_model(path: str, tree: ast.Module) -> Iterator[str]:
    """gateway/ imports neither worker nor anything that computes."""
    if path.startswith("gateway/"):
        for line, name in imports(path, tree):
            if _top(name) in ("worker", *HEAVY):
                yield f"{line}: imports {name}"


def worker_knows_no_http(path: str, tree: ast.Module) -> Iterator[str]:
    """worker/ imports neither gateway nor aiohttp."""
    if path.startswith("worker/"):
        for line, name in imports(path, tree):
            if _top(name) in ("gateway", "aiohttp"):
                yield f"{line}: imports {name}"


def mlx_stays_in_its_place(path: str, tree: ast.Module) -> Iterator[str]:
    """mlx* is imported under worker/engines and worker/batch."""
    if not path.startswith(("worker/engines/", "worker/batch/")):
        for line, name in imports(path, tree):
            if _top(name) in MLX:
                yield f"{line}: imports {name}"


def sockets_have_owners(path: str, tree: ast.Module) -> Iterator[str]:
    """zmq is imported by the modules that own a socket."""
    if path not in ZMQ_FILES:
        for line, name in imports(path, tree):
            if _top(name) == "zmq":
                yield f"{line}: imports {name}"


def folders_are_kept_apart(path: str, tree: ast.Module) -> Iterator[str]:
    """No folder imports what it must know nothing of: see `KEPT_APART`."""
    for folder, others in KEPT_APART:
        for line, name in imports(path, tree) if path.startswith(folder) else ():
            if any(name == other or name.startswith(f"{other}.") for other in others):
                yield f"{line}: imports {name}"


def environment_is_configuration(path: str, tree: ast.Module) -> Iterator[str]:
    """The environment is read in the config.py of each program."""
    if path in ("gateway/config.py", "worker/config.py"):
        return
    names = ("environ", "environb", "getenv", "getenvb", "putenv")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and getattr(node.value, "id", "") == "os":
            yield f"{node.lineno}: os.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"{node.lineno}: os.{alias.name}" for alias in node.names if alias.name in names)


def data_is_never_code(path: str, tree: ast.Module) -> Iterator[str]:
    """Nothing that was read can be executed: no pickle or its kin, no eval, no remote code."""
    for line, name in imports(path, tree):
        if _top(name) in CODE_AS_DATA:
            yield f"{line}: imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("recv_pyobj", "send_pyobj"):
            yield f"{node.lineno}: {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile"):
            yield f"{node.lineno}: {node.func.id}()"
        for keyword in node.keywords:
            trusts = keyword.arg in ("allow_pickle", "trust_remote_code", "shell")
            if trusts and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                yield f"{node.lineno}: {keyword.arg}"


def modules_hold_no_state(path: str, tree: ast.Module) -> Iterator[str]:
    """Nothing that can change is bound to a module or class: constants are tuples, frozensets, MappingProxyTypes.

    Fields of classes (annotated) are left out: msgspec copies their defaults.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in ("cache", "lru_cache"):
                    yield f"{node.lineno}: {node.name} remembers its results for ever ({name})"
        elif isinstance(node, ast.ClassDef):
            yield from (
                f"{line.lineno}: mutable class attribute"
                for line in node.body
                if isinstance(line, ast.Assign) and _mutable(line.value)
            )
    for line in _module_level(tree.body):
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None and _mutable(line.value):
            yield f"{line.lineno}: {ast.unparse(line)[:60]}"


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, also those inside `if` and `try`."""
    for line in body:
        yield line
        for name in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _module_level(getattr(line, name, []))


def _mutable(value: ast.expr) -> bool:
    match value:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp() | ast.GeneratorExp():
            return True
        case ast.Call():
            return _called(value) in MUTABLE_TYPES
        case ast.Tuple(elts=parts) | ast.BoolOp(values=parts):
            return any(_mutable(part) for part in parts)
        case ast.BinOp(left=left, right=right) | ast.IfExp(body=left, orelse=right):
            return _mutable(left) or _mutable(right)
        case ast.NamedExpr(value=inner) | ast.Starred(value=inner):
            return _mutable(inner)
        case _:
            return False


def functions_fit_on_a_screen(path: str, tree: ast.Module) -> Iterator[str]:
    """No function is longer than it may be."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines; {MAX_FUNCTION_LINES} at most"


def files_fit_in_one_sitting(path: str, tree: ast.Module) -> Iterator[str]:
    """No file is longer than it may be."""
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    if last > MAX_FILE_LINES:
        yield f"{last} lines; {MAX_FILE_LINES} at most"


def modules_say_what_they_own(path: str, tree: ast.Module) -> Iterator[str]:
    """Every module opens with a docstring."""
    if not ast.get_docstring(tree):
        yield "1: no docstring"


def patterns_end_where_the_text_does(path: str, tree: ast.Module) -> Iterator[str]:
    """No regular expression ends with `$`, which also matches before a line feed: `re.fullmatch`, or `$(?!\\n)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        of_re = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "re"
        patterns = [*(node.args[:1] if of_re else []), *(word.value for word in node.keywords if word.arg == "pattern")]
        for pattern in patterns:
            last = pattern.values[-1] if isinstance(pattern, ast.JoinedStr) and pattern.values else pattern
            text = last.value if isinstance(last, ast.Constant) else ""
            text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
            if text.endswith("$") and not text.endswith("\\$"):
                yield f"{node.lineno}: {text[-40:]}"


RULES: tuple[Rule, ...] = (
    protocol_is_light,
    gateway_knows_no_model,
    worker_knows_no_http,
    mlx_stays_in_its_place,
    sockets_have_owners,
    folders_are_kept_apart,
    environment_is_configuration,
    data_is_never_code,
    modules_hold_no_state,
    functions_fit_on_a_screen,
    files_fit_in_one_sitting,
    modules_say_what_they_own,
    patterns_end_where_the_text_does,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_everywhere(rule: Rule) -> None:
    """No file of the three packages breaks the rule."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 60
    broken = [
        f"{name}:{found}"
        for path in files
        for name in [path.relative_to(ROOT).as_posix()]
        for found in rule(name, ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
LONG_FILE = '"""Doc."""\n' + "x = 1\n" * MAX_FILE_LINES


@pytest.mark.parametrize(
    ("rule", "path", "snippet"),
    [
        (protocol_is_light, "protocol/a.py", "import zmq"),
        (protocol_is_light, "protocol/a.py", "from worker import loop"),
        (protocol_is_light, "protocol/a.py", "def f():\n    import orjson"),
        (protocol_is_light, "protocol/a.py", "from ..worker import loop"),
        (gateway_knows_no_model, "gateway/a.py", "import numpy as np"),
        (gateway_knows_no_model, "gateway/routes/a.py", "from worker.config import WorkerConfig"),
        (gateway_knows_no_model, "gateway/a.py", "if TYPE_CHECKING:\n    import worker"),
        (gateway_knows_no_model, "gateway/a.py", "importlib.import_module('worker.process.main')"),
        (gateway_knows_no_model, "gateway/a.py", "from mlx_lm.utils import load"),
        (gateway_knows_no_model, "gateway/a.py", "import transformers.models"),
        (worker_knows_no_http, "worker/text/a.py", "import aiohttp"),
        (worker_knows_no_http, "worker/a.py", "from gateway.schema.errors import TABLE"),
        (mlx_stays_in_its_place, "worker/process/loop.py", "import mlx.core as mx"),
        (mlx_stays_in_its_place, "worker/text/a.py", "from mlx_lm import tokenizer_utils"),
        (mlx_stays_in_its_place, "worker/batch.py", "import mlx_vlm"),
        (sockets_have_owners, "worker/process/main.py", "import zmq"),
        (sockets_have_owners, "gateway/link.py", "import zmq.asyncio"),
        (folders_are_kept_apart, "gateway/dispatch/pool.py", "from aiohttp import web"),
        (folders_are_kept_apart, "gateway/dispatch/workers/a.py", "def f():\n    import aiohttp.web"),
        (folders_are_kept_apart, "gateway/http/a.py", "from gateway.dispatch.pool import Pool"),
        (folders_are_kept_apart, "gateway/http/a.py", "if TYPE_CHECKING:\n    from gateway import dispatch"),
        (folders_are_kept_apart, "gateway/routes/chat.py", "import zmq"),
        (folders_are_kept_apart, "gateway/media/a.py", "from PIL import Image"),
        (folders_are_kept_apart, "worker/batch/row.py", "from worker.text.channels import Channels"),
        (folders_are_kept_apart, "worker/batch/a.py", "from ..text import channels"),
        (folders_are_kept_apart, "worker/engines/chat/a.py", "import zmq"),
        (folders_are_kept_apart, "gateway/a.py", "from tests.support.fakes import Fake"),
        (folders_are_kept_apart, "protocol/a.py", "from stress.running_pool import RunningPool"),
        (environment_is_configuration, "worker/process/config.py", "x = os.environ.get('A')"),
        (environment_is_configuration, "worker/supervisor/blas.py", "x = os.environ.get('A')"),
        (environment_is_configuration, "gateway/app.py", "os.getenv('A')"),
        (environment_is_configuration, "gateway/app.py", "from os import environ"),
        (data_is_never_code, "worker/a.py", "import pickle"),
        (data_is_never_code, "worker/a.py", "from pickle import loads"),
        (data_is_never_code, "worker/process/link.py", "socket.recv_pyobj()"),
        (data_is_never_code, "worker/a.py", "eval(text)"),
        (data_is_never_code, "worker/a.py", "exec(text)"),
        (data_is_never_code, "worker/a.py", "AutoTokenizer.from_pretrained(path, trust_remote_code=True)"),
        (data_is_never_code, "worker/a.py", "np.load(path, allow_pickle=yes)"),
        (data_is_never_code, "worker/a.py", "subprocess.run(text, shell=True)"),
        (modules_hold_no_state, "worker/a.py", "seen = []"),
        (modules_hold_no_state, "worker/a.py", "SEEN: dict[str, int] = {}"),
        (modules_hold_no_state, "worker/a.py", "A = B = {1}"),
        (modules_hold_no_state, "worker/a.py", "A, B = 1, []"),
        (modules_hold_no_state, "worker/a.py", "SEEN = [x for x in range(3)]"),
        (modules_hold_no_state, "worker/a.py", "SEEN = collections.defaultdict(list)"),
        (modules_hold_no_state, "worker/a.py", "SEEN = dict[str, int]()"),
        (modules_hold_no_state, "worker/a.py", "PAIRS = ((1, []), 2)"),
        (modules_hold_no_state, "worker/a.py", "ALL = (1,) + tuple(x) if y else []"),
        (modules_hold_no_state, "worker/a.py", "try:\n    A = 1\nexcept ValueError:\n    A = []"),
        (modules_hold_no_state, "worker/a.py", "LOCK = threading.Lock()"),
        (modules_hold_no_state, "worker/a.py", "def f():\n    global x\n    x = 1"),
        (modules_hold_no_state, "worker/a.py", "class A:\n    seen = {}"),
        (modules_hold_no_state, "worker/a.py", "@functools.lru_cache(3)\ndef f(x): ..."),
        (modules_hold_no_state, "worker/a.py", "@cache\ndef f(x): ..."),
        (functions_fit_on_a_screen, "worker/a.py", LONG_FUNCTION),
        (
            functions_fit_on_a_screen,
            "worker/a.py",
            "class A:\n" + "".join(f"    {x}\n" for x in LONG_FUNCTION.split("\n")),
        ),
        (files_fit_in_one_sitting, "worker/a.py", LONG_FILE),
        (modules_say_what_they_own, "worker/a.py", "import os"),
        (patterns_end_where_the_text_does, "worker/a.py", "re.compile('^a$')"),
        (patterns_end_where_the_text_does, "worker/a.py", "re.match(rf'{a}$', b)"),
        (patterns_end_where_the_text_does, "worker/a.py", "re.search(rb'a$', b)"),
        (patterns_end_where_the_text_does, "gateway/a.py", "Meta(pattern='^a$')"),
    ],
)
def test_rule_objects_when_broken(rule: Rule, path: str, snippet: str) -> None:
    """A rule that finds nothing in a file that breaks it would protect nothing."""
    assert list(rule(path, ast.parse(snippet)))


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        (
            "protocol/a.py",
            "import os.path\nfrom collections.abc import Sequence\nimport msgspec\nfrom protocol import codec",
        ),
        ("gateway/a.py", "from protocol.messages import Job\nfrom gateway import errors\nimport aiohttp"),
        ("worker/engines/a.py", "import mlx.core as mx\nmx.eval(x)\nmodel.eval()\nload(trust_remote_code=False)"),
        ("worker/gateway_socket.py", "import zmq"),
        (
            "gateway/http/a.py",
            "from aiohttp import web\nfrom gateway.dispatcher import x\nfrom gateway.schema import errors",
        ),
        ("worker/batch/a.py", "from worker.textures import a\nimport mlx.core as mx\nfrom worker.batch import row"),
        ("worker/gateway_socket.py", "import zmq"),
        ("worker/config.py", "import os\nx = os.environ['A']"),
        ("worker/a.py", "A = re.compile('x')\nB = frozenset({1})\nC = MappingProxyType({1: 2})\nD = (1, 'a')"),
        (
            "worker/a.py",
            "A: web.AppKey[list[int]] = web.AppKey('a', list[int])\nB = msgspec.json.Encoder()\nC = list[int]",
        ),
        ("worker/a.py", "class A(Struct):\n    x: dict[str, int] = {}\n    __slots__ = ('a',)"),
        ("worker/a.py", "def f():\n    x = []\n    return x"),
        ("worker/a.py", "A = re.compile(r'costs \\$')\nB = re.compile('^a$(?!b)')\nC = '$'"),
    ],
)
def test_rules_leave_the_rest_alone(path: str, snippet: str) -> None:
    """What the rules allow is not objected to."""
    tree = ast.parse(f'"""Doc."""\n{snippet}')
    assert [found for rule in RULES for found in rule(path, tree)] == []


def imported_by(*arguments: str) -> set[str]:
    """Every module that a run of Python imports, by dotted name."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    ("arguments", "sign", "unwanted"),
    [
        (("-m", "worker", "--help"), "worker.config", ("zmq", "gateway", "aiohttp", "jinja2", *HEAVY)),
        (
            ("-c", "import worker.supervisor.supervisor"),
            "worker.supervisor.supervisor",
            ("gateway", "aiohttp", "jinja2", *HEAVY),
        ),
        (("-m", "gateway", "--help"), "gateway.config", ("worker", *HEAVY)),
        (("-c", "import gateway.app"), "gateway.dispatch.link", ("worker", *HEAVY)),
        (("-c", "import worker.process.launch"), "worker.process.launch", ("gateway", "zmq", *HEAVY)),
        (
            ("-c", "import worker.process.main, worker.engines.fake"),
            "worker.process.loop",
            ("gateway", "aiohttp", *HEAVY),
        ),
        (("-c", "import protocol.codec, protocol.address"), "protocol.messages", ("zmq", "gateway", "worker", *HEAVY)),
    ],
)
def test_program_starts_without_what_it_must_not_know(
    arguments: tuple[str, ...], sign: str, unwanted: tuple[str, ...]
) -> None:
    """What is imported in fact, through however many others: no model code in supervisor or gateway."""
    modules = imported_by(*arguments)
    assert sign in modules
    assert sorted(name for name in modules if _top(name) in unwanted) == []


def test_import_listing_sees_what_is_imported() -> None:
    """The listing that the test above reads does name such modules when they are there."""
    assert "numpy" in imported_by("-c", "import worker.batch.sampling.random")
