"""Bodies and answers of `/admin`. Times are seconds since 1970."""

from typing import Annotated, Any

from msgspec import Meta

from gateway.access.keys.key import RateLimits
from gateway.schema.base import Answer, ContentPart, Request
from gateway.schema.errors import invalid
from gateway.telemetry.events import Event

DAY_S = 86_400
YEARS_S = 100 * 366 * DAY_S
Seconds = Annotated[float, Meta(ge=0, le=YEARS_S)]
Days = Annotated[float, Meta(ge=0, le=YEARS_S / DAY_S)]
KeyName = Annotated[str, Meta(min_length=1, max_length=100)]
Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=100)]
Bound = Annotated[int, Meta(ge=0, le=10**12)]


class KeyLimits(ContentPart, frozen=True, kw_only=True):
    """Limits of a key; what is left out holds as configured for all, 0 is no bound."""

    burst: Bound | None = None
    rpm: Bound | None = None
    rph: Bound | None = None
    rpd: Bound | None = None
    tpm: Bound | None = None
    tpd: Bound | None = None
    parallel: Bound | None = None

    def limits(self) -> RateLimits:
        """Return the limits as a key has them."""
        return RateLimits(**{name: getattr(self, name) for name in RateLimits.__struct_fields__})


class Lifetime(Request, frozen=True, kw_only=True):
    """How long a key lives from now on, in seconds or in days."""

    expires_in: Seconds | None = None
    expires_in_days: Days | None = None

    def check_values(self) -> None:
        """Check that the time is given once. Raises `ApiError`."""
        if self.expires_in is not None and self.expires_in_days is not None:
            raise invalid("'expires_in' and 'expires_in_days' exclude each other.", "expires_in_days")

    @property
    def lifetime_s(self) -> float | None:
        """Seconds from now; None where nothing is said."""
        return self.expires_in if self.expires_in_days is None else self.expires_in_days * DAY_S


class KeyRequest(Lifetime, frozen=True, kw_only=True):
    """A new key. Without a time it never ends."""

    name: KeyName
    permissions: Names
    models: Names | None = None
    limits: KeyLimits | None = None


class KeyChange(Lifetime, frozen=True, kw_only=True):
    """What is to be different about a key; `limits` are replaced as a whole, times count from now."""

    name: KeyName | None = None
    permissions: Names | None = None
    models: Names | None = None
    limits: KeyLimits | None = None


class KeyRotation(Request, frozen=True, kw_only=True):
    """For how many seconds the old secret stays good."""

    grace: Seconds | None = None


class KeyInfo(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """A key. `key` is its text, told when it is made or rotated and never again.

    `pending`: a revocation that holds, but is not in the database yet. Until it is, it stands
    in the `journal`, which survives a restart, or in the gateway's `memory` alone.
    """

    id: str
    name: str
    state: str
    permissions: list[str]
    models: list[str]
    limits: dict[str, int]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    requests: int
    tokens: int
    old_until: float | None = None
    key: str | None = None
    pending: str | None = None


class KeyList(Answer, frozen=True, kw_only=True):
    """All keys, the newest first."""

    data: list[KeyInfo]


class AdminStats(Answer, frozen=True, kw_only=True):
    """Caches, limits, keys, memory of bodies, configuration and speed, in brief."""

    cache: dict[str, Any]
    prefix_cache: dict[str, Any]
    rate_limiting: dict[str, Any]
    keys: dict[str, Any]
    memory: dict[str, Any]
    configuration: dict[str, Any]
    performance: dict[str, Any]


class Configuration(Answer, frozen=True, kw_only=True):
    """Every setting, secrets masked, and where those come from that are no defaults."""

    file: str | None
    settings: dict[str, Any]
    origins: dict[str, str]


class WorkerInfo(Answer, frozen=True, kw_only=True):
    """One engine process, with the supervisor that watches it, where that has registered.

    `moved_s` is how long ago it was seen to get on: to make progress while it loads or warms up, to step (or to have
    nothing to do) once it is ready. `last_end` says how the engine before it ended, where nobody had asked for that.
    `revision` is the hub's commit that it serves; empty: a local folder.
    `unserved_adapters` are those whose name something else has, each with the reason.
    """

    id: str
    model: str
    state: str
    pid: int
    rows: int
    slots: int
    silent_s: float
    moved_s: float
    running: int
    waiting: int
    active_bytes: int
    resident_bytes: int
    supervisor_pid: int | None
    restarts: int | None
    last_end: str | None
    revision: str
    adapters: list[str]
    unserved_adapters: dict[str, str]


class WorkerList(Answer, frozen=True, kw_only=True):
    """All engine processes."""

    data: list[WorkerInfo]


class EventList(Answer, frozen=True, kw_only=True):
    """What happened, the newest first."""

    data: list[Event]


class Cleared(Answer, frozen=True, kw_only=True):
    """How much was forgotten: vectors here, and prefixes of so many workers, which are told to and do so at once."""

    entries: int
    bytes: int
    workers: int
    prefix_bytes: int


class GraceRequest(Request, frozen=True, kw_only=True):
    """For how many seconds what runs may go on."""

    grace: Annotated[float, Meta(ge=0, le=3600)] | None = None


class ScaleRequest(Request, frozen=True, kw_only=True):
    """How many engines there should be; those too many get `grace` seconds to finish what they run."""

    replicas: Annotated[int, Meta(ge=0, le=64)]
    grace: Annotated[float, Meta(ge=0, le=3600)] | None = None


class WorkerOrder(Answer, frozen=True, kw_only=True):
    """What a worker was told."""

    id: str
    model: str
    act: str


class ModelOrder(Answer, frozen=True, kw_only=True):
    """How many engines of a model are wanted from now on."""

    model: str
    act: str
    replicas: int
