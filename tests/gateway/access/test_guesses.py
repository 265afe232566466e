"""Guessing keys: seen, slowed down, and nobody else's trouble; master keys that could be guessed are refused."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.access.gate import GATE
from gateway.access.guesses import ADDRESSES, FORGET_S, FREE, MOST_DELAY_S, REMEMBERED, TRUSTED, LoginGuesses
from gateway.access.keys.strength import LEAST_CHARS, weakness
from gateway.config import parse_arguments
from protocol.settings import ConfigError
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded, issue


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def guess(guesses: LoginGuesses, count: int, address: str = "10.0.0.1", first: int = 0) -> None:
    for at in range(first, first + count):
        guesses.count_failure(address, f"guess-{at}", "invalid")


def test_delay_grows_with_each_guess_and_is_bounded() -> None:
    """None for the first few; then 1, 2, 4 … s, at most five minutes; after half an hour of quiet all is forgotten."""
    guesses = LoginGuesses(clock := Clock())
    guess(guesses, FREE - 1)
    assert guesses.wait_s("10.0.0.1") == 0
    waits = []
    for at in range(12):
        guess(guesses, 1, first=100 + at)
        waits.append(guesses.wait_s("10.0.0.1"))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, *[MOST_DELAY_S] * 3]
    assert guesses.wait_s("10.0.0.2") == 0
    clock.now_s += MOST_DELAY_S
    assert guesses.wait_s("10.0.0.1") == 0
    clock.now_s += FORGET_S
    guess(guesses, 1, first=200)
    assert guesses.wait_s("10.0.0.1") == 0


def test_wrong_key_that_comes_again_is_no_guess() -> None:
    """A client with an old key that asks every second locks nobody out, nor do some of them."""
    guesses = LoginGuesses(Clock())
    for _ in range(1000):
        for at in range(FREE - 1):
            guesses.count_failure("10.0.0.1", f"old-{at}", "invalid")
    assert guesses.wait_s("10.0.0.1") == 0
    assert guesses.counts["invalid"] == 1000 * (FREE - 1)
    assert FREE <= REMEMBERED


def test_network_counts_as_one_address_when_it_is_of_version_six() -> None:
    """Whoever has one address of a /64 has them all."""
    guesses = LoginGuesses(Clock())
    for at in range(FREE):
        guesses.count_failure(f"2001:db8::{at:x}", f"guess-{at}", "invalid")
    assert guesses.wait_s("2001:db8::ffff") > 0
    assert guesses.wait_s("2001:db8:0:1::1") == 0


def test_table_is_bounded_when_very_many_addresses_fail() -> None:
    """The oldest are forgotten."""
    guesses = LoginGuesses(Clock())
    for at in range(ADDRESSES + 100):
        guesses.count_failure(f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}", "x", "invalid")
    assert len(guesses) == ADDRESSES


def test_addresses_of_the_master_key_are_bounded() -> None:
    """It came from very many: the last ones are known."""
    guesses = LoginGuesses(Clock())
    for at in range(TRUSTED + 1):
        guesses.trust_address(f"10.0.{at >> 8}.{at & 255}")
    assert not guesses.is_trusted("10.0.0.0")
    assert guesses.is_trusted("10.0.0.1")


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[Client]:
    """Behind a proxy on this machine."""
    import ipaddress

    async with guarded(tmp_path, trusted_proxies=(ipaddress.ip_network("127.0.0.1"),)) as connected:
        yield connected


async def test_guesser_is_slowed_down_and_others_are_not(proxied: Client, caplog: pytest.LogCaptureFixture) -> None:
    """429 with how long to wait, also for the right master key; other addresses and issued keys go on."""
    gate, now = app_of(proxied)[GATE], [10**12]
    gate.usage.clock_ns = lambda: now[0]
    evil, good = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "203.0.113.10"}
    issued = await issue(proxied, "models")
    statuses = [
        (await proxied.get("/v1/models", headers=bearer(f"guess-{at}") | evil)).status for at in range(FREE + 5)
    ]
    assert statuses == [401] * FREE + [429] * 5
    refused = await proxied.get("/v1/models", headers=bearer(MASTER) | evil)
    assert refused.status == 429
    assert (await refused.json())["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "1"
    assert (await proxied.get("/v1/models", headers=bearer(issued) | evil)).status == 200
    assert (await proxied.get("/v1/models", headers=bearer(MASTER) | good)).status == 200
    now[0] += 1_001_000_000
    assert (await proxied.get("/v1/models", headers=bearer(MASTER) | evil)).status == 200
    # From now on it is known there.
    assert (await proxied.get("/v1/models", headers=bearer("another guess") | evil)).status == 401
    assert (await proxied.get("/v1/models", headers=bearer("one more") | evil)).status == 429
    assert (await proxied.get("/v1/models", headers=bearer(MASTER) | evil)).status == 200
    told = [line.getMessage() for line in caplog.records if "Failed login" in line.getMessage()]
    assert [line.split(" from ")[0] for line in told] == [f"Failed login {at}" for at in (1, 2, 4, 8, 16)]
    assert all("203.0.113.9" in line and "guess" not in line for line in told)
    metrics = await (await proxied.get("/metrics", headers=bearer(MASTER) | good)).text()
    assert f'pool_failed_logins_total{{reason="invalid"}} {float(FREE + 1)}' in metrics
    assert 'pool_failed_logins_total{reason="blocked"} 7.0' in metrics


async def test_open_routes_are_no_way_to_guess(client: Client) -> None:
    """A wrong key sent to `/health` counts like one sent elsewhere, and shows no more than none."""
    for at in range(FREE + 1):
        answer = await client.get("/health", headers=bearer(f"guess-{at}"))
        assert set(await answer.json()) == {"status", "models_healthy"}
    assert app_of(client)[GATE].guesses.counts == {"invalid": FREE, "blocked": 1}


@pytest.mark.parametrize(
    "key",
    ["", "tiny", "x" * 40, "abcabcabcabcabcabcabc", "abcdefghijklmnopqrstuvwxyz", "0123456789abcdef0123456789abcdef",
     "password-password", "changeme-changeme-2024", "my-secret-api-key-123456", "master-key-of-the-pool",
     "qwertyuiopasdfghjkl", "sk-1234567890abcdef", "aAaAaAaAaAaAaAaAaA", "your-api-key-here-please"],
)  # fmt: skip
def test_weak_master_key_is_refused_at_the_start_in_production(key: str) -> None:
    """In one sentence that says how to make a good one and does not repeat the bad one."""
    assert weakness(key)
    if key:
        with pytest.raises(ConfigError, match=r"api_key: .*openssl rand -hex 32") as caught:
            parse_arguments([], {"POOL_API_KEY": key, "POOL_ENV": "production"})
        assert key not in str(caught.value)
        assert parse_arguments([], {"POOL_API_KEY": key, "POOL_ENV": "development"}).api_key == key


def test_strong_master_key_is_taken() -> None:
    """Whatever the usual tools make."""
    made = [make(size) for make in (secrets.token_hex, secrets.token_urlsafe) for size in (16, 24, 32)] * 200
    assert [key for key in made if weakness(key)] == []
    assert all(len(key) >= LEAST_CHARS for key in made)
    assert weakness("correct-horse-battery-staple") is None


async def test_weak_master_key_is_warned_of_in_development(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, without the key."""
    async with guarded(tmp_path, env="development", auth=False, api_key="changeme"):
        assert any("The master key is shorter" in line.getMessage() for line in caplog.records)
