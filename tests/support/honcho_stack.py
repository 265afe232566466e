"""The project's own Procfile, run by the real honcho as its users run it."""

import os
import re
import sys
from pathlib import Path

from stress.running_pool import FAKE, Api, Program, descendants, wait_until


class Procfile(Api):
    """The project's Procfile under honcho, with the fake engine; `python` in it means this very environment's."""

    def __init__(self, folder: Path, *, concurrency: str, env_file: Path = Path(os.devnull)) -> None:
        super().__init__()
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            "POOL_RUN_DIR": str(folder / "run"),
            "POOL_PORT": "0",
            "POOL_SPARE": "false",
            "POOL_ENGINE": FAKE[1],
            "CHAT_MODEL": "fake",
        }
        command = [sys.executable, "-m", "honcho", "-e", str(env_file), "-f", "Procfile", "start", "-c", concurrency]
        self.honcho = Program("honcho", command, folder=folder, environment=environment)
        try:
            self.port = int(wait_until(self._listening)[1])
        except BaseException:
            self.stop()
            raise

    def _listening(self) -> re.Match[str] | None:
        assert self.honcho.running, self.logs()
        return re.search(r"Running on http://\S+:(\d+)", self.logs())

    def gateway_pid(self) -> int:
        """The gateway's process id, as the kernel knows it."""
        return next(pid for pid, args in descendants(self.honcho.pid).items() if "-m gateway" in args)

    def engines(self) -> list[int]:
        """The engine processes."""
        return [pid for pid, args in descendants(self.honcho.pid).items() if "-m worker.process.launch" in args]

    def stop(self) -> None:
        """End honcho, and so everything."""
        self.hang_up()
        self.honcho.stop()
        self.honcho.check_keys()

    def logs(self) -> str:
        """All that was said."""
        return self.honcho.text()

    def check_logs(self) -> None:
        """As of `RunningPool`."""
        bad = self.honcho.check_log("")
        assert not bad, "\n".join(bad)
