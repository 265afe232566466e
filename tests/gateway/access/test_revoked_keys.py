"""A revoked key stays revoked: beside other changes, on a database that can't be written, without one."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from gateway.access import cli
from gateway.access.gate import GATE
from gateway.access.keys.journal import FILE, FILE_BYTES, RECORD_BYTES, RECORDS, RevocationJournal
from gateway.access.keys.key import UNLIMITED, Key, new_key
from gateway.access.keys.keyring import Caller, Keyring
from gateway.access.keys.store import DATABASE, PEPPER, KeyStore, RevokedKey
from gateway.access.keys.sync import KeySync
from gateway.access.usage import UsageLedger
from gateway.context import KEY_SYNC
from tests.support.guarded_app import MASTER, Client, app_of, bearer, guarded

PAIRS = 200
ADMIN = bearer(MASTER)


def key_sync(folder: Path) -> KeySync:
    return KeySync(folder, Keyring(None), UsageLedger(UNLIMITED), look_s=0.02)


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[KeySync]:
    keys = key_sync(folder)
    await keys.start()
    try:
        yield keys
    finally:
        await keys.close()


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def made(keys: KeySync, **fields: Any) -> tuple[Key, str]:
    return await keys.write_key(lambda pepper: new_key(pepper, 1.0, **{"name": "x", "permissions": ("*",), **fields}))


def state(keys: KeySync, text: str) -> object:
    found = keys.keyring.identify_caller(text, time.time())
    return "open" if isinstance(found, Caller) else found


async def command(folder: Path, *argv: str) -> int:
    return await asyncio.to_thread(cli.main, ["--data-dir", str(folder / "data"), *argv])


def rival(at: int, clients: tuple[Client, Client], folder: Path, key_id: str) -> Awaitable[Any]:
    """A change to a key by one of several sides."""
    path, client = f"/admin/api-keys/{key_id}", clients[at // 4 % 2]
    match at % 4:
        case 0:
            return client.patch(path, json={"name": f"n{at}"}, headers=ADMIN)
        case 1:
            return client.post(f"{path}/rotate", headers=ADMIN)
        case 2 if at % 8 == 2:
            return command(folder, "change", key_id, "--name", f"n{at}")
        case 3 if at % 8 == 3:
            return command(folder, "rotate", key_id)
        case _:
            return client.patch(path, json={"permissions": ["*"], "limits": {"rpm": at + 1}}, headers=ADMIN)


async def test_revoked_keys_stay_revoked_when_they_are_changed_at_that_moment(tmp_path: Path) -> None:
    """200 pairs of DELETE and PATCH, rotate or a command, by two gateways: none opens, here, on disk, restarted."""
    data = tmp_path / "data"
    async with (
        guarded(tmp_path, run_dir=tmp_path / "a", data_dir=data) as one,
        guarded(tmp_path, run_dir=tmp_path / "b", data_dir=data) as other,
    ):
        texts = [(await made(app_of(one)[KEY_SYNC]))[1] for _ in range(PAIRS)]
        await eventually(lambda: len(app_of(other)[GATE].keyring) == PAIRS)

        async def pair(at: int, text: str) -> int:
            path = f"/admin/api-keys/{text[4:12]}"
            acts = [rival(at, (one, other), tmp_path, text[4:12]), (one, other)[at % 2].delete(path, headers=ADMIN)]
            if at % 3:
                acts.reverse()
            answers = await asyncio.gather(*acts)
            status: int = answers[0 if at % 3 else 1].status
            return status

        waves = [pair(at, text) for at, text in enumerate(texts)]
        statuses = [status for at in range(0, PAIRS, 40) for status in await asyncio.gather(*waves[at : at + 40])]
        assert set(statuses) == {200}
        for app in (app_of(one), app_of(other)):
            await eventually(lambda app=app: {state(app[KEY_SYNC], text) for text in texts} == {"revoked"})
            await eventually(lambda app=app: not app[GATE].keyring.revoked)
        refused = await one.patch(f"/admin/api-keys/{texts[0][4:12]}", json={"name": "y"}, headers=ADMIN)
        assert (refused.status, (await refused.json())["error"]["code"]) == (409, "key_revoked")
        assert (await one.post(f"/admin/api-keys/{texts[0][4:12]}/rotate", headers=ADMIN)).status == 409
        assert await command(tmp_path, "change", texts[0][4:12], "--expires", "never") == 2
        assert (await one.delete(f"/admin/api-keys/{texts[0][4:12]}", headers=ADMIN)).status == 200
    store = KeyStore(data, timeout_s=1)
    assert all(key.revoked_at is not None for key in store.read_keys())
    store.close()
    async with started(data) as again:
        assert {state(again, text) for text in texts} == {"revoked"}


def test_change_writes_only_what_it_changes_when_another_has_written_meanwhile(tmp_path: Path) -> None:
    """Two sides that change different things of a key lose neither; a revoked one is changed by nobody."""
    one, other = KeyStore(tmp_path, timeout_s=1), KeyStore(tmp_path, timeout_s=1)
    key, _ = new_key(one.pepper, 1.0, name="x")
    one.write_key(key)
    one.change_key(key.id, lambda key: (key.changed(2.0, name="y"), None))
    other.change_key(key.id, lambda key: (key.changed(2.0, models=("m",)), None))
    assert [(found.name, found.models) for found in one.read_keys()] == [("y", ("m",))]
    assert other.revoke_key(key.id, 5.0).revoked_at == one.revoke_key(key.id, 6.0).revoked_at == 5.0
    with pytest.raises(RevokedKey):
        one.change_key(key.id, lambda key: (key.changed(2.0, revoked_at=None), None))
    with pytest.raises(sqlite3.IntegrityError):
        one.write_key(key)
    one.close()
    other.close()


async def test_memory_follows_the_database_when_nobody_waits_for_the_answer(tmp_path: Path) -> None:
    """A client that leaves while its change is written leaves memory as the database is."""
    async with started(tmp_path) as keys:
        key, text = await made(keys)
        for change in (keys.change_key(key.id, lambda _, key: (key.changed(1.0, expires_at=3.0), None)),):
            task = asyncio.create_task(change)
            await asyncio.sleep(0)
            task.cancel()
        await eventually(lambda: state(keys, text) == "expired")
        task = asyncio.create_task(keys.revoke_key(key.id, 4.0))
        await asyncio.sleep(0)
        assert state(keys, text) == "revoked"
        task.cancel()
        await eventually(lambda: not keys.keyring.revoked)
        assert [found.revoked_at for found in await keys.read_keys()] == [4.0]


async def test_revocation_holds_at_once_when_the_database_is_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer says where it stands; others that share the folder follow, and a restart does not forget it."""
    async with guarded(tmp_path) as client, started(tmp_path / "data") as neighbour:
        key, text = await made(app_of(client)[KEY_SYNC])
        await eventually(lambda: state(neighbour, text) == "open")
        blocker = sqlite3.connect(tmp_path / "data" / DATABASE, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        answer = await client.delete(f"/admin/api-keys/{key.id}", headers=ADMIN)
        body = await answer.json()
        assert (answer.status, body["state"], body["pending"]) == (200, "revoked", "journal")
        assert state(app_of(client)[KEY_SYNC], text) == "revoked"
        assert "is revoked here, but that is in the journal alone yet" in caplog.text
        await eventually(lambda: state(neighbour, text) == "revoked")
        listed = (await (await client.get(f"/admin/api-keys/{key.id}", headers=ADMIN)).json())["state"]
        assert listed == "revoked"
        changed = await client.patch(f"/admin/api-keys/{key.id}", json={"name": "y"}, headers=ADMIN)
        assert changed.status == 503
        # As after SIGKILL: nothing of the first one's memory is left.
        async with started(tmp_path / "data") as again:
            await eventually(lambda: state(again, text) in ("revoked", "unavailable"))
        blocker.execute("ROLLBACK")
        blocker.close()
        await eventually(lambda: not app_of(client)[GATE].keyring.revoked)
        assert RevocationJournal(tmp_path / "data").read_revocations() == {}
        again_body = await (await client.delete(f"/admin/api-keys/{key.id}", headers=ADMIN)).json()
        assert "pending" not in again_body
    store = KeyStore(tmp_path / "data", timeout_s=1)
    assert [found.revoked_at is not None for found in store.read_keys()] == [True]
    store.close()


async def test_command_leaves_a_note_when_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running gateway obeys a revocation from the command line although the database takes nothing."""
    monkeypatch.setattr(cli, "BUSY_S", 0.05)
    async with started(tmp_path) as keys:
        key, text = await made(keys)
        blocker = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        assert await asyncio.to_thread(cli.main, ["--data-dir", str(tmp_path), "revoke", key.id]) == 0
        assert "noted in the journal" in capsys.readouterr().out
        await eventually(lambda: state(keys, text) == "revoked")
        assert await asyncio.to_thread(cli.main, ["--data-dir", str(tmp_path), "revoke", "../x"]) == 1
        blocker.execute("ROLLBACK")
        blocker.close()


def test_journal_keeps_what_is_whole_when_a_record_is_not(tmp_path: Path) -> None:
    """Cut short, scribbled over, or full: what can be read is read, and nothing else is taken for a revocation."""
    journal = RevocationJournal(tmp_path)
    assert journal.read_revocations() == {}
    with pytest.raises(FileNotFoundError):
        journal.write_revocation("AAAAAAAA", 1.0)
    journal.reserve_file()
    journal.write_revocation("AAAAAAAA", 1.25)
    journal.write_revocation("AAAAAAAA", 9.0)
    journal.write_revocation("BBBBBBBB", 2.0)
    assert journal.read_revocations() == {"AAAAAAAA": 1.25, "BBBBBBBB": 2.0}
    path = tmp_path / FILE
    with path.open("r+b") as file:
        file.seek(RECORD_BYTES + 3)
        file.write(b"X")
    assert journal.read_revocations() == {"AAAAAAAA": 1.25}
    path.write_bytes(path.read_bytes()[: 3 * RECORD_BYTES + 7])
    assert journal.read_revocations() == {"AAAAAAAA": 1.25}
    journal.reserve_file()
    assert (path.stat().st_size, journal.read_revocations()) == (FILE_BYTES, {"AAAAAAAA": 1.25})
    for at in range(RECORDS - 1):
        journal.write_revocation(f"{at:08}", float(at))
    with pytest.raises(OSError, match="full"):
        journal.write_revocation("CCCCCCCC", 3.0)
    journal.clear_revocations({"AAAAAAAA"})
    journal.write_revocation("CCCCCCCC", 3.0)
    assert len(journal.read_revocations()) == RECORDS


@pytest.mark.parametrize("trouble", ["folder", "database", "emptied", "pepper", "replaced"])
async def test_keys_stay_known_when_their_folder_goes_away(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An alarm that lasts, no empty database in place of the one that was there; put back, all goes on."""
    folder, saved = tmp_path / "data", tmp_path / "saved"
    async with started(folder) as keys:
        key, text = await made(keys)
        _, doomed = await made(keys)
        await keys.close_database()  # so that all of it is in one file
        shutil.copytree(folder, saved)
        match trouble:
            case "folder" | "replaced":
                # At once: between the files of one that is removed piece by piece a look would make new ones.
                folder.rename(tmp_path / "taken")
            case "database":
                for path in folder.glob(f"{DATABASE}*"):
                    path.unlink()
            case "emptied":
                for path in folder.glob(f"{DATABASE}*"):
                    path.unlink()
                (folder / DATABASE).touch(mode=0o600)
            case "pepper":
                (folder / PEPPER).unlink()
        if trouble == "replaced":
            assert await asyncio.to_thread(cli.main, ["--data-dir", str(folder), "create", "other"]) == 0
        await keys.close_database()
        await eventually(lambda: keys.trouble is not None)
        failures = keys.failures
        await eventually(lambda: keys.failures > failures + 3)
        assert state(keys, text) == "open"
        assert "serving the keys last read" in caplog.text
        assert "is back" not in caplog.text
        if trouble != "replaced":
            assert (folder / DATABASE).exists() is (trouble in ("pepper", "emptied"))
            assert not (folder / PEPPER).exists() or trouble in ("database", "emptied")
        _, kept = await keys.revoke_key(doomed[4:12], 5.0)
        assert kept in ("memory", "journal")
        assert state(keys, doomed) == "revoked"
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(saved, folder)  # noqa: PTH105
        await eventually(lambda: keys.trouble is None)
        await eventually(lambda: not keys.keyring.revoked)
        assert (state(keys, text), state(keys, doomed)) == ("open", "revoked")
        assert {found.id: found.revoked_at for found in await keys.read_keys()} == {key.id: None, doomed[4:12]: 5.0}
