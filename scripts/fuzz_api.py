#!/usr/bin/env python3
"""Ask a production gateway everything its OpenAPI document allows, and much that it does not, with schemathesis.

No answer may be a 5xx that is not documented, none may have a status or a body that is not documented, and no address
may ignore a missing key. schemathesis is no dependency of the project: `pip install schemathesis` where this runs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEY = "fuzz-master-key-0123456789"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth"
# Ending engines would leave nothing to ask; that a model is not up is then a right answer.
LEFT_OUT = "/admin/(workers|models)/"


def main() -> int:
    """Start a pool with the fake engine, ask, stop it; returns schemathesis' exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", default="50", help="requests per operation and phase (50)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--tool", default="schemathesis", help="the command, where it is not on the path")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/tmp"))
    settings = {
        "POOL_RUN_DIR": str(folder / "run"), "POOL_DATA_DIR": str(folder / "data"), "POOL_ENV": "production",
        "POOL_API_KEY": KEY, "POOL_RATE_LIMIT_ENABLED": "false", "POOL_REMOTE_IMAGES": "off",
    }  # fmt: skip
    fake = ["-m", "worker", "--engine", "worker.engines.fake:FakeEngine", "--model-path", "fake"]
    commands = [["-m", "gateway", "--port", "0"]]
    commands += [[*fake, "--model-type", kind, "--served-name", kind] for kind in ("chat", "vision", "embedding")]
    processes = []
    try:
        log = (folder / "log").open("wb")
        processes = [
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
            )
            for command in commands
        ]
        url = wait(folder / "log")
        return subprocess.run(
            [options.tool, "run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}", "--checks", CHECKS,
             "--max-examples", options.examples, "--seed", options.seed, "--exclude-path-regex", LEFT_OUT,
             "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--request-timeout", "30"],
            check=False,
        ).returncode  # fmt: skip
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
        bad = [line for line in (folder / "log").read_text().splitlines() if "Unhandled error" in line]
        print("\n".join(bad) or "no unhandled error in the log")
        shutil.rmtree(folder, ignore_errors=True)


def wait(log: Path) -> str:
    """Wait until all three models are up. Return the address."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            try:
                with urllib.request.urlopen(f"{found[1]}/health") as answer:  # noqa: S310 - our own address
                    if answer.read().count(b'"healthy":true') == 3:
                        return found[1]
            except OSError:
                pass
        time.sleep(0.1)
    raise SystemExit(f"the pool did not come up:\n{log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
