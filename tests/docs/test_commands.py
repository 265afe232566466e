"""No command is shown that no test runs as it stands."""

from pathlib import Path

from tests.docs.commands import PAGES, ROOT, blocks, commands

FRESH = "tests/e2e/test_fresh_copy.py::test_documented_commands_work_in_a_fresh_copy"
START = "tests/e2e/test_documented_commands.py::test_procfile_runs_as_the_readme_says"
KEYS = "tests/e2e/test_documented_commands.py::test_keys_live_as_the_pages_say"
PRODUCTION = "tests/e2e/test_documented_commands.py::test_production_starts_as_the_page_says"
MODELS = "tests/scripts/test_launch_pool.py::test_documented_arguments_are_understood"
CURL = "tests/e2e/test_documented_commands.py::test_readme_request_is_answered"
FORMS = "tests/e2e/test_documented_commands.py::test_forms_are_embedded_as_the_page_says"
RUN_BY = {
    "scripts/serve": FRESH,
    "scripts/test": FRESH,
    "scripts/install": FRESH,
    "scripts/install redis": FRESH,
    "scripts/serve --": MODELS,
    "curl http://127.0.0.1:8000/v1/chat/completions": CURL,
    "curl http://127.0.0.1:8000/embed/": FORMS,
    ".venv/bin/honcho start": START,
    ".venv/bin/honcho start -c chat=2,vision=0": START,
    ".venv/bin/honcho start -c chat=1,vision=0,embedding=1": PRODUCTION,
    ".venv/bin/honcho export": "tests/e2e/test_exported_units.py::test_units_are_written_as_the_page_says",
    ".venv/bin/python -m gateway keys": KEYS,
    ".venv/bin/python -m gateway --": PRODUCTION,
    "echo POOL_CONFIG": PRODUCTION,
    "export POOL_CONFIG": PRODUCTION,
    "export POOL_RATE_LIMIT_STORAGE": "tests/gateway/access/test_shared_limits.py::",
}
"""Which test runs a command that begins so; the longest beginning counts."""


def test_every_documented_command_is_run_by_a_test() -> None:
    """Of each page; and each of those tests exists."""
    shown = {command for page in PAGES for block in blocks(page) for command in commands(block)}
    assert len(shown) > 15
    used = set()
    for command in shown:
        beginnings = [known for known in RUN_BY if command.startswith(known)]
        assert beginnings, f"no test runs {command!r}"
        used.add(max(beginnings, key=len))
    assert used == RUN_BY.keys()
    for place in RUN_BY.values():
        file, _, name = place.partition("::")
        assert f"def {name}" in Path(ROOT / file).read_text(), place
