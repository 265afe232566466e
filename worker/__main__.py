"""`python -m worker`: check the settings, then supervise. Exit code 2 and one line for settings that can't work."""

import logging
import sys

from protocol.address import AddressError, prepare_run_dir
from worker import logs
from worker.config import ConfigError, parse_arguments
from worker.supervisor import Supervisor


def main() -> int:
    """Run a supervisor on this process's own arguments."""
    try:
        config = parse_arguments(sys.argv[1:])
        prepare_run_dir(config.run_dir)
    except (ConfigError, AddressError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"--run-dir: can't be made: {error}")
    logs.configure(config.log_level)
    logging.captureWarnings(True)
    return Supervisor(config).run()


def _refuse(why: str) -> int:
    print(f"python -m worker: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
