"""What compilers and streams have spent on each tenant's grammars, and what follows from it. Pure; told the time."""

from collections import OrderedDict

LIGHT_S = 1.0
"""Whoever owes no more processor time than this is served before all others."""
MOST_S = 30.0
"""Whoever owes more has to wait until less is owed."""
PAID_PER_S = 0.25
"""So much processor time is forgiven every second."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0
"""How long a tenant whose grammar held up all streams gets no further ones compiled; doubled each time."""
REMEMBERED = 1024


class _Account:
    __slots__ = ("at", "barred_until", "owed_s", "pause_s")

    def __init__(self, now: float) -> None:
        self.at = now
        self.owed_s = 0.0
        self.barred_until = now
        self.pause_s = 0.0


class Standing:
    """By tenant. Those who owe nothing any more are forgotten, and of the others all but the last."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def is_light(self, tenant: str, now: float) -> bool:
        """Return whether little has been spent on a tenant lately."""
        return self._owed_s(tenant, now) <= LIGHT_S

    def owed_s(self, tenant: str, now: float) -> float:
        """Return what a tenant owes."""
        return self._owed_s(tenant, now)

    def wait_s(self, tenant: str, now: float) -> float:
        """How long a tenant has to wait before anything more is compiled; 0: not at all."""
        account = self._accounts.get(tenant)
        if account is None:
            return 0.0
        return max(0.0, account.barred_until - now, (self._owed_s(tenant, now) - MOST_S) / PAID_PER_S)

    def charge_time(self, tenant: str, spent_s: float, now: float) -> None:
        """Processor time was spent."""
        self._account(tenant, now).owed_s += spent_s

    def bar_tenant(self, tenant: str, now: float) -> None:
        """Have a tenant pause, since a grammar of its held up everybody's streams."""
        account = self._account(tenant, now)
        if account.barred_until > now:
            # Several that were on their way already are one.
            return
        quiet = now - account.barred_until > LONGEST_PAUSE_S
        longer = FIRST_PAUSE_S if quiet or not account.pause_s else 2 * account.pause_s
        account.pause_s = min(longer, LONGEST_PAUSE_S)
        account.barred_until = now + account.pause_s

    def _owed_s(self, tenant: str, now: float) -> float:
        account = self._accounts.get(tenant)
        return max(0.0, account.owed_s - (now - account.at) * PAID_PER_S) if account else 0.0

    def _account(self, tenant: str, now: float) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(now)
            if len(self._accounts) > REMEMBERED:
                self._accounts.popitem(last=False)
        account.owed_s, account.at = self._owed_s(tenant, now), now
        self._accounts.move_to_end(tenant)
        return account
