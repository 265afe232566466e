"""`python -m worker`: check the settings, then supervise. Exit code 2 and one line for settings that can't work."""

import logging
import os
import sys

from protocol.address import AddressError, prepare_run_dir
from protocol.confidential import forbid_core_dumps
from protocol.settings import ConfigError
from worker import logs
from worker.config import parse_arguments, public_environment
from worker.hub import join_run


def main() -> int:
    """Run a supervisor on this process's own arguments."""
    try:
        config = parse_arguments(sys.argv[1:])
        if (environment := public_environment(config)) is not None:
            # What a process was started with can be read as long as it lives: so it starts anew, without the secrets.
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves
        prepare_run_dir(config.run_dir)
        run = join_run(config.run_dir)
    except (ConfigError, AddressError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"--run-dir: can't be made: {error}")
    logs.configure(config.log_level, json_of=config.served_name if config.log_json else None)
    logging.captureWarnings(True)
    forbid_core_dumps()
    # Only now: it takes longer to import than all that comes before.
    from worker.supervisor.supervisor import Supervisor

    with run:
        return Supervisor(config).run()


def _refuse(why: str) -> int:
    print(f"python -m worker: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
