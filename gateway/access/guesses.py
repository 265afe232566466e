"""Failed logins by address: counted, and slowed down where somebody tries one key after another.

Only the master key can be guessed: any other holds 256 random bits. So an address that has tried many different texts
is not compared with it for a while; other keys go on to work from there. The same wrong text again is no new guess:
a client with an old key, which comes back every second, locks nobody out. Where the master key has come from before
(a proxy that is not named as one) others who fail do not lock out its holder either: there, failures are only told.
"""

import hashlib
import ipaddress
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

FREE = 10
"""Different wrong keys before the first delay."""
FIRST_DELAY_S = 1.0
MOST_DELAY_S = 300.0
FORGET_S = 1800.0
"""An address that was quiet for so long begins anew."""
ADDRESSES = 4096
"""Of those that failed, the last so many are remembered."""
TRUSTED = 256
"""Addresses that the master key came from."""
REMEMBERED = 16
"""Wrong texts of each."""
IPV6_PREFIX = 64
"""Whoever has one address of a network has them all."""


@dataclass(slots=True)
class Record:
    """What came from one address."""

    failures: int = 0
    guesses: int = 0
    failed_at: float = 0.0
    blocked_until: float = 0.0
    texts: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class LoginGuesses:
    """What failed lately, from where. `clock`: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        """Failures by their reason."""
        self._clock = clock
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._trusted: OrderedDict[str, None] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def __len__(self) -> int:
        return len(self._records)

    def wait_s(self, address: str) -> float:
        """Return how long the master key will not be looked for in what comes from an address; 0 as a rule."""
        record = self._records.get(_network(address))
        return max(0.0, record.blocked_until - self._clock()) if record is not None else 0.0

    def trust_address(self, address: str) -> None:
        """Note that the master key came from there: whoever else fails there does not keep it from being looked for."""
        network = _network(address)
        self._trusted[network] = None
        self._trusted.move_to_end(network)
        if len(self._trusted) > TRUSTED:
            self._trusted.popitem(last=False)

    def is_trusted(self, address: str) -> bool:
        """Return whether the master key has come from there."""
        return _network(address) in self._trusted

    def count_failure(self, address: str, text: str, reason: str) -> int:
        """Count a failure; answers how many that makes from there."""
        self.counts[reason] += 1
        now, network = self._clock(), _network(address)
        record = self._records.pop(network, None)
        if record is None or now - record.failed_at > FORGET_S:
            record = Record()
        self._records[network] = record
        if len(self._records) > ADDRESSES:
            self._records.popitem(last=False)
        record.failures += 1
        record.failed_at = now
        tried = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16, key=self._salt).digest()
        if reason == "blocked" or tried in record.texts:
            return record.failures
        record.texts.append(tried)
        record.guesses += 1
        if record.guesses >= FREE:
            delay_s = min(FIRST_DELAY_S * 2.0 ** min(record.guesses - FREE, 30), MOST_DELAY_S)
            record.blocked_until = now + delay_s
        return record.failures


def _network(address: str) -> str:
    """Return what counts as one address."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    except ValueError:
        return address
