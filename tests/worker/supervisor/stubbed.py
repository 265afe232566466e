"""A real supervisor around stub engines: `stubbed.py RUN_DIR ACT [DRAIN_S]`."""

import sys
from pathlib import Path

from worker import logs
from worker.config import WorkerConfig
from worker.supervisor.lifecycle import RestartPolicy
from worker.supervisor.supervisor import Supervisor

STUB = Path(__file__).with_name("stub_engine.py")


def command(config: WorkerConfig, _worker_uid: str, lifeline_fd: int) -> list[str]:
    return [sys.executable, str(STUB), config.model_path, str(lifeline_fd)]


run_dir, act, drain_s = (*sys.argv[1:], "4.0")[:3]
logs.configure("info")
config = WorkerConfig(model_path=act, served_name="qwen3", run_dir=Path(run_dir), spare=False)
sys.exit(Supervisor(config, command=command, policy=RestartPolicy(drain_s=float(drain_s))).run())
