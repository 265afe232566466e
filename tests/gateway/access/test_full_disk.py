"""A key database on a file system that is really full."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.access.keys.journal import RevocationJournal
from gateway.access.keys.key import UNLIMITED, new_key
from gateway.access.keys.keyring import Caller, Keyring
from gateway.access.keys.store import KeyStore
from gateway.access.keys.sync import KeysUnavailable, KeySync
from gateway.access.usage import UsageLedger


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB; only a privileged user of Linux may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as out:
        for size in (4096, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                continue
    return filler


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_keys_work_and_usage_waits_when_the_disk_is_full(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An alarm, no crash; nobody new gets in, changes are refused; with room again, every token is written."""
    keys = KeySync(small_disk / "data", Keyring("the master key"), UsageLedger(UNLIMITED), look_s=0.02)
    await keys.start()
    key, text = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x"))
    filler = fill(small_disk)
    for at in range(3000):
        keys.usage.count_use(f"{key.id}{at}", requests=1)
    keys.usage.count_use(key.id, requests=1, tokens=7)
    await eventually(lambda: keys.trouble is not None)
    assert "The key database fails" in caplog.text
    assert isinstance(keys.keyring.identify_caller(text, 11.0), Caller)
    assert isinstance(keys.keyring.identify_caller("the master key", 11.0), Caller)
    with pytest.raises(KeysUnavailable):
        for _ in range(100):
            _, stranger = await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="y" * 100))
            assert isinstance(keys.keyring.identify_caller(stranger, 11.0), Caller)
    _, nobody = new_key(b"q" * 32, 1.0, name="z")
    assert keys.keyring.identify_caller(nobody, 11.0) == "invalid"
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)  # noqa: ASYNC221
    await eventually(lambda: keys.trouble is None)
    sums = {found.id: (found.requests, found.tokens) for found in await keys.read_keys()}
    assert sums[key.id] == (1, 7)
    await keys.close()


async def test_revocation_holds_and_survives_when_the_disk_is_full(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Closed at once here, and after a kill; said; in the database as soon as there is room."""
    folder = small_disk / "data"
    keys = KeySync(folder, Keyring("the master key"), UsageLedger(UNLIMITED), look_s=0.02)
    await keys.start()
    made = [await keys.write_key(lambda pepper: new_key(pepper, 10.0, name="x")) for _ in range(8)]
    fill(small_disk)
    # What is not written yet takes the last of the room that the database has within its files.
    for at in range(3000):
        keys.usage.count_use(f"{made[0][0].id}{at}", requests=1)
    await eventually(lambda: keys.trouble is not None)
    kept = []
    for at, (key, text) in enumerate(made):
        _, place = await keys.revoke_key(key.id, 11.0 + at)
        kept.append(place)
        assert keys.keyring.identify_caller(text, 11.0) == "revoked"
    assert set(kept) <= {"database", "journal"}
    assert "journal" in kept
    assert "is revoked here, but that is in the journal alone yet" in caplog.text
    # As after SIGKILL.
    again = KeySync(folder, Keyring(None), UsageLedger(UNLIMITED), look_s=0.02)
    await again.start()
    assert {again.keyring.identify_caller(text, 11.0) for _, text in made} <= {"revoked", "unavailable"}
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)  # noqa: ASYNC221
    await eventually(lambda: keys.trouble is None and not keys.keyring.revoked)
    assert {again.keyring.identify_caller(text, 11.0) for _, text in made} == {"revoked"}
    await again.close()
    await keys.close()
    store = KeyStore(folder, timeout_s=1)
    assert all(found.revoked_at is not None for found in store.read_keys())
    assert RevocationJournal(folder).read_revocations() == {}
    store.close()
