"""An engine process without an engine: does what its first argument says and honours the lifeline."""

import os
import signal
import subprocess
import sys
import threading


def leave_with_supervisor(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)
    os._exit(0)


def main() -> None:
    act, lifeline_fd = sys.argv[1], int(sys.argv[2])
    threading.Thread(target=leave_with_supervisor, args=(lifeline_fd,), daemon=True).start()
    name, _, argument = act.partition(":")
    if name == "exit":
        print("some trouble\nno such model", file=sys.stderr, flush=True)
        os._exit(int(argument))
    if name == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    extra = ""
    if name == "parent":
        extra = f" {subprocess.Popen(['sleep', '600']).pid}"
    print(f"engine ready {os.getpid()}{extra}", file=sys.stderr, flush=True)
    while True:
        signal.pause()


main()
