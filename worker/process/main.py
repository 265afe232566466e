"""The engine process: wires one engine, its loop, its preprocessor and its link, and ends with its supervisor.

The main thread is the engine's: it loads and steps. Signals and the lifeline only leave a note for it.
"""

import contextlib
import gc
import importlib
import logging
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

import msgspec

from protocol.address import endpoint
from protocol.messages import Announce, Beat, Ready, State
from worker.config import BUILT_IN_ENGINES, WorkerConfig, tail
from worker.device_errors import is_out_of_memory
from worker.engines.base import CacheOwner, Engine, EngineLoadError
from worker.hub import commit_of
from worker.lifeline import IS_HEALTHY, IS_READY
from worker.process.heartbeat import PREPARING, StepClock
from worker.process.link import GatewayLink, Outbox
from worker.process.loop import Command, Loop, Stop
from worker.process.preprocessor import Compiler, Preprocessor
from worker.work import OwnWork

log = logging.getLogger("worker")

DRAIN_S = 3.2
"""Grace of a SIGTERM: honcho kills after 5 s, the supervisor after 4."""
CLOSE_S = 0.4
"""What is left then: for what an engine puts away when it ends."""
EXIT_CONFIG = 2
EXIT_CRASH = 70
EXIT_MEMORY = 71


class Process:
    """One life of an engine process."""

    def __init__(self, config: WorkerConfig, *, worker_uid: str, lifeline_fd: int) -> None:
        self._config = config
        self._lifeline_fd = lifeline_fd
        self._uid = worker_uid
        self._created = int(time.time())
        self._ready: Ready | None = None
        self._step_clock = StepClock()
        self._work = OwnWork()
        self._progress = 0
        self._engine = engine_type(config)(config)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        outbox = Outbox()
        self._preprocessor = Preprocessor(
            prepare=self._engine.prepare,
            compiler=self._engine if isinstance(self._engine, Compiler) else None,
            admit=self._commands.put,
            send=outbox.send_messages,
        )
        self._loop = Loop(
            engine=self._engine,
            step_clock=self._step_clock,
            inbox=self._commands,
            send=outbox.send_messages,
            on_healthy=partial(self._tell, IS_HEALTHY),
        )
        self._link = GatewayLink(
            endpoint=endpoint(config.run_dir),
            identity=f"{config.served_name}/{worker_uid}".encode(),
            outbox=outbox,
            commands=self._commands,
            preprocessor=self._preprocessor,
            announce=self._announce,
            ready=self._ready_message,
            beat=self._beat,
            failed=partial(os._exit, EXIT_CRASH),
        )

    def run(self) -> int:
        """Load, warm, serve until stopped. Returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._link.start()
        try:
            self._start()
        except EngineLoadError as error:
            log.error("%s can't be served: %s", self._config.served_name, error)
            self._link.close(f"not loaded: {error}")
            return EXIT_CONFIG
        except RuntimeError as error:
            return self._end_failed(error)
        try:
            self._loop.run()
        except Exception as error:
            # Whatever broke a step has left the model's caches in an unknown state: a fresh process is the cure.
            return self._end_failed(error)
        if isinstance(self._engine, CacheOwner):
            self._engine.close(CLOSE_S)
        self._step_clock.enter_state(State.STOPPED)
        self._link.close("stopped")
        return 0

    def _end_failed(self, error: Exception) -> int:
        """Say why the engine failed and take leave; returns the exit code."""
        if is_out_of_memory(error):
            log.error("%s ran out of memory; its process ends: %s", self._config.served_name, error)
            self._link.close(f"out of memory: {error}")
            return EXIT_MEMORY
        log.error("the engine failed; its process ends and a new one takes over", exc_info=error)
        self._link.close("engine failure")
        return EXIT_CRASH

    def _start(self) -> None:
        name = self._config.served_name
        began = time.monotonic()
        log.info("loading %s", name)
        self._engine.load()
        loaded = time.monotonic()
        if self._config.warmup:
            self._step_clock.enter_state(State.WARMING)
            self._link.send_state()
            self._engine.warm()
        warm = time.monotonic()
        self._ready = msgspec.structs.replace(
            self._engine.describe(),
            load_s=loaded - began,
            warmup_enabled=self._config.warmup,
            warmup_s=warm - loaded,
            commit=commit_of(self._config),
        )
        # What start-up made lives as long as the process: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        # A tokenizer or template that runs on the preprocessor's thread must not hold the interpreter for the
        # default 5 ms while the engine thread waits to launch its next step.
        sys.setswitchinterval(0.0005)
        self._preprocessor.start()
        self._step_clock.enter_state(State.READY)
        self._link.send_state()
        self._tell(IS_READY)
        log.info("%s is ready: loaded in %.1f s, warmed in %.1f s", name, loaded - began, warm - loaded)

    def _tell(self, word: bytes) -> None:
        """Say a word to the supervisor, if there is one that listens."""
        with contextlib.suppress(OSError):
            os.write(self._lifeline_fd, word)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._step_clock.state in (*PREPARING, State.DRAINING):
            # Nothing runs yet, or this is the second signal: leave now.
            os._exit(0)
        self._commands.put(Stop(DRAIN_S))

    def _ready_message(self) -> Ready | None:
        """Return `Ready`; None for a draining worker, which must not look as if it took jobs."""
        return self._ready if self._step_clock.state is State.READY else None

    def _announce(self) -> Announce:
        config = self._config
        return Announce(
            worker=self._uid,
            model=config.served_name,
            source=config.source,
            kind=config.kind,
            state=self._step_clock.state,
            pid=os.getpid(),
            slots=config.max_concurrency,
            queue_size=config.queue_size,
            queue_timeout_s=config.queue_timeout_s,
            created=self._created,
            adapters={name: tail(path) for name, path in config.adapters.items()},
        )

    def _beat(self) -> Beat:
        """Return a sign of life. For the link's thread alone, whose own work is no progress."""
        gauges = self._engine.gauges()
        reading = self._step_clock.read_state()
        if reading.state in PREPARING:
            self._progress = self._work.count_work()
        counted = msgspec.structs.replace(gauges, waiting=gauges.waiting + self._preprocessor.waiting)
        return Beat(
            state=reading.state,
            step=reading.step,
            step_age_s=self._step_clock.age_s(reading),
            busy=reading.busy,
            resident_bytes=_resident_bytes(),
            progress=self._progress,
            # Every field of `Gauges` is one of `Beat`, by the same name.
            **msgspec.structs.asdict(counted),
        )


def engine_type(config: WorkerConfig) -> Callable[[WorkerConfig], Engine]:
    """Import the engine that the configuration names. Raises `EngineLoadError` where there is none of that name."""
    path = config.engine or BUILT_IN_ENGINES[config.kind]
    module, _, name = path.partition(":")
    # Thousands of modules are made and none is thrown away: to look for garbage meanwhile finds nothing.
    gc.disable()
    try:
        found: Callable[[WorkerConfig], Engine] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EngineLoadError(f"--engine {path}: {error}") from error
    finally:
        gc.enable()
    return found


def _resident_bytes() -> int:
    """Return the peak resident size. `getrusage` counts kilobytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _watch_lifeline(fd: int) -> None:
    """End with the supervisor: its end of the lifeline closes however it dies."""

    def wait() -> NoReturn:
        while os.read(fd, 1):
            pass
        log.warning("the supervisor ended: the engine process ends, too")
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def main(config: WorkerConfig, *, worker_uid: str, lifeline_fd: int) -> int:
    """Run one engine process to its end; returns its exit code."""
    _watch_lifeline(lifeline_fd)
    try:
        process = Process(config, worker_uid=worker_uid, lifeline_fd=lifeline_fd)
    except EngineLoadError as error:
        log.error("%s can't be served: %s", config.served_name, error)
        return EXIT_CONFIG
    return process.run()
