"""What is held against a request and all its equals."""


class CrashRecord:
    """How many engines died with such a request, and how many more deaths than usual it takes to refuse it.

    The first death counts one for each request that ran. Each later one counts where no other suspect ran. `credit`
    is one if an equal request was cleared before, and one for each that finished. Once `blocked`, all equal requests
    are refused. `since` is when the record last changed, in seconds.
    """

    __slots__ = ("blocked", "credit", "deaths", "fingerprint", "since")

    def __init__(self, fingerprint: bytes, now: float, *, credit: int) -> None:
        self.fingerprint = fingerprint
        self.deaths = 0
        self.credit = credit
        self.blocked = False
        self.since = now
