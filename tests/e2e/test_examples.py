"""Every example runs against a pool as its reader would run it, and says what it promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stress.running_pool import ROOT, RunningPool

from tests.support.pool_fixtures import QWEN_NAME

pytestmark = pytest.mark.mlx

EXAMPLES = ROOT / "examples"
PROMISES = {
    "chat.py": r"\[acme/tiny-qwen3: \d+ tokens in, \d+ out\]",
    "chat_stream.py": r"\[\d+ tokens\]",
    "completions.py": r"(?s)0: ['\"].*1: ['\"]",
    "conversation.py": r"(?s)0 of them cached.*[1-9]\d* of them cached",
    "embeddings.py": r"(?s)^0\.\d\d Knead.*all-MiniLM-L6-v2: 384 dimensions, \d+ tokens",
    "embed_image.py": r"(?s)\[fake: 3 vectors of 8 dimensions in .* s\]\n-?\d\.\d\d \w.* = ",
    "similarity.py": r"(?s)^0\.\d\d Our cat.* = Thunderstorms.* = At nine.*all-MiniLM-L6-v2: 384 dimensions, \d+ texts",
    "curl.sh": r"(?s)\"models_healthy\":true.*acme/tiny-qwen3.*chat\.completion\".*data: \[DONE\]",
    "discover_models.py": rf"(?s)\"family\": \"qwen\".*{QWEN_NAME}: 1 worker",
    "handle_errors.py": r"(?s)answered: .*model_not_found.*temperature \(.*context_length_exceeded",
    "queue_stats.py": r"running 0 of 32\nwaiting 0 of 100\nserved  \d+ requests",
    "track_requests.py": r"the id was kept\nrequest example-\S+ took \d\.\d+ s: ['\"]",
    "vision.py": r"\w+ \w+.*\n\[eyes: \d+ tokens in, \d+ out\]",
    "wait_until_ready.py": rf"ready: {QWEN_NAME}",
}

POOLS = {"embed_image.py": "encoder", "embeddings.py": "minilm", "similarity.py": "minilm", "vision.py": "seeing"}
"""Which pool they run against, other than `qwen`."""


def run(script: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run it outside the project's folder, warnings being errors."""
    if script.suffix == ".sh" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["sh"] if script.suffix == ".sh" else [sys.executable, "-W", "error"]
    return subprocess.run(
        [*command, str(script), *arguments],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_example_is_tested_and_listed() -> None:
    """No script without a promise here and a line in the folder's README."""
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert scripts == PROMISES.keys()
    assert set(re.findall(r"^\| `([\w.]+)`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)) == scripts


@pytest.mark.parametrize("name", PROMISES)
def test_example_keeps_its_promise(request: pytest.FixtureRequest, name: str) -> None:
    """It takes the address as its argument, ends with 0 and prints what it is there to show."""
    pool: RunningPool = request.getfixturevalue(POOLS.get(name, "qwen"))
    done = run(EXAMPLES / name, pool.url)
    assert done.returncode == 0, done.stderr
    assert re.search(PROMISES[name], done.stdout), done.stdout


def test_address_may_come_from_the_environment(qwen: RunningPool) -> None:
    """`POOL_URL` instead of an argument."""
    done = run(EXAMPLES / "queue_stats.py", POOL_URL=qwen.url)
    assert done.returncode == 0, done.stderr


def test_waiting_gives_up_when_nobody_answers() -> None:
    """Exit code 1 once the patience is over."""
    done = run(EXAMPLES / "wait_until_ready.py", "http://127.0.0.1:9", "0.1")
    assert done.returncode == 1
    assert "not ready" in done.stderr


def test_images_end_in_a_sentence_when_the_model_embeds_texts_only(minilm: RunningPool) -> None:
    """As the pool that `scripts/serve` starts: what is wrong and what to do, and no traceback."""
    done = run(EXAMPLES / "embed_image.py", minilm.url)
    assert done.returncode == 1
    assert re.fullmatch(r"The model '\S+' embeds texts only; it takes no images\. \(serve .*\)\n", done.stderr)


def test_examples_without_a_library_end_in_a_sentence_when_there_is_no_pool() -> None:
    """No traceback for a pool that was not started."""
    done = run(EXAMPLES / "embed_image.py", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert re.fullmatch(r"There is no pool at http://127\.0\.0\.1:9: .* Start one with scripts/serve\.\n", done.stderr)
