"""A worker's lines as JSON, those included that no logger of its own wrote."""

import json
import subprocess
import sys

import pytest

from worker.logs import WorkerJsonLines, message_of_line

RUN = """
import sys
sys.path.insert(0, {root!r})
from worker import logs
logs.configure("info", json_of="org/m")
import logging
logging.getLogger("worker.x").warning("a\\nb \\u2028 %s", "ü")
def fail():
    raise ValueError("no\\nway")
fail()
"""


def test_lines_are_objects_when_a_process_logs_and_dies(pytestconfig: pytest.Config) -> None:
    """Line ends inside of a message do not end the line; an exception that nobody caught is one line, too."""
    command = [sys.executable, "-c", RUN.format(root=str(pytestconfig.rootpath))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    warning, death = [json.loads(line) for line in done.stderr.splitlines()]
    assert (warning["level"], warning["logger"], warning["model"]) == ("WARNING", "worker.x", "org/m")
    assert warning["message"] == "a\nb \u2028 ü"
    assert (death["level"], death["message"]) == ("CRITICAL", "ValueError: no\nway")
    assert "in fail" in death["traceback"]


@pytest.mark.parametrize(
    ("written", "messages"),
    [
        (b"plain words\n", ["plain words"]),
        (b"Fetching:  50%\rFetching: 100%\r\n", ["Fetching:  50%", "Fetching: 100%"]),
        (b"\n\n", []),
        (b"\xff\xfe broken\n", ["\ufffd\ufffd broken"]),
        (b"libc++abi: terminating\nzsh {no json\n", ["libc++abi: terminating", "zsh {no json"]),
    ],
)
def test_words_of_a_library_become_objects_when_they_reach_stderr(written: bytes, messages: list[str]) -> None:
    """Whatever a process writes there besides its log."""
    lines = WorkerJsonLines("m").encode_output(written).decode().splitlines()
    assert [json.loads(line)["message"] for line in lines] == messages
    assert {json.loads(line)["logger"] for line in lines} <= {"stderr"}


def test_objects_pass_as_they_are_when_the_engine_wrote_them() -> None:
    """They are lines of the log already."""
    line = WorkerJsonLines("m").encode_line(1.5, "INFO", "worker", "ready")
    assert WorkerJsonLines("m").encode_output(f"{line}\n".encode()).decode() == f"{line}\n"
    assert json.loads(line)["time"] == "1970-01-01T00:00:01.500Z"
    assert message_of_line(line) == "ready"
    for other in ("no json", "{}", "[1]", "{broken", "a | ERROR | b"):
        assert message_of_line(other) == other
    assert message_of_line("2026-11-30 04:45:01 | ERROR | it can't be served") == "it can't be served"
