"""What workers and supervisors can be and do: the closed sets that messages name."""

from enum import StrEnum


class State(StrEnum):
    """Life of an engine process, in order."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class Watch(StrEnum):
    """What a supervisor is doing about its engine process."""

    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    CRASH_LOOP = "crash_loop"
    DRAINING = "draining"


class Kind(StrEnum):
    """What a model is for; decides which requests default to it."""

    CHAT = "chat"
    VISION = "vision"
    EMBEDDING = "embedding"
