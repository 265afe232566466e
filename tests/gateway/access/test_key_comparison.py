"""How keys are compared: digests of equal length, in constant time, and one comparison whoever asks."""

import hmac
from collections.abc import Callable

import pytest

from gateway.access.keys import keyring
from gateway.access.keys.key import new_key
from gateway.access.keys.keyring import Keyring
from gateway.access.keys.text import mint

PEPPER = b"p" * 32


@pytest.mark.parametrize("who", ["known", "wrong secret", "stranger", "master", "nonsense"])
def test_every_key_is_compared_as_often_and_as_long_when_it_is_looked_up(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an id exists shows in no comparison; what is compared are always two digests of 32 bytes."""
    ring = Keyring("the master key")
    key, text = new_key(PEPPER, 1.0, name="x")
    ring.replace_keys([key], PEPPER)
    asked = {
        "known": text, "wrong secret": mint(key.id)[1], "stranger": mint()[1],
        "master": "the master key", "nonsense": "x" * 1000,
    }[who]  # fmt: skip
    seen: list[tuple[int, int]] = []
    plain: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return plain(one, other)

    monkeypatch.setattr(keyring.hmac, "compare_digest", compare)
    found = ring.identify_caller(asked, 2.0)
    assert (found == "invalid") is (who in ("wrong secret", "stranger", "nonsense"))
    assert seen == [(32, 32)] * (1 if who in ("master", "nonsense") else 2)
