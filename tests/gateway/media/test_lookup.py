"""The system's resolver, kept off everybody else's threads."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from gateway.media.lookup import TENANT, SystemLookup


async def test_addresses_are_numeric_when_a_name_is_known() -> None:
    """This machine knows itself."""
    assert set(await SystemLookup()("localhost", 80)) & {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "a\0.example"])
async def test_a_name_is_an_error_when_it_can_not_be_one(host: str) -> None:
    """`OSError`, like for any name that nobody knows."""
    with pytest.raises(OSError):
        await SystemLookup()(host, 80)


async def test_a_lookup_keeps_its_place_when_nobody_waits_for_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that hang at a name server are bounded, too; they are daemons."""
    answered = threading.Event()
    asked: list[str] = []
    daemons: list[bool] = []

    def slow(host: str, *_args: Any, **_options: Any) -> list[Any]:
        asked.append(host)
        daemons.append(threading.current_thread().daemon)
        answered.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    lookup = SystemLookup(at_once=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lookup("first.example", 80), 0.05)
    second = asyncio.create_task(lookup("second.example", 80))
    await asyncio.sleep(0.05)
    assert asked == ["first.example"]
    answered.set()
    assert await second == ["192.0.2.1"]
    assert daemons == [True, True]


async def test_names_of_one_tenant_that_nobody_answers_for_leave_places_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Look-ups that hang keep their places, even when their fetches have ended; another tenant's is made at once."""
    stop, began = threading.Event(), threading.Semaphore(0)

    def look(host: str, _port: int) -> list[str]:
        if host == "hangs.example":
            began.release()
            stop.wait(30)
        return ["127.0.0.1"]

    monkeypatch.setattr("gateway.media.lookup._addresses", look)
    lookup = SystemLookup(at_once=4)
    TENANT.set("a")
    hanging = [asyncio.create_task(lookup("hangs.example", 80)) for _ in range(20)]
    for _ in range(2):
        # Half of the places.
        assert await asyncio.to_thread(began.acquire, timeout=60)
    for task in hanging:
        task.cancel()
    TENANT.set("b")
    try:
        async with asyncio.timeout(60):
            assert await lookup("fine.example", 80) == ["127.0.0.1"]
    finally:
        stop.set()
    await asyncio.gather(*hanging, return_exceptions=True)
