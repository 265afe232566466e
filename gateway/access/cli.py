"""`python -m gateway keys …`: keys without HTTP. A running gateway notices within a second."""

import argparse
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.access.audit import audit, close_audit, open_audit
from gateway.access.keys.journal import RevocationJournal
from gateway.access.keys.key import PERMISSIONS, BadKey, Key, RateLimits, new_key
from gateway.access.keys.store import KeyStore, RevokedKey, UnknownKey
from gateway.access.keys.text import ID_CHARS
from gateway.config import LoadedConfig, load
from gateway.values import names
from protocol.settings import ConfigError

BUSY_S = 5.0
_SPANS = MappingProxyType({"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400})


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code: 2 for what can't be asked, 1 for what can't be done."""
    options = _parser().parse_args(list(argv))
    given = {"--config": options.config, "--data-dir": options.data_dir}
    flags = [part for flag, value in given.items() if value for part in (flag, value)]
    try:
        loaded = load(flags)
        folder = loaded.config.data_dir
    except ConfigError as error:
        print(f"keys: {error}", file=sys.stderr)
        return 2
    try:
        store = KeyStore(folder, timeout_s=BUSY_S)
        audit_file = open_audit(folder)
        try:
            RevocationJournal(folder).write_pending(store, {})
            options.run(store, options)
            if options.run is create:
                _say_where(loaded)
        finally:
            close_audit(audit_file)
            store.close()
    except (ConfigError, BadKey, UnknownKey, RevokedKey) as error:
        print(f"keys: {_refusal(error, options)}", file=sys.stderr)
        return 2
    except (sqlite3.Error, OSError) as error:
        print(f"keys: the database can't be used: {error}", file=sys.stderr)
        return _note(folder, options.id) if options.run is revoke else 1
    return 0


def _say_where(loaded: LoadedConfig) -> None:
    """Tell which gateway will know a new key, and whether that one asks for any."""
    by = f"by the settings of {loaded.file}" if loaded.file is not None else "without a settings file"
    print(f"It is kept in {loaded.config.data_dir.absolute()}, {by}.", file=sys.stderr)
    if not loaded.config.auth:
        words = "These settings ask nobody for a key: is it for others, as with POOL_CONFIG=config.yaml?"
        print(words, file=sys.stderr)


def _refusal(error: Exception, options: argparse.Namespace) -> str:
    match error:
        case UnknownKey():
            return f"there is no key with the id {options.id!r}"
        case RevokedKey():
            return f"{options.id} is revoked, for good: make a new key"
        case BadKey():
            return f"{error.field}: {error}"
        case _:
            return str(error)


def _note(folder: Path, key_id: str) -> int:
    """Leave a revocation in the journal, which gateways that run here read; returns the exit code."""
    if re.fullmatch(rf"[0-9A-Za-z]{{{ID_CHARS}}}", key_id) is None:
        return 1
    try:
        RevocationJournal(folder).write_revocation(key_id, time.time())
    except OSError as error:
        print(f"keys: nor can the journal: {error}", file=sys.stderr)
        return 1
    print(f"{key_id} is revoked: noted in the journal, and written to the database as soon as that works.")
    return 0


def create(store: KeyStore, options: argparse.Namespace) -> None:
    """Make a key and show it, this once."""
    fields = _given(options)
    fields.setdefault("permissions", ("chat", "vision", "embed:text", "embed:image", "models"))
    key, text = new_key(store.pepper, time.time(), name=options.name, **fields)
    store.write_key(key)
    _audit("key.create", key)
    print(text)
    print(f"Keep it: it is not shown again. Its id is {key.id}.", file=sys.stderr)


def show(store: KeyStore, options: argparse.Namespace) -> None:
    """List all keys."""
    keys, now = store.read_keys(), time.time()
    if options.json:
        public = [{**describe(key, now)} for key in keys]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(public)).decode() + "\n")
        return
    rows = [("ID", "STATE", "REQUESTS", "TOKENS", "LAST USED", "EXPIRES", "PERMISSIONS", "NAME")]
    rows += [
        (
            key.id,
            key.state(now),
            str(key.requests),
            str(key.tokens),
            _day(key.last_used_at),
            _day(key.expires_at),
            ",".join(key.permissions),
            key.name,
        )
        for key in keys
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def change(store: KeyStore, options: argparse.Namespace) -> None:
    """Give a key other permissions, models, limits, another name or end."""
    fields = _given(options)
    if options.new_name is not None:
        fields["name"] = options.new_name

    def make(key: Key) -> tuple[Key, None]:
        given = fields | ({"limits": fields["limits"].filled_from(key.limits)} if "limits" in fields else {})
        return key.changed(time.time(), **given), None

    key, _ = store.change_key(options.id, make)
    _audit("key.change", key)
    print(f"{key.id} is changed.")


def revoke(store: KeyStore, options: argparse.Namespace) -> None:
    """Close a key for good."""
    now = time.time()
    key = store.revoke_key(options.id, now)
    if key.revoked_at == now:
        _audit("key.revoke", key)
    print(f"{key.id} is revoked.")


def rotate(store: KeyStore, options: argparse.Namespace) -> None:
    """Give a key a new secret; the old one stays good for a while."""
    grace_s = span(options.grace)
    key, text = store.change_key(options.id, lambda key: key.rotated(store.pepper, time.time(), grace_s))
    _audit("key.rotate", key)
    print(text)
    print(f"Keep it: it is not shown again. The old one is good for {options.grace} more.", file=sys.stderr)


def describe(key: Key, now: float) -> dict[str, Any]:
    """Return a key as it may be shown: without what its secret could be checked against."""
    shown = {name: getattr(key, name) for name in Key.__struct_fields__ if name not in ("digest", "old_digest")}
    shown["old_until"] = key.old_until if key.old_until > now else None
    return {**shown, "state": key.state(now)}


def span(text: str) -> float:
    """Read the seconds of `90s`, `24h`, `30d`. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if match is None:
        raise ConfigError(f"a span must look like 90s, 15m, 24h, 30d or 4w, not {text!r}")
    return float(match[1]) * _SPANS[match[2]]


def _audit(act: str, key: Key) -> None:
    audit(act, by=f"user {os.getuid()} of this machine", subject=key.id, name=key.name)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if options.permissions is not None:
        fields["permissions"] = names(options.permissions)
    if options.models is not None:
        fields["models"] = names(options.models)
    if options.expires is not None:
        fields["expires_at"] = None if options.expires == "never" else time.time() + span(options.expires)
    limits = {
        name: getattr(options, name) for name in RateLimits.__struct_fields__ if getattr(options, name) is not None
    }
    if limits:
        fields["limits"] = RateLimits(**limits)
    return fields


def _day(moment: float | None) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M") if moment else "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway keys", description="API keys of the gateway.")
    parser.add_argument("--config", metavar="FILE", help="the gateway's settings, if not the usual ones")
    parser.add_argument("--data-dir", metavar="FOLDER", help="where the keys are, if not where the settings say")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[KeyStore, argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    creation = command("create", create)
    creation.add_argument("name", help="what it is for")
    _add_fields(creation)
    command("list", show).add_argument("--json", action="store_true")
    alteration = command("change", change)
    alteration.add_argument("id")
    alteration.add_argument("--name", dest="new_name")
    _add_fields(alteration)
    command("revoke", revoke).add_argument("id")
    rotation = command("rotate", rotate)
    rotation.add_argument("id")
    rotation.add_argument("--grace", default="24h", metavar="SPAN", help="how long the old one stays good (24h)")
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--permissions", metavar="P,...", help=f"of {', '.join(PERMISSIONS)}, *; default, at creation, all but admin"
    )
    parser.add_argument("--models", metavar="NAME,...", help="models that it may use; default all")
    parser.add_argument("--expires", metavar="SPAN", help="as in 90d, or never")
    for name, text in (
        ("burst", "requests at once"),
        ("rpm", "requests per minute"),
        ("rph", "requests per hour"),
        ("rpd", "requests per day"),
        ("tpm", "tokens per minute"),
        ("tpd", "tokens per day"),
        ("parallel", "requests that run at the same time"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text}; 0 is no bound")
