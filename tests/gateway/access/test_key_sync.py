"""Keys on disk and in memory, and a database in every kind of trouble: no crash, no open door."""

import asyncio
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.access import cli
from gateway.access.keys.key import UNLIMITED, BadKey, Key, RateLimits, new_key
from gateway.access.keys.keyring import Caller, Keyring
from gateway.access.keys.store import DATABASE, PEPPER, KeyStore, UsageRow
from gateway.access.keys.sync import LOOK_S, KeysUnavailable, KeySync
from gateway.access.limits import DAY_NS
from gateway.access.usage import UsageLedger

Make = Callable[..., KeySync]


def key_sync(folder: Path, master: str | None = None, **options: Any) -> KeySync:
    return KeySync(folder, Keyring(master), UsageLedger(UNLIMITED), look_s=0.02, **options)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def damage(folder: Path) -> None:
    for path in folder.glob(f"{DATABASE}*"):
        path.unlink()
    (folder / DATABASE).write_bytes(os.urandom(9000))


def command(folder: Path, *argv: str) -> int:
    return cli.main(["--data-dir", str(folder), *argv])


def made(folder: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """A key of the command line."""
    assert command(folder, "create", *argv) == 0
    return capsys.readouterr().out.strip()


async def test_key_is_followed_when_the_command_line_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made, changed, rotated and revoked from outside: a running gateway follows, and the text is stored nowhere."""
    keys = KeySync(tmp_path, Keyring(None), UsageLedger(UNLIMITED))
    await keys.start()
    text = made(tmp_path, capsys, "outside", "--permissions", "chat", "--models", "a,b", "--rpm", "7")
    key_id = text[4:12]
    await eventually(lambda: isinstance(keys.keyring.identify_caller(text, time.time()), Caller))
    caller = keys.keyring.identify_caller(text, time.time())
    assert caller == Caller(
        id=key_id, permissions=frozenset({"chat"}), models=frozenset("ab"), limits=RateLimits(rpm=7), tenant=key_id
    )
    assert command(tmp_path, "change", key_id, "--permissions", "*", "--burst", "3") == 0
    await eventually(lambda: keys.keyring.identify_caller(text, time.time()) != caller)
    assert keys.keyring.identify_caller(text, time.time()).limits == RateLimits(rpm=7, burst=3)  # type: ignore[union-attr]
    capsys.readouterr()
    assert command(tmp_path, "rotate", key_id, "--grace", "1h") == 0
    fresh = capsys.readouterr().out.strip()
    await eventually(lambda: isinstance(keys.keyring.identify_caller(fresh, time.time()), Caller))
    assert isinstance(keys.keyring.identify_caller(text, time.time() + 3599), Caller)
    assert keys.keyring.identify_caller(text, time.time() + 3601) == "invalid"
    assert command(tmp_path, "revoke", key_id) == 0
    await eventually(lambda: keys.keyring.identify_caller(fresh, time.time()) == "revoked")
    assert LOOK_S < 0.5, "a second is promised"
    await keys.close()
    on_disk = contents(tmp_path)
    assert all(part.encode() not in on_disk for part in (text, text[13:], fresh, fresh[13:]))


def test_files_are_private_when_made(tmp_path: Path) -> None:
    """Nobody else of the machine reads keys, sums or pepper."""
    store = KeyStore(tmp_path / "data", timeout_s=1)
    store.write_key(new_key(store.pepper, 1.0, name="x")[0])
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    files = [*(tmp_path / "data").iterdir()]
    assert {path.name for path in files} >= {DATABASE, PEPPER}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    store.close()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"permissions": ()}, "permissions"),
        ({"permissions": ("root",)}, "permissions"),
        ({"models": ("",)}, "models"),
        ({"models": ("m",) * 101}, "models"),
        ({"expires_at": 1.0}, "expires_at"),
        ({"limits": RateLimits(rpm=-1)}, "limits.rpm"),
        ({"limits": RateLimits(rpd=100_001)}, "limits.rpd"),
    ],
)
def test_key_is_refused_when_a_field_is_wrong(fields: dict[str, Any], field: str) -> None:
    """The field is named."""
    with pytest.raises(BadKey) as found:
        new_key(b"p" * 32, 2.0, **{"name": "x", **fields})
    assert found.value.field == field


async def test_expired_key_is_told_from_a_bad_one_at_the_second(tmp_path: Path) -> None:
    """Expiry holds per request, by the wall clock; wrong secrets, unknown ids and typos are all the same."""
    keys = key_sync(tmp_path, master="the master key")
    await keys.start()
    key, text = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x", expires_at=100.0))
    _, stranger = new_key(b"q" * 32, 1.0, name="y")
    find = keys.keyring.identify_caller
    assert isinstance(find(text, 99.999), Caller)
    assert find(text, 100.0) == "expired"
    assert {find(bad, 1.0) for bad in (stranger, text[:-1], "x", "", "the master key ")} == {"invalid"}
    assert find("the master key", 1.0).id == "master"  # type: ignore[union-attr]
    assert [found.id for found in await keys.read_keys()] == [key.id]
    await keys.close()


async def test_usage_survives_when_the_process_does_not(tmp_path: Path) -> None:
    """What was counted is on disk within a look, per key and per minute; a new process goes on counting from there."""
    keys = key_sync(tmp_path)
    await keys.start()
    key, _ = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x", limits=RateLimits(rpd=5, rph=4)))
    for _ in range(3):
        keys.usage.count_use(key.id, requests=1, tokens=7)
    await eventually(lambda: read(tmp_path)[0].requests == 3)
    assert (read(tmp_path)[0].tokens, read(tmp_path)[0].last_used_at) == (21, pytest.approx(time.time(), abs=10))
    # No close: as after SIGKILL.
    again = key_sync(tmp_path)
    await again.start()
    caller = Caller(id=key.id, permissions=frozenset("*"), limits=key.limits)
    now = time.monotonic_ns()
    left = again.usage.limiter_for(caller).requests_left(now)
    assert left is not None
    assert (left.limit, left.remaining) == (4, 1)
    assert again.usage.limiter_for(caller).start_request(now) is None
    refused = again.usage.limiter_for(caller).start_request(now)
    assert refused is not None
    assert refused.wait_ns < DAY_NS
    await again.close()
    await keys.close()


def read(folder: Path) -> list[Key]:
    store = KeyStore(folder, timeout_s=5)
    try:
        return store.read_keys()
    finally:
        store.close()


async def test_keys_stay_good_and_usage_waits_when_the_database_is_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process holds the lock: known keys work, changes are refused, nothing that was counted is lost."""
    keys = key_sync(tmp_path)
    await keys.start()
    key, text = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x"))
    blocker = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    keys.usage.count_use(key.id, requests=1, tokens=5)
    await eventually(lambda: keys.trouble is not None)
    assert "The key database fails" in caplog.text
    assert "serving the keys last read" in caplog.text
    assert isinstance(keys.keyring.identify_caller(text, 11.0), Caller)
    with pytest.raises(KeysUnavailable):
        await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="y"))
    keys.usage.count_use(key.id, requests=1, tokens=5)
    blocker.execute("ROLLBACK")
    blocker.close()
    await eventually(lambda: keys.trouble is None)
    await eventually(lambda: read(tmp_path)[0].tokens == 10)
    assert "is back" in caplog.text
    await keys.close()


async def test_no_key_opens_anything_when_the_database_is_locked_from_the_start(tmp_path: Path) -> None:
    """Not even known whether a key is good: nobody but the master gets in, until it can be read."""
    key, text = made_in(tmp_path)
    blocker = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    blocker.execute("UPDATE keys SET name = name")
    keys = key_sync(tmp_path, master="m")
    await keys.start()
    assert keys.keyring.identify_caller(text, 11.0) == "unavailable"
    assert keys.keyring.identify_caller("m", 11.0).id == "master"  # type: ignore[union-attr]
    assert keys.keyring.identify_caller("nonsense", 11.0) == "invalid"
    blocker.execute("ROLLBACK")
    blocker.close()
    await eventually(lambda: isinstance(keys.keyring.identify_caller(text, 11.0), Caller))
    assert key.id
    await keys.close()


def made_in(folder: Path) -> tuple[Key, str]:
    store = KeyStore(folder, timeout_s=1)
    key, text = new_key(store.pepper, 10.0, name="x")
    store.write_key(key)
    store.close()
    return key, text


@pytest.mark.parametrize("trouble", ["noise", "cut", "gone", "row", "pepper", "newer", "folder"])
async def test_door_stays_shut_when_the_database_is_damaged(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it is damaged before the start, the gateway lives, says so, and lets in only the master key."""
    folder = tmp_path / "data"
    _, text = made_in(folder)
    database = folder / DATABASE
    match trouble:
        case "noise":
            database.write_bytes(os.urandom(20_000))
        case "cut":
            database.write_bytes(database.read_bytes()[:5000])
        case "gone":
            database.unlink()
        case "pepper":
            (folder / PEPPER).write_bytes(b"short")
        case "folder":
            shutil.rmtree(folder)
            folder.write_text("a file")
        case _:
            with sqlite3.connect(database) as db:
                db.execute("PRAGMA user_version = 99" if trouble == "newer" else "UPDATE keys SET permissions = '[1'")
            db.close()
    keys = key_sync(folder, master="m")
    await keys.start()
    assert keys.keyring.identify_caller(text, 11.0) in ("invalid", "unavailable")
    assert keys.keyring.identify_caller("m", 11.0).id == "master"  # type: ignore[union-attr]
    assert keys.trouble is not None
    assert "The key database fails" in caplog.text
    await keys.close()


async def test_lost_pepper_is_said_and_opens_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new one is made, under which no old key is good."""
    _, text = made_in(tmp_path)
    (tmp_path / PEPPER).unlink()
    keys = key_sync(tmp_path)
    await keys.start()
    assert keys.keyring.identify_caller(text, 11.0) == "invalid"
    assert "pepper" in caplog.text
    await keys.close()


async def test_known_keys_stay_good_when_the_database_is_damaged_under_way(tmp_path: Path) -> None:
    """Memory goes on; what was revoked there stays revoked."""
    keys = key_sync(tmp_path)
    await keys.start()
    key, text = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x"))
    damage(tmp_path)
    await keys.close_database()
    keys.usage.count_use(key.id, requests=1)
    await eventually(lambda: keys.trouble is not None)
    assert isinstance(keys.keyring.identify_caller(text, 11.0), Caller)
    await keys.close()


async def test_writes_fail_whole_when_the_disk_is_full(tmp_path: Path) -> None:
    """No half row, no wrong sum; and all is written once there is room."""
    keys = key_sync(tmp_path)
    await keys.start()
    key, _ = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x"))
    await keys._run(lambda: keys._open()._db.execute("PRAGMA max_page_count = 1"))  # raised to the size it has
    used = [f"{key.id}{at:04}" for at in range(2000)]
    for name in used:
        keys.usage.count_use(name, requests=1)
    keys.usage.count_use(key.id, requests=1, tokens=3)
    await eventually(lambda: keys.trouble is not None)
    assert "full" in str(keys.trouble)
    assert read(tmp_path)[0].requests == 0
    await keys._run(lambda: keys._open()._db.execute("PRAGMA max_page_count = 1000000"))
    await eventually(lambda: keys.trouble is None)
    await eventually(lambda: read(tmp_path)[0].tokens == 3)
    await keys.close()


def test_pending_usage_is_bounded_when_nothing_can_be_written() -> None:
    """Minutes pile up to a bound; sums stay right."""
    now = [0.0]
    usage = UsageLedger(UNLIMITED, wall=lambda: now[0])
    for at in range(45_000):
        now[0] = at * 60.0
        usage.count_use(f"k{at % 3}", requests=1, tokens=2)
    taken = usage.take_pending()
    assert len(taken) <= 20_001
    assert (sum(spent.requests for spent in taken), sum(spent.tokens for spent in taken)) == (45_000, 90_000)
    usage.count_use("k0", requests=1)
    usage.give_back([*taken, UsageRow("k0", int(now[0] // 60), 1, 1)])
    assert sum(spent.requests for spent in usage.take_pending()) == 45_002


def test_commands_say_what_is_wrong_when_they_are_misused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a line; the list shows state and sums, never a digest."""
    assert command(tmp_path, "revoke", "nobody") == 2
    assert "no key with the id 'nobody'" in capsys.readouterr().err
    assert command(tmp_path, "create", "x", "--expires", "soon") == 2
    assert command(tmp_path, "create", "x", "--permissions", "root") == 2
    text = made(tmp_path, capsys, "list me", "--expires", "30d", "--permissions", "chat")
    assert command(tmp_path, "list", "--json") == 0
    out = capsys.readouterr().out
    assert '"name": "list me"' in out
    assert "digest" not in out
    assert command(tmp_path, "list") == 0
    assert "active" in capsys.readouterr().out
    assert text not in out
    (tmp_path / DATABASE).write_bytes(os.urandom(9000))
    assert command(tmp_path, "list") == 1
