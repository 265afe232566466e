"""What a supervisor says of its engine process, and what it can be told to do with it. See `protocol.messages`."""

from protocol.parts import Message
from protocol.states import Kind, Watch


class Supervision(Message, frozen=True):
    """What a supervisor knows of its engine. Sent on `Hello`, on every change and as its beat.

    `engine` is the `worker` of the engine process it runs or last ran (empty before the first),
    `exit_code` how that one ended (negative: by signal), `delay_s` how long until the next start. `parked`: it was told
    to run none, and will start one when told so. `work` grows while the engine process computes or reads, as the system
    counts it, also where that can't say so itself; 0: not known. `ended` says how the last one ended, in words fit to
    be shown; empty: as asked, or none has.
    """

    model: str
    kind: Kind
    watch: Watch
    pid: int
    engine: str = ""
    engine_pid: int = 0
    restarts: int = 0
    exit_code: int | None = None
    delay_s: float = 0.0
    parked: bool = False
    work: int = 0
    ended: str = ""


class KillEngine(Message, frozen=True):
    """To a supervisor: SIGKILL the engine `worker` (if it still is the running one); it will be restarted."""

    worker: str
    reason: str


class EndEngine(Message, frozen=True):
    """To a supervisor: the engine `worker` was told to drain; let it end within `grace_s`, else kill it.

    `again`: start a fresh one then; else start none until told to. Either way the end is no crash.
    """

    worker: str
    grace_s: float
    again: bool
    reason: str


class StartEngine(Message, frozen=True):
    """To a supervisor: run one engine more than now, beside those that run."""
